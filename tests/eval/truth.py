"""Predictions made from the truth, in files: what any benchmark must score as perfect."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lean3r.data.sets.formats.maps import nearest, zero_unknown
from lean3r.data.sets.scenes import RawView
from lean3r.eval.protocols.items import Item


def similarity(scale: float, seed: int = 0) -> np.ndarray:
    """[4, 4]: a world that is turned, moved and scaled, as a similarity to the new from the old."""
    rotation, upper = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    rotation *= np.sign(np.diag(upper))
    rotation *= np.linalg.det(rotation)
    moved = np.eye(4)
    moved[:3, :3], moved[:3, 3] = scale * rotation, (2.0, -1.0, 0.5)
    return moved


def moved_pose(cam_from_world: np.ndarray, world: np.ndarray) -> np.ndarray:
    """cam_from_world in a world moved by a similarity."""
    scale = np.cbrt(np.linalg.det(world[:3, :3]))
    pose = cam_from_world @ np.linalg.inv(world)
    pose[:3] *= scale
    return pose


def write(
    item: Item,
    place: Path,
    scale: float = 1.0,
    cameras: list[int] | None = None,
    columns: int | None = None,
    in_unit: bool = False,
) -> tuple[RawView, ...]:
    """Write predictions.npz of an item from its truth, in a moved world of another scale; `cameras` permutes them,
    and maps of depth are at most `columns` wide. With `in_unit` the world is the first view's frame, and the scale is
    that of Lite3R's evaluation."""
    views = item.read()
    world = np.eye(4) if scale == 1.0 else similarity(scale)
    if in_unit:
        scale /= unit_of(views)
        world = np.diag([scale, scale, scale, 1.0]) @ views[0].cam_from_world
    poses = np.stack([moved_pose(view.cam_from_world, world) for view in views])
    place.mkdir(parents=True, exist_ok=True)
    np.savez(
        place / "predictions.npz",
        names=np.array(item.names),
        cam_from_world=poses if cameras is None else poses[cameras],
        K_original=np.stack([view.intrinsics for view in views]),
        depth=np.stack([scale * fewer(zero_unknown(view.depth)[0], columns) for view in views]),
    )
    return views


def unit_of(views: Sequence[RawView]) -> float:
    """The unit of length of a sample in Lite3R's evaluation."""
    depths = np.concatenate([view.depth[view.depth > 0] for view in views] or [np.zeros(0)])
    lengths = [float(np.linalg.norm(view.cam_from_world[:3, 3])) for view in views]
    return max(float(np.median(depths)) if len(depths) else 0.0, *lengths)


def fewer(depth: np.ndarray, columns: int | None) -> np.ndarray:
    """The depth at the centres of fewer pixels of the same picture."""
    if columns is None or depth.shape[1] <= columns:
        return depth
    rows = max(1, depth.shape[0] * columns // depth.shape[1])
    return nearest(depth, rows, columns)
