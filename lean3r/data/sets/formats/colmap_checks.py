"""Whether the cameras of a COLMAP model agree with what its pictures observed: the points and their pixels tell.

A pose that is no pose of its picture, or a camera for pictures of another size, would give scores and samples that are
wrong without looking so.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from lean3r.colmap_library import pycolmap

FEWEST = 10  # points of a picture that say anything
LOOKED_PICTURES, LOOKED_POINTS = 50, 50
FAR = 0.05  # of the longer side: hundreds of times what bundle adjustment leaves
SHARE, BEYOND = 0.6, 1.02  # of both sides: all that is seen lies within less, or beyond


def contradictions(model: pycolmap.Reconstruction, place: str) -> list[str]:
    """Sentences for pictures whose points do not project to where they were seen, and for cameras of another size."""
    images = [image for image in model.images.values() if image.has_pose]
    images = images[:: -(-len(images) // LOOKED_PICTURES) or 1]
    seen: dict[int, list[np.ndarray]] = defaultdict(list)
    far, looked = [], 0
    for image in images:
        points = [p for p in image.points2D if p.has_point3D() and model.exists_point3D(p.point3D_id)]
        if len(points) < FEWEST:
            continue
        looked += 1
        seen[image.camera_id].append(np.array([p.xy for p in points]))
        camera = model.cameras[image.camera_id]
        some = points[:: -(-len(points) // LOOKED_POINTS)]
        shown = [image.project_point(model.points3D[p.point3D_id].xyz) for p in some]
        off = [np.inf if at is None else float(np.linalg.norm(at - p.xy)) for at, p in zip(shown, some, strict=True)]
        if np.median(off) > FAR * max(camera.width, camera.height):
            far.append(image.name)
    found = [_of_size(model.cameras[id], np.concatenate(pixels), place) for id, pixels in sorted(seen.items())]
    if far:
        found.append(
            f"{place}: the points of {len(far)} of {looked} pictures do not lie where the pictures saw them, e.g. "
            f"{min(far)}; its poses or cameras are wrong"
        )
    return [text for text in found if text]


def _of_size(camera: pycolmap.Camera, pixels: np.ndarray, place: str) -> str:
    size = np.array([camera.width, camera.height])
    reach = pixels.max(axis=0) / size
    if reach.max() > BEYOND or (reach.max() < SHARE and len(pixels) >= LOOKED_POINTS):
        right, lower = np.ceil(pixels.max(axis=0)).astype(int)
        return (
            f"{place}: camera {camera.camera_id} states {camera.width} x {camera.height} pixels, but all points were "
            f"seen within {right} x {lower}; is it for pictures of another size?"
        )
    return ""
