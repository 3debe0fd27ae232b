"""Whether pictures are those that a scene was made from; under their names there may be others by now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lean3r.errors import InputError
from lean3r.export.ply_reader import read_ply
from lean3r.geometry.lens import Optics
from lean3r.types import Reconstruction

MOST_POINTS = 100_000  # of the cloud are projected into every view
FEWEST_POINTS = 50  # of a view tell something
CENTRED, AS_DEEP = 0.02, 1e-3  # a view's own points lie at centres of its pixels, at their depth
# Copies at half the size with JPEG quality 40: at least 0.95, at most 7. Neighbours in a series: at most 0.7, at least
# 11. A plain wall correlates with nothing, and has its colour.
LEAST_CORRELATION, MOST_DIFFERENCE = 0.85, 4


def check_by_cloud(scene: Reconstruction, folder: Path, images: np.ndarray) -> None:
    """InputError if pictures [S, H, W, 3] in network pixels do not have the colours that they gave the points.ply of
    the scene's folder. Without one, and where a view gave hardly any points, nothing is known."""
    pixels = _own_pixels(scene, folder)
    others = [view for view, x, y, rgb in pixels if len(x) >= FEWEST_POINTS and not are_alike(images[view, y, x], rgb)]
    refuse([scene.names[view] for view in others])


def refuse(names: Sequence[str]) -> None:
    """InputError for pictures with these names, which are other ones by now; nothing if there are none."""
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise InputError(
            f"{names[0]}{more} of the scene's pictures are not found: under these names there are other pictures now. "
            "Say with --stored (stored= in Python) where those of the scene are."
        )


def are_alike(colours: np.ndarray, others: np.ndarray) -> bool:
    """Whether colours [N, 3] are the same ones but for compression, another size or another exposure."""
    a, b = colours.astype(np.float64), others.astype(np.float64)
    if np.median(np.abs(a - b)) <= MOST_DIFFERENCE:
        return True
    a, b = (each.mean(axis=1) - each.mean() for each in (a, b))
    return float(a @ b) > LEAST_CORRELATION * np.sqrt(float((a @ a) * (b @ b)))


def _own_pixels(scene: Reconstruction, folder: Path) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Of each view its number, the columns and rows of pixels that gave points, and their colours there [N, 3]."""
    path = folder / "points.ply"
    try:
        cloud = read_ply(path) if path.is_file() else None
    except InputError:  # written by another program since
        cloud = None
    rgb = None if cloud is None else cloud.columns("red", "green", "blue")
    if cloud is None or rgb is None:
        return
    xyz, optics = cloud.columns("x", "y", "z"), Optics.of(scene)
    assert xyz is not None
    step = 1 + len(xyz) // MOST_POINTS
    xyz, rgb = xyz[::step].astype(np.float64), rgb[::step]
    height, width = scene.depth.shape[1:]
    for view, pose in enumerate(scene.cam_from_world):
        cam = xyz @ pose[:3, :3].T + pose[:3, 3]
        xy = optics.project(view, cam)
        inside = np.flatnonzero(((xy >= 0) & (xy < (width, height))).all(axis=1))
        xy, z = xy[inside], cam[inside, 2]
        x, y = xy.astype(int).T
        own = (np.abs(xy % 1 - 0.5).max(axis=1) < CENTRED) & (np.abs(scene.depth[view, y, x] / z - 1) < AS_DEEP)
        yield view, x[own], y[own], rgb[inside[own]]
