"""Camera frusta as geometry, for the GLB scene and the preview."""

from __future__ import annotations

import numpy as np

from lean3r.export.depth import picture_region
from lean3r.types import Reconstruction

# Apex 0; picture corners 1 to 4 clockwise from the top left; 5 is a tip above the picture, which marks its top.
EDGES = np.array([(0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (2, 3), (3, 4), (4, 1), (1, 5), (5, 2)])


def frustum_corners(reconstruction: Reconstruction) -> np.ndarray:
    """World coordinates [S, 6, 3] of each camera's apex, picture corners and tip, joined by EDGES."""
    reach = frustum_reach(reconstruction)
    corners = []
    for mask, k, pose in zip(
        reconstruction.mask, reconstruction.intrinsics, reconstruction.cam_from_world, strict=True
    ):
        rows, cols = picture_region(mask)
        middle, tip = (cols.start + cols.stop) / 2, rows.start - 0.18 * (cols.stop - cols.start)
        x = np.array([cols.start, cols.stop, cols.stop, cols.start, middle])
        y = np.array([rows.start, rows.start, rows.stop, rows.stop, tip])
        rays = np.stack([(x - k[0, 2]) / k[0, 0], (y - k[1, 2]) / k[1, 1], np.ones(5)], axis=1)
        # All frusta have the same half diagonal, whatever the lens, so none looks like a needle.
        cam = np.vstack([np.zeros(3), rays * reach / np.linalg.norm(rays[:4, :2], axis=1).mean()])
        corners.append((cam - pose[:3, 3]) @ pose[:3, :3])
    return np.stack(corners)


def frustum_reach(reconstruction: Reconstruction) -> float:
    """Half diagonal of a frustum's picture in world units: large enough to see, too small for neighbours to overlap."""
    typical = _typical_depth(reconstruction)
    centres = camera_centres(reconstruction.cam_from_world)
    if len(centres) < 2:
        return 0.08 * typical
    # Camera by camera: all distances of thousands of cameras at once take gigabytes. The smallest one is to itself.
    nearest = [np.partition(np.linalg.norm(centres - centre, axis=1), 1)[1] for centre in centres]
    return float(np.clip(0.5 * np.median(nearest), 0.02 * typical, 0.08 * typical))


def _typical_depth(reconstruction: Reconstruction) -> float:
    """The median depth, or, of a scene that has only triangulated points, that of these; 1 if nothing is known."""
    depth = reconstruction.depth
    known = depth[np.isfinite(depth) & (depth > 0)]
    if not known.size:
        points = reconstruction.points
        pose = reconstruction.cam_from_world[points.view, 2]
        known = np.einsum("pc,pc->p", points.xyz, pose[:, :3]) + pose[:, 3]
    return float(np.median(known[:: 1 + known.size // 1_000_000])) if known.size else 1.0


def camera_centres(cam_from_world: np.ndarray) -> np.ndarray:
    """Optical centres [S, 3] in world coordinates."""
    return -np.einsum("sji,sj->si", cam_from_world[:, :3, :3], cam_from_world[:, :3, 3])


def order_colours(count: int) -> np.ndarray:
    """RGB uint8 [S, 3] from coral (first view) to turquoise (last), which shows the order of the views."""
    share = np.linspace(0, 1, max(count, 2))[:count, None]
    return ((1 - share) * [255, 107, 74] + share * [58, 214, 226]).astype(np.uint8)
