"""preview.jpg: the coloured cloud and the cameras, seen from behind the cameras and from the side."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from lean3r.export.depth import picture_region
from lean3r.export.frusta import EDGES, frustum_corners, order_colours
from lean3r.export.options import ExportOptions
from lean3r.export.splat import edge_shading, splat
from lean3r.geometry.up import upright_from_world
from lean3r.types import Reconstruction

SMALL_SIZE = 960, 420  # pixels of a preview on a page: some 100 kB
HEIGHT, WIDTH, SAMPLES = 700, 800, 2  # one panel; SAMPLES^2 pixels are averaged into one
FIELD_OF_VIEW_RAD = 0.66
VIEWPOINTS_DEG = ((-18.0, 24.0), (52.0, 34.0))  # azimuth from straight behind the cameras, elevation
MOST_POINTS = 600_000
FEW = 32  # views
DOT = 3.0  # radius of a point of no surface
TOP, BOTTOM = np.array([24.0, 27.0, 34.0]), np.array([44.0, 49.0, 60.0])  # background


def write(reconstruction: Reconstruction, directory: Path, options: ExportOptions) -> list[Path]:
    """Write preview.jpg, 1600 x 700 pixels."""
    path = directory / "preview.jpg"
    Image.fromarray(draw(reconstruction.of_certain())).save(path, quality=90)
    return [path]


def draw(reconstruction: Reconstruction) -> np.ndarray:
    """RGB uint8 [700, 1600, 3]: two views of the scene side by side, without surfaces that face away."""
    points = reconstruction.points
    chosen = np.arange(0, len(points.xyz), 1 + len(points.xyz) // MOST_POINTS)
    xyz, rgb = points.xyz[chosen].astype(np.float64), points.rgb[chosen]
    normals, spacing = points.normals[chosen], _spacing(reconstruction, chosen)
    corners = frustum_corners(reconstruction)
    pictures, picture_rgb = _pictures(reconstruction, corners)
    lines = np.concatenate([_between(corners[:, a], corners[:, b]) for a, b in EDGES], axis=1)
    line_rgb = np.repeat(order_colours(len(corners)), lines.shape[1], axis=0)
    lines = lines.reshape(-1, 3)
    focal = SAMPLES * HEIGHT / 2 / np.tan(FIELD_OF_VIEW_RAD / 2)
    panels = []
    # That of one camera, or of cameras that look one way, is no better than the cameras themselves.
    is_known = (reconstruction.info.get("up") or {}).get("certain")
    up = -upright_from_world(reconstruction)[1] if is_known else None
    for azimuth, elevation in np.deg2rad(VIEWPOINTS_DEG):
        rotation = viewpoint(reconstruction.cam_from_world, azimuth, elevation, up)
        eye = frame(xyz, corners.reshape(-1, 3), rotation)
        facing = np.einsum("pc,pc->p", normals, eye - xyz) >= 0
        cam = (np.concatenate([xyz[facing], pictures, lines]) - eye) @ rotation.T
        cam[-len(lines) :] *= 0.995  # draws lines in front of the picture that they frame
        radius = np.full(len(cam), 1.6)
        splats = slice(0, int(facing.sum()) + len(pictures))
        sizes = np.concatenate([spacing[facing], _picture_spacing(pictures, len(corners))])
        radius[splats] = np.where(sizes > 0, 0.8 * sizes * focal / np.maximum(cam[splats, 2], 1e-6), DOT)
        colours = np.concatenate([rgb[facing], picture_rgb, line_rgb])
        panels.append(_shade(*splat(cam, colours, radius, focal, SAMPLES * HEIGHT, SAMPLES * WIDTH)))
    return np.concatenate(panels, axis=1)


def jpeg(picture: Image.Image) -> bytes:
    """A drawn preview as a small JPEG, for pages."""
    stored = io.BytesIO()
    picture.resize(SMALL_SIZE, Image.Resampling.LANCZOS).save(stored, "JPEG", quality=85)
    return stored.getvalue()


def viewpoint(
    cam_from_world: np.ndarray, azimuth_rad: float, elevation_rad: float, known_up: np.ndarray | None = None
) -> np.ndarray:
    """Rotation [3, 3], view from world: the mean viewing direction of the cameras, turned by azimuth and elevation.

    Without `known_up` [3], up is the mean of the cameras' up directions: the picture does not depend on the world's
    orientation.
    """
    mean = -cam_from_world[:, 1, :3].mean(axis=0) if known_up is None else known_up
    up = mean / np.linalg.norm(mean) if np.linalg.norm(mean) > 1e-3 else -cam_from_world[0, 1, :3]
    # Directions all around have no mean: then take that of the first camera.
    for ahead in (cam_from_world[:, 2, :3].mean(axis=0), *cam_from_world[:, 2, :3], cam_from_world[0, 0, :3]):
        level = ahead - up * (ahead @ up)
        if np.linalg.norm(level) > 0.3:
            break
    level /= np.linalg.norm(level)
    turned = np.cos(azimuth_rad) * level + np.sin(azimuth_rad) * np.cross(up, level)
    forward = np.cos(elevation_rad) * turned - np.sin(elevation_rad) * up
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward])


def frame(xyz: np.ndarray, cameras: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """The eye [3] from which the middle 96 per cent of the points and all nearby cameras fill a panel."""
    half = np.tan(FIELD_OF_VIEW_RAD / 2) * 0.94
    halves = np.array([half * WIDTH / HEIGHT, half])
    sample = xyz[:: 1 + len(xyz) // 50_000]
    centre = np.median(np.concatenate([sample, cameras]), axis=0)
    view = (sample - centre) @ rotation.T
    low, high = np.percentile(view, [2, 98], axis=0) if len(view) else (np.zeros(3), np.zeros(3))
    view = view[((view >= low) & (view <= high)).all(axis=1)]
    extent = np.linalg.norm(high - low)
    eyes = (cameras - centre) @ rotation.T
    near = np.linalg.norm(eyes, axis=1) <= 2 * extent
    view = np.concatenate([view, eyes[near] if near.any() else eyes])
    # From a distance d behind the centre, a point (x, y, z) is in the panel if |x - shift| <= (z + d) * half.
    # The tightest pair of opposite bounds gives both the shift and the distance.
    reach = [(view[:, a] - halves[a] * view[:, 2]).max() for a in (0, 1)]
    other = [(-view[:, a] - halves[a] * view[:, 2]).max() for a in (0, 1)]
    distance = max((reach[a] + other[a]) / (2 * halves[a]) for a in (0, 1))
    shift = [(reach[a] - other[a]) / 2 for a in (0, 1)]
    return centre + np.array([shift[0], shift[1], -max(distance, 1e-6)]) @ rotation


def _spacing(reconstruction: Reconstruction, chosen: np.ndarray) -> np.ndarray:
    """The distance of each point [P] to its neighbours."""
    points = reconstruction.points
    view, (cols, rows) = points.view[chosen], points.xy[chosen].astype(np.int64).T
    footprint = 1 / np.sqrt(abs(reconstruction.intrinsics[:, 0, 0] * reconstruction.intrinsics[:, 1, 1]))
    # Pixels are farther apart on a surface seen at a grazing angle; one of unknown normal is taken to face the camera.
    slant = np.abs(np.einsum("pc,pc->p", points.normals[chosen], reconstruction.cam_from_world[view, 2, :3]))
    slant[~points.normals[chosen].any(axis=1)] = 1
    spacing = reconstruction.depth[view, rows, cols] * footprint[view] / np.sqrt(slant.clip(0.15, 1))
    return spacing * np.sqrt(max(len(points.xyz), 1) / max(len(chosen), 1))


def _pictures(reconstruction: Reconstruction, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points [Q, 3] and colours [Q, 3] that show each view's picture in the image plane of its frustum."""
    count = 48 if len(corners) <= FEW else 24
    share = (np.arange(count) + 0.5) / count
    xyz, rgb = [], []
    for image, mask, corner in zip(reconstruction.images, reconstruction.mask, corners, strict=True):
        rows, cols = picture_region(mask)
        picture = image[rows, cols]
        down, along = np.meshgrid(share, share, indexing="ij")
        grid = corner[1] + along[..., None] * (corner[2] - corner[1]) + down[..., None] * (corner[4] - corner[1])
        xyz.append(grid.reshape(-1, 3))
        at = (share * picture.shape[0]).astype(int)[:, None], (share * picture.shape[1]).astype(int)
        rgb.append(picture[at].reshape(-1, 3))
    return np.concatenate(xyz), np.concatenate(rgb)


def _picture_spacing(pictures: np.ndarray, views: int) -> np.ndarray:
    """Distance [Q] between neighbours of the points of `_pictures`."""
    grids = pictures.reshape(views, -1, 3)
    return np.repeat(np.linalg.norm(grids[:, 1] - grids[:, 0], axis=1), grids.shape[1])


def _between(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Points [S, n, 3] on the segments from start to end [S, 3], dense enough to look like a line."""
    share = np.linspace(0, 1, 160 if len(start) <= FEW else 80)[:, None]
    return start[:, None] * (1 - share) + end[:, None] * share


def _shade(colour: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Shade the colours, draw them in front of the background, and average SAMPLES^2 pixels into one."""
    shading = edge_shading(depth)
    shading[~np.isfinite(depth)] = 0
    parts = [np.s_[i::SAMPLES, j::SAMPLES] for i in range(SAMPLES) for j in range(SAMPLES)]
    picture = np.add.reduce([colour[part] * shading[part][..., None] for part in parts])
    empty = np.add.reduce([np.isinf(depth[part]) for part in parts], dtype=np.float32)
    ramp = np.linspace(0, 1, len(picture), dtype=np.float32)[:, None, None]
    picture += empty[..., None] * ((1 - ramp) * TOP.astype(np.float32) + ramp * BOTTOM.astype(np.float32))
    return (picture / len(parts) + 0.5).astype(np.uint8)
