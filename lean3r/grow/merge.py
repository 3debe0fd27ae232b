"""Put new views into a scene whose own views stay bit for bit as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lean3r.geometry.lens import Optics
from lean3r.grow.recall import on_canvas
from lean3r.types import Lens, Reconstruction, SparsePoints

SAME_PX = 0.05  # two measurements in one view that are so near, in pixels of the original, are of one feature
FITTING_PX = 4.0  # reprojection error up to which a new view observes a stored point
NOTHING_SAID: Mapping[str, Any] = {"points": 0, "scale": 1.0, "field": False}


def merge(scene: Reconstruction, part: Reconstruction, views: Sequence[int]) -> Reconstruction:
    """The scene with those views of a part that are not in it, as its last ones, and the points that they observe.

    `part` is in the world of the scene; `views` [V] are the scene's views of the part's first V, which the result has
    from the scene, in its pixels. The cloud stays as it was.
    """
    new = np.arange(len(views), len(part.sources))
    shape = np.maximum(scene.depth.shape[1:], part.depth.shape[1:])

    def joined(name: str, fill: float) -> np.ndarray:
        maps = (on_canvas(getattr(each, name), shape, fill) for each in (scene, of_views(part, new)))
        return np.concatenate(list(maps))

    lenses: tuple[Lens, ...] = ()
    if scene.lenses or part.lenses:
        added = part.lenses or pinholes(part)
        lenses = (*(scene.lenses or pinholes(scene)), *(added[view] for view in new))
    labels = part.registration or ("predicted",) * len(part.sources)
    return replace(
        scene,
        sources=(*scene.sources, *(part.sources[view] for view in new)),
        images=joined("images", 128),
        mask=joined("mask", False),
        depth=joined("depth", 0),
        conf=joined("conf", 0),
        cam_from_world=np.concatenate([scene.cam_from_world, part.cam_from_world[new]]),
        intrinsics=np.concatenate([scene.intrinsics, part.intrinsics[new]]),
        lenses=lenses,
        sparse=merge_points(scene, part, views),
        registration=(*scene.registration, *(labels[view] for view in new)),
        info=_merge_info(scene.info, part.info, new),
    )


def of_views(part: Reconstruction, views: np.ndarray) -> Reconstruction:
    """The maps of some views of a scene; the rest of it stays as it was."""
    return replace(part, **{name: getattr(part, name)[views] for name in ("images", "mask", "depth", "conf")})


def pinholes(scene: Reconstruction) -> tuple[Lens, ...]:
    """The cameras of a scene without lenses."""
    matrices = scene.original_intrinsics[:, [0, 1, 0, 1], [0, 1, 2, 2]]
    return tuple(Lens("PINHOLE", tuple(map(float, row))) for row in matrices)


def merge_points(scene: Reconstruction, part: Reconstruction, views: Sequence[int]) -> SparsePoints | None:
    """The scene's triangulated points, where they are, with the new views that observe them, and those of the part that
    the scene lacks. `views` as in `merge`.

    A point of the part is a stored one if both are measured at the same place of a stored view.
    """
    found = part.sparse
    if found is None or not len(found.xyz):
        return scene.sparse
    number = np.concatenate([np.asarray(views, int), np.arange(len(part.sources) - len(views)) + len(scene.sources)])
    view = number[found.view].astype(np.int32)
    is_new = view >= len(scene.sources)
    seen_by_new = np.zeros(len(found.xyz), bool)
    seen_by_new[found.point[is_new]] = True
    old = scene.sparse
    same = np.full(len(found.xyz), -1) if old is None else _same_points(old, found, view)
    lacking = np.flatnonzero(seen_by_new & (same < 0))
    stored = 0 if old is None else len(old.xyz)
    place = same.copy()
    place[lacking] = stored + np.arange(len(lacking))
    # Of a point that the scene has, only what new views measured; of others everything.
    kept = np.where(same[found.point] >= 0, is_new, place[found.point] >= 0)
    known = np.flatnonzero(kept & (same[found.point] >= 0))
    if old is not None and len(known):
        kept[known] = _errors(part, old.xyz[same[found.point[known]]], found.view[known], found.xy[known]) < FITTING_PX
    added = SparsePoints(
        found.xyz[lacking],
        found.rgb[lacking],
        found.error_px[lacking],
        place[found.point[kept]].astype(np.int32),
        view[kept],
        found.xy[kept],
    )
    if old is None:
        return added
    names = ("xyz", "rgb", "error_px", "point", "view", "xy")
    return SparsePoints(*(np.concatenate([getattr(old, name), getattr(added, name)]) for name in names))


def _same_points(old: SparsePoints, found: SparsePoints, view: np.ndarray) -> np.ndarray:
    """The point of `old` that each point [P] of `found` is, or -1; view [O] are the scene's views of its measurements.
    Each is at most one."""
    same = np.full(len(found.xyz), -1)
    for number in np.unique(view):
        theirs, ours = np.flatnonzero(old.view == number), np.flatnonzero(view == number)
        cells: dict[tuple[int, int], list[int]] = {}
        for row in theirs.tolist():
            x, y = np.floor(old.xy[row] / SAME_PX).astype(int).tolist()
            cells.setdefault((x, y), []).append(row)
        for row in ours.tolist():
            x, y = np.floor(found.xy[row] / SAME_PX).astype(int).tolist()
            near = [each for i in (-1, 0, 1) for j in (-1, 0, 1) for each in cells.get((x + i, y + j), ())]
            near = [each for each in near if np.abs(old.xy[each] - found.xy[row]).max() <= SAME_PX]
            if near and same[found.point[row]] < 0:
                same[found.point[row]] = old.point[near[0]]
    return same


def _errors(part: Reconstruction, xyz: np.ndarray, view: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Reprojection errors [O] of points [O, 3] in views [O] of the part, in pixels of the originals."""
    optics, errors = Optics.of(part), np.full(len(xyz), np.inf)
    for number in np.unique(view):
        mine = np.flatnonzero(view == number)
        pose, (scale, offset) = (
            part.cam_from_world[number],
            np.reshape(part.sources[number].original_from_network, (2, 2)),
        )
        at = optics.project(int(number), xyz[mine] @ pose[:3, :3].T + pose[:3, 3]) * scale + offset
        errors[mine] = np.nan_to_num(np.linalg.norm(at - xy[mine], axis=1), nan=np.inf)
    return errors


def _merge_info(old: Mapping[str, Any], part: Mapping[str, Any], new: np.ndarray) -> dict[str, Any]:
    """What the manifest says of each view, for those of the scene and the new ones."""
    info = dict(old)
    if isinstance(info.get("sky"), list) and "sky" in part:
        info["sky"] = [*info["sky"], *(part["sky"][view] for view in new)]
    if isinstance(info.get("depth"), list):
        said = part.get("depth")
        info["depth"] = [*info["depth"], *(said[view] if said else dict(NOTHING_SAID) for view in new)]
    if "refinement" in info:
        said = part.get("refinement", {}).get("views")
        views = [*info["refinement"]["views"], *(said[view] if said else {} for view in new)]
        info["refinement"] = {**info["refinement"], "views": views}
    return info
