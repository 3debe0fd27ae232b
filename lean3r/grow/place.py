"""Reconstruct new pictures together with recalled views, in the world of a scene."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from lean3r.geometry.lens import Optics, pinhole_part
from lean3r.grow.merge import of_views
from lean3r.grow.recall import Recall
from lean3r.inputs.given import GivenCamera, GivenCameras
from lean3r.inputs.masks import Masks
from lean3r.inputs.pictures import Pictures
from lean3r.inputs.views import whole_size
from lean3r.models.base import Backbone
from lean3r.pipeline.densifying import densify_scene, measures
from lean3r.pipeline.enlarging import carried, enlarge_scene, has_room
from lean3r.pipeline.observer import Observer
from lean3r.pipeline.reconstruct import reconstruct
from lean3r.refine import RefineOptions
from lean3r.stereo.options import Dense, StereoOptions
from lean3r.stream import sim3
from lean3r.stream.join import Join, Shared, join
from lean3r.types import Lens, Reconstruction, Registration

SAME_FOCAL = 0.04  # relative: a focal length estimated from one picture is so far off at most
LOOK = 64  # pixels: side of the pictures that are read for their size and focal length alone


class _Part(Observer):
    """Shows the stages of a part of a run, and not what that part reads."""

    def __init__(self, whole: Observer) -> None:
        super().__init__()
        self.seconds = whole.seconds
        self._whole = whole

    @contextmanager
    def stage(self, name: str) -> Iterator[Any]:
        """That of the whole run."""
        with self._whole.stage(name) as progress:
            yield progress


def place(
    model: Backbone,
    scene: Reconstruction,
    chosen: Recall,
    pictures: Pictures,
    *,
    is_held: bool,
    refining: RefineOptions,
    config: Mapping[str, Any],
    masks: Masks | None,
    resolution: int | None,
    seed: int,
    observer: Observer,
) -> Reconstruction:
    """A scene of the recalled views, which come first in `pictures`, and the new ones, in the world of the scene.

    If `is_held`, refinement registers the new views against the cameras of the recalled ones, held fixed. Otherwise the
    network's own world is joined to the scene's by a robust similarity. The depth of recalled views is that of the
    scene; that of new ones is measured by the scene's `config`, at its size if memory suffices. New views that nothing
    confirms are uncertain.
    """
    stereo = StereoOptions(**{name: config[name] for name in ("dense", "depth_size") if name in config})
    if isinstance(stereo.depth_size, int) and stereo.depth_size < (resolution or model.resolution):
        stereo = replace(stereo, depth_size=None)
    shared = len(chosen.views)

    def run(cameras: GivenCameras | None, refine: RefineOptions) -> Reconstruction:
        network: Dense = "off" if stereo.dense == "off" else "network"
        part = reconstruct(
            model,
            pictures,
            cameras=cameras,
            masks=masks,
            resolution=resolution,
            seed=seed,
            refine=refine,
            dense=network,
            points=scene.point_options,
            observer=_Part(observer),
        )
        if part.info.get("refinement", {}).get("reason") == "interrupted":
            raise KeyboardInterrupt  # the scene stays as it was
        return part

    if is_held:
        on = replace(refining, when="on")

        def held(lenses: Mapping[str, Lens]) -> Reconstruction:
            return _confirmed(run(cameras_of(scene, chosen.views, pictures, lenses), on), shared)

        stated, assumed = lenses_of_new(scene, chosen.views, pictures) if refining.share_lens != "never" else ({}, {})
        part = held(stated)
        if stated and doubted(part, chosen.matches):  # EXIF may be wrong
            part = max(part, held({}), key=certain_of)
        elif same := {name: lens for name, lens in assumed.items() if is_like(part, name, lens)}:
            other = held(stated | same)
            # A lens that is not theirs is noticed, or loses views.
            if certain_of(other) >= certain_of(part) and not other.info["refinement"].get("notes"):
                part = other
    else:
        part = run(None, RefineOptions(when="off"))
    if stereo.depth_size is not None and has_room(stereo, part.sources, model):
        part = enlarge_scene(part, pictures, stereo, masks, _Part(observer), is_asked=False)
    stored = recalled(scene, chosen.views, part)
    part = with_stored_depth(stored, part if is_held else joined(stored, part))
    if stereo.dense != "off" and measures(stereo, part):
        only = np.arange(len(part.sources)) >= shared
        part = densify_scene(part, _Part(observer), next(model.parameters()).device, only=only)
    return part


def cameras_of(
    scene: Reconstruction, views: Sequence[int], pictures: Pictures, lenses: Mapping[str, Lens]
) -> GivenCameras:
    """The cameras of the recalled views, and the lenses of new ones, as far as they are known by name."""
    known = []
    for view in views:
        source, matrix = scene.sources[view], scene.original_intrinsics[view]
        lens = scene.lenses[view] if scene.lenses else None
        known.append(GivenCamera(source.name, source.width, source.height, matrix, scene.cam_from_world[view], lens))
    for name in pictures.names[len(views) :]:
        known.append(GivenCamera(name, lens=lenses.get(name)))
    return GivenCameras(tuple(known), "the scene", scene.scale == "metric")


def lenses_of_new(
    scene: Reconstruction, views: Sequence[int], pictures: Pictures
) -> tuple[dict[str, Lens], dict[str, Lens]]:
    """Lenses of new pictures by name: those that have the size and focal length in EXIF of recalled views with one lens
    share it; those of the same size without EXIF may."""
    if not scene.lenses:
        return {}, {}
    looks = {p.source.name: p.source for p in pictures.whole(pictures.names, partial(whole_size, side=LOOK))}
    keys = {name: (look.width, look.height, look.focal_px) for name, look in looks.items()}
    stored: dict[Any, set[Lens]] = {}
    for view in views:
        if (key := keys.get(scene.names[view])) is not None:
            stored.setdefault(key, set()).add(scene.lenses[view])
    single = {key: next(iter(lenses)) for key, lenses in stored.items() if len(lenses) == 1}
    new = {name: keys[name] for name in pictures.names[len(views) :] if keys.get(name) in single}
    stated = {name: single[key] for name, key in new.items() if key[2] is not None}
    return stated, {name: single[key] for name, key in new.items() if key[2] is None}


def is_like(part: Reconstruction, name: str, lens: Lens) -> bool:
    """Whether a new view was found to have about the focal length of a lens."""
    view = part.names.index(name)
    found = part.original_intrinsics[view, 0, 0]
    return part.registration[view] != "uncertain" and abs(found / pinhole_part(lens)[0, 0] - 1) < SAME_FOCAL


def certain_of(part: Reconstruction) -> int:
    """How many views are certain."""
    return int(part.is_certain.sum())


def doubted(part: Reconstruction, matches: np.ndarray) -> bool:
    """Whether a new picture that matches stored views is uncertain; matches [N, S]."""
    labels = part.registration[len(part.sources) - len(matches) :]
    return any(label == "uncertain" and row.any() for label, row in zip(labels, matches, strict=True))


def _confirmed(part: Reconstruction, shared: int) -> Reconstruction:
    """The part with new views marked as uncertain that refinement did not register."""
    is_kept = part.info["refinement"]["status"] == "kept"
    labels: list[Registration] = list(part.registration)
    for view in range(shared, len(labels)):
        if is_kept or labels[view] == "predicted":
            labels[view] = "uncertain"
    return replace(part, registration=tuple(labels))


def recalled(scene: Reconstruction, views: Sequence[int], part: Reconstruction) -> Reconstruction:
    """Some views of the scene, with their maps in the pixels that they have as the first views of a part."""
    sources, lenses, labels = (
        tuple(values[view] for view in views if values) for values in (scene.sources, scene.lenses, scene.registration)
    )
    at, count = np.asarray(views, int), len(views)
    poses, intrinsics = scene.cam_from_world[at], scene.intrinsics[at]
    chosen = replace(of_views(scene, at), sources=sources, lenses=lenses, registration=labels, sparse=None)
    chosen = replace(chosen, cam_from_world=poses, intrinsics=intrinsics)
    return carried(chosen, part.sources[:count], part.mask[:count])


def joined(stored: Reconstruction, part: Reconstruction) -> Reconstruction:
    """A part in the network's own world, moved into that of its `recalled` views by all points and poses of these.

    If these do not agree, or a new view overlaps with no other, new views are uncertain. `info["join"]` says how well
    they agree.
    """
    pairs, views = [], range(len(stored.sources))
    for view in views:
        (own, own_conf), (new, new_conf) = (region(each, view) for each in (stored, part))
        poses = stored.cam_from_world[view], part.cam_from_world[view]
        slopes = (_slopes(stored, view) + _slopes(part, view)) / 2
        pairs.append(Shared(poses, (own, new), (own_conf, new_conf), slopes))
    found = join(pairs) if pairs else None
    if found is None:  # no depth in common: the camera of one view, at the network's scale
        matrix = np.linalg.inv(stored.cam_from_world[0]) @ part.cam_from_world[0]
        found = Join.without_evidence(matrix, len(views), "no shared depth")
    warnings = part.info.get("warnings", ())
    alone = {name for w in warnings if w["code"] == "no-overlap" for name in w["views"] or part.names}
    labels: list[Registration] = ["predicted"] * len(part.sources)
    for view in range(len(views), len(labels)):
        if not found.is_good or part.names[view] in alone:
            labels[view] = "uncertain"
    return replace(
        part,
        cam_from_world=sim3.move_poses(found.matrix, part.cam_from_world),
        depth=part.depth * np.float32(sim3.parts(found.matrix)[0]),
        registration=tuple(labels),
        scale=stored.scale,
        info={**part.info, "join": found.as_dict()},
    )


def with_stored_depth(stored: Reconstruction, part: Reconstruction) -> Reconstruction:
    """The part with cameras, depth and confidence of its `recalled` views as the scene has them."""
    names = ("depth", "conf", "cam_from_world")
    own, new = (tuple(getattr(each, name) for name in names) for each in (stored, part))
    maps = [np.concatenate([a, b[len(a) :]]) for a, b in zip(own, new, strict=True)]
    return replace(part, **dict(zip(names, maps, strict=True)))


def inside_of(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the picture in its padding; mask [H, W] is False there."""
    rows, cols = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1)


def region(scene: Reconstruction, view: int) -> tuple[np.ndarray, np.ndarray]:
    """Depth and confidence of a view, without padding."""
    inside = inside_of(scene.mask[view])
    return scene.depth[view][inside], scene.conf[view][inside]


def _slopes(scene: Reconstruction, view: int) -> np.ndarray:
    """(x / z, y / z) [H, W, 2] of the rays through the pixels of `region`."""
    return Optics.of(scene).slopes(view, *scene.mask.shape[1:])[inside_of(scene.mask[view])]
