"""Known cameras: converted to network pixels before the network runs; afterwards its result moves into their world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lean3r.errors import InputError
from lean3r.geometry.align import align_cameras
from lean3r.geometry.camera import transform_intrinsics
from lean3r.geometry.lens import Optics, bends_lines
from lean3r.geometry.photo_scale import Shown, photo_scale
from lean3r.geometry.pose import camera_centers, make_pose
from lean3r.inputs.cameras import read_given, read_intrinsics
from lean3r.inputs.given import GivenCamera, GivenCameras
from lean3r.pipeline.options import CameraOptions, KnownPoses
from lean3r.refine import KnownCameras
from lean3r.types import Known, Lens, Prediction, Reconstruction, Scale, Source, Views, with_warning

FIT = 0.05  # of the spread of the cameras: predicted positions with a smaller error determine the scale
SPAN, SPAN_OF_NOTHING = 1.2, 2.5  # largest error of log scale from inaccurate positions, or without any
PREDICTED, GIVEN = 1e-6, 1e-9  # relative precision of positions: single, and double with few millimetres on a map
FAR_ORIGIN = (
    "the scene lies {:,.0f} units from the origin of the known cameras, where points in float32 are {:g} apart, more "
    "than their pixels: subtract one offset from all known positions, so that the origin is near the scene"
)
PARALLAX = 0.15  # assumed distance of neighbouring cameras over depth if nothing else determines the scale


@dataclass(frozen=True)
class Given:
    """Known parameters of the S cameras of one scene, in double precision.

    cam_from_world [S, 4, 4] in the cameras' own world, valid where has_pose [S] bool; intrinsics [S, 3, 3] in network
    pixels, valid where has_intrinsics [S] bool; lenses: the full camera of each view in pixels of its original, None
    if its distortion is unknown. `is_metric` says that the world's unit is the metre.
    """

    cam_from_world: Tensor
    has_pose: Tensor
    intrinsics: Tensor
    has_intrinsics: Tensor
    lenses: tuple[Lens | None, ...]
    is_metric: bool = False

    def for_refinement(self, sources: Sequence[Source], known_poses: KnownPoses) -> KnownCameras:
        """The same cameras in the form for refinement, with intrinsics in pixels of the originals."""
        matrices = np.stack([s.original_intrinsics(k.numpy()) for s, k in zip(sources, self.intrinsics, strict=True)])
        matrices = np.where(self.has_intrinsics[:, None, None], matrices, np.nan)
        poses = torch.where(self.has_pose[:, None, None], self.cam_from_world, torch.nan).numpy()
        return KnownCameras(
            matrices if np.isfinite(matrices).any() else None,
            self.lenses,
            poses if np.isfinite(poses).any() else None,
            known_poses == "fixed",
        )


def with_cameras(views: Views, sources: Sequence[Source], options: CameraOptions) -> tuple[Views, Given]:
    """Add known cameras to the views of one scene; return the views, and the cameras in their own world.

    Cameras are matched to `sources` by file name or time; their intrinsics are converted to network pixels. InputError
    if a file is unreadable, if no camera matches, or if the parts that the options select are missing.
    """
    cameras, use = options.cameras, options.known
    given = GivenCameras() if cameras is None else cameras if isinstance(cameras, GivenCameras) else read_given(cameras)
    names = [source.name for source in sources]
    given = given.for_sizes(names, [(source.width, source.height) for source in sources])
    matches = given.match(names, [source.timestamp_s for source in sources])
    posed = [None if camera is None or use == "intrinsics" else camera.cam_from_world for camera in matches]
    optical = [None if use == "poses" else camera for camera in matches]
    if use != "both" and cameras is not None:
        parts = posed if use == "poses" else [None if camera is None else camera.intrinsics for camera in optical]
        if all(part is None for part in parts):
            raise InputError(f"{given.origin} holds no {use} of these pictures.")
    shared = given.shared if use != "poses" else None
    if options.intrinsics is not None:
        shared = read_intrinsics(options.intrinsics)
        optical = [shared] * len(sources)
    if shared is not None:
        _check_shared(shared, sources)
    pairs = zip(optical, sources, strict=True)
    optical = [None if c is None else c.without_bars(s.bars, s.width, s.height) for c, s in pairs]
    matrices = [
        None if c is None else c.intrinsics_of(s.width, s.height) for c, s in zip(optical, sources, strict=True)
    ]
    lenses = tuple(None if c is None else c.lens_of(s.width, s.height) for c, s in zip(optical, sources, strict=True))
    in_network, has_intrinsics = _stack([_network_intrinsics(m, s) for m, s in zip(matrices, sources, strict=True)], 3)
    poses, has_pose = _stack([None if pose is None else torch.from_numpy(pose) for pose in posed], 4)
    known = Known()
    if bool(has_intrinsics.any()):
        known = replace(known, intrinsics=in_network[None].float(), has_intrinsics=_unless_all(has_intrinsics))
    if bool(has_pose.any()):
        # If the world's origin is far away, as in map coordinates, single precision would lose the motion.
        shift = camera_centers(poses[has_pose][:1])[0]
        moved = poses[..., :3, :3] @ shift + poses[..., :3, 3]
        near = make_pose(poses[..., :3, :3], torch.where(has_pose[:, None], moved, poses[..., :3, 3]))
        known = replace(known, cam_from_world=near[None].float(), has_pose=_unless_all(has_pose))
    return replace(views, known=known), Given(poses, has_pose, in_network, has_intrinsics, lenses, given.is_metric)


def given_cameras(known: Known | None) -> Given | None:
    """The known cameras of ready views of one scene; None if there are none."""
    if known is None or (known.cam_from_world is None and known.intrinsics is None):
        return None
    views = next(part.shape[1] for part in (known.cam_from_world, known.intrinsics) if part is not None)
    poses, has_pose = _unpack(known.cam_from_world, known.has_pose, views, 4)
    matrices, has_intrinsics = _unpack(known.intrinsics, known.has_intrinsics, views, 3)
    return Given(poses, has_pose, matrices, has_intrinsics, (None,) * views)


class Placed(NamedTuple):
    """A prediction with the given cameras, in their world, and its scale.

    If `span` is not 0, `guess` is a factor for its depth that may be wrong by e^`span`, and the pictures have to
    determine that factor (`photo_scale`).
    """

    prediction: Prediction
    scale: Scale
    guess: float = 1.0
    span: float = 0.0


def place_in_world(prediction: Prediction, given: Given | None, read: frozenset[str] = frozenset()) -> Placed:
    """Move a prediction of one scene (on the CPU) into the world of the given cameras.

    If at least two poses at different positions are given, a similarity fits the predicted cameras to them and moves
    and scales the whole prediction: its scale is "aligned", or "metric" if the given world is metric. Other poses only
    set the coordinate frame. The given values then replace the predicted ones. The scale is no more accurate than the
    predicted cameras: if they fit badly, and the model did not read the poses (`read` names the parts that it read), it
    is a guess.
    """
    scale: Scale = "metric" if prediction.is_metric else "relative"
    if given is None:
        return Placed(prediction, scale)
    intrinsics = torch.where(given.has_intrinsics[:, None, None], given.intrinsics, prediction.intrinsics[0].double())
    prediction = replace(prediction, intrinsics=intrinsics[None])
    has = given.has_pose
    if not bool(has.any()):
        return Placed(prediction, scale)
    own, theirs = prediction.cam_from_world[0].double(), given.cam_from_world
    is_apart, predicts_motion = spread(theirs[has], GIVEN) > 0, spread(own[has], PREDICTED) > 0
    _, fit = align_cameras(own[has], theirs[has], with_scale=is_apart and predicts_motion)
    moved = fit.apply_to_poses(own)
    poses = torch.where(has[:, None, None], theirs, moved)
    depth = None if prediction.depth is None else prediction.depth * fit.scale.to(prediction.depth.dtype)
    guess, span = 1.0, 0.0
    if is_apart and depth is not None and "cam_from_world" not in read:
        steps = torch.cdist(centers := camera_centers(theirs[has]), centers).fill_diagonal_(torch.inf).amin(1)
        off = (camera_centers(moved[has]) - centers).norm(dim=-1).square().mean().sqrt()
        if predicts_motion and float(off) > FIT * float(
            (centers - centers.mean(0)).norm(dim=-1).square().mean().sqrt()
        ):
            span = SPAN
        elif not predicts_motion and not (prediction.is_metric and given.is_metric):
            guess = float(steps.median() / PARALLAX / depth[0][has][depth[0][has] > 0].median())
            span = SPAN_OF_NOTHING
    if is_apart:
        scale = "metric" if given.is_metric else "aligned"
    placed = replace(prediction, cam_from_world=poses[None], depth=depth, is_metric=scale == "metric")
    return Placed(placed, scale, guess, span)


def depth_factor(
    placed: Placed, given: Given, shown: Shown, sources: Sequence[Source], lenses: tuple[Lens, ...]
) -> float:
    """The factor that scales a placed prediction's depth, shown.depth [S, H, W], to the given poses."""
    at = given.has_pose.nonzero()[:, 0].tolist()
    intrinsics = placed.prediction.intrinsics[0].double().numpy()[at]
    optics = Optics([sources[view] for view in at], intrinsics, [lenses[view] for view in at] if lenses else ())
    posed = Shown(*(part[at] for part in shown))
    return photo_scale(posed, given.cam_from_world[at].numpy(), optics, placed.guess, placed.span) or placed.guess


def lenses_of(given: Given | None, sources: Sequence[Source], intrinsics: np.ndarray) -> tuple[Lens, ...]:
    """The lens of each view in pixels of its original: the given one, or the pinhole of `intrinsics` [S, 3, 3] (network
    pixels); empty if no lens is given."""
    if given is None or not any(given.lenses):
        return ()
    pinholes = [s.original_intrinsics(k)[[0, 1, 0, 1], [0, 1, 2, 2]] for s, k in zip(sources, intrinsics, strict=True)]
    return tuple(
        lens or Lens("PINHOLE", tuple(map(float, pinhole)))
        for lens, pinhole in zip(given.lenses, pinholes, strict=True)
    )


def with_resolution(scene: Reconstruction) -> Reconstruction:
    """The scene with a warning if its points, in float32, are coarser than its pixels: far from the world's origin."""
    xyz, view = scene.points.xyz, scene.points.view
    if not len(xyz):
        return scene
    away = np.linalg.norm(xyz - camera_centers(torch.from_numpy(scene.cam_from_world)).numpy()[view], axis=1)
    usual, pixel = np.median(np.abs(xyz).max(axis=1)), np.median(away / scene.intrinsics[view, 0, 0])
    step = np.spacing(usual)
    return scene if step <= pixel else with_warning(scene, "far-origin", FAR_ORIGIN.format(usual, step))


def known_record(known: Known, given: Given | None, read: frozenset[str]) -> dict[str, Any]:
    """For the manifest: the number of views for which each part is known, and the parts that the model read."""
    counts = (
        {}
        if given is None
        else {
            "intrinsics": int(given.has_intrinsics.sum()),
            "distortion": sum(lens is not None and bends_lines(lens) for lens in given.lenses),
            "cam_from_world": int(given.has_pose.sum()),
        }
    )
    if known.depth is not None:
        counts["depth"] = known.depth.shape[1] if known.has_depth is None else int(known.has_depth.sum())
    return {"views": {part: count for part, count in counts.items() if count}, "read": sorted(read)}


def with_uses(scene: Reconstruction, known_poses: KnownPoses) -> Reconstruction:
    """The scene with a record of how each known part was used, in words, if any is known (`known_record`)."""
    if "known" not in scene.info:
        return scene
    record = scene.info["known"]
    used = _uses(record, scene.info.get("refinement"), known_poses)
    return replace(scene, info={**scene.info, "known": {**record, "used": used}})


def _uses(
    record: Mapping[str, Any], refinement: Mapping[str, Any] | None, known_poses: KnownPoses
) -> dict[str, list[str]]:
    used: dict[str, list[str]] = {
        part: ["read by the network"] if part in record["read"] else []
        for part in record["views"]
        if part != "distortion"
    }
    is_refined = refinement is not None and refinement["status"] != "kept"
    if "intrinsics" in used:
        used["intrinsics"] += ["held fixed by refinement"] if is_refined else []
        used["intrinsics"].append("those of the result")
    if "cam_from_world" in used:
        if is_refined and known_poses == "start":
            is_start = refinement is not None and refinement["status"] == "refined"
            used["cam_from_world"] += ["where refinement started"] if is_start else []
            used["cam_from_world"].append("the world of the result")
        else:
            used["cam_from_world"] += ["held fixed by refinement"] if is_refined else []
            used["cam_from_world"].append("those of the result")
    return used


def _check_shared(camera: GivenCamera, sources: Sequence[Source]) -> None:
    """Raise InputError if intrinsics without a picture size cannot apply to all pictures."""
    if camera.width is not None or camera.intrinsics is None:
        return
    sizes = sorted({(source.width, source.height) for source in sources})
    listed = ", ".join(f"{width}x{height}" for width, height in sizes[:4])
    if len(sizes) > 1:
        raise InputError(
            f"one set of intrinsics was given, and the pictures have {len(sizes)} sizes ({listed}). State the size "
            "that they are for in a JSON file (fx, fy, cx, cy, width, height), or give a camera for each with --cameras"
        )
    cx, cy = camera.intrinsics[:2, 2]
    if not (0 < cx < sizes[0][0] and 0 < cy < sizes[0][1]):
        raise InputError(
            f"the principal point ({cx:g}, {cy:g}) of the intrinsics lies outside the pictures, which have {listed} "
            "pixels. Give intrinsics for that size, or state theirs in a JSON file (fx, fy, cx, cy, width, height)"
        )


def _network_intrinsics(matrix: np.ndarray | None, source: Source) -> Tensor | None:
    """Convert intrinsics of an original picture to network pixels."""
    if matrix is None:
        return None
    sx, sy, ox, oy = source.original_from_network
    return transform_intrinsics(torch.from_numpy(matrix), (1 / sx, 1 / sy), (-ox / sx, -oy / sy))


def _unpack(part: Tensor | None, has: Tensor | None, views: int, size: int) -> tuple[Tensor, Tensor]:
    """Matrices [S, size, size] of one scene in double precision, and which are valid, [S] bool."""
    if part is None:
        return torch.eye(size, dtype=torch.float64).expand(views, size, size), torch.zeros(views, dtype=torch.bool)
    return part[0].double().cpu(), torch.ones(views, dtype=torch.bool) if has is None else has[0].cpu()


def _stack(parts: Sequence[Tensor | None], size: int) -> tuple[Tensor, Tensor]:
    """Matrices [S, size, size], the identity for missing ones, and which are present, [S] bool."""
    identity = torch.eye(size, dtype=torch.float64)
    return (
        torch.stack([identity if part is None else part.double() for part in parts]),
        torch.tensor([part is not None for part in parts]),
    )


def _unless_all(has: Tensor) -> Tensor | None:
    return None if bool(has.all()) else has[None]


def spread(cam_from_world: Tensor, precision: float) -> float:
    """Largest distance of a camera centre from the first one; 0 if it is not resolved with this relative precision."""
    centers = camera_centers(cam_from_world)
    far = float((centers - centers[:1]).norm(dim=-1).max())
    return far if far > precision * max(1.0, float(centers.abs().max())) else 0.0
