"""Cameras that the user has: into network pixels before the network runs, and its result into their world after."""

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
from lean3r.geometry.lens import Optics
from lean3r.geometry.photo_scale import Shown, photo_scale
from lean3r.geometry.pose import camera_centers, make_pose
from lean3r.inputs.cameras import GivenCamera, GivenCameras, read_given, read_intrinsics
from lean3r.pipeline.options import CameraOptions, KnownPoses
from lean3r.refine import KnownCameras
from lean3r.types import Known, Lens, Prediction, Scale, Source, Views

FIT = 0.05  # of the cameras' spread: predicted places that are no further off tell the scale
SPAN, SPAN_OF_NOTHING = 1.2, 2.5  # how far off the logarithm of the scale may be, by bad places or by none
PARALLAX = 0.15  # distance of neighbours over depth, where nothing else tells the scale


@dataclass(frozen=True)
class Given:
    """What is known of the S cameras of one scene, in double precision: cam_from_world [S, 4, 4] in a world of theirs,
    where has_pose [S]; intrinsics [S, 3, 3] in network pixels, where has_intrinsics [S]; and the whole camera of
    each view in pixels of its original, None where its distortion is not known."""

    cam_from_world: Tensor
    has_pose: Tensor
    intrinsics: Tensor
    has_intrinsics: Tensor
    lenses: tuple[Lens | None, ...]
    is_metric: bool = False

    def for_refinement(self, sources: Sequence[Source], known_poses: KnownPoses) -> KnownCameras:
        """The same as refinement takes it, intrinsics in pixels of the originals."""
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
    """Views of one scene that know their cameras, and the same in the cameras' own world.

    Cameras are matched to `sources` by file name or time; their intrinsics are carried into network pixels. InputError
    when something is unreadable, when nothing matches, or when what the options ask for is not there.
    """
    cameras, use = options.cameras, options.known
    given = GivenCameras() if cameras is None else cameras if isinstance(cameras, GivenCameras) else read_given(cameras)
    found = given.match([source.name for source in sources], [source.timestamp_s for source in sources])
    posed = [None if camera is None or use == "intrinsics" else camera.cam_from_world for camera in found]
    optical = [None if use == "poses" else camera for camera in found]
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
    matrices = [
        None if c is None else c.intrinsics_of(s.width, s.height) for c, s in zip(optical, sources, strict=True)
    ]
    lenses = tuple(None if c is None else c.lens_of(s.width, s.height) for c, s in zip(optical, sources, strict=True))
    in_network, has_intrinsics = _stack([_network(m, s) for m, s in zip(matrices, sources, strict=True)], 3)
    poses, has_pose = _stack([None if pose is None else torch.from_numpy(pose) for pose in posed], 4)
    known = Known()
    if bool(has_intrinsics.any()):
        known = replace(known, intrinsics=in_network[None].float(), has_intrinsics=_unless_all(has_intrinsics))
    if bool(has_pose.any()):
        # Where the world's origin is far off, as in maps, single precision would swallow the motion.
        shift = camera_centers(poses[has_pose][:1])[0]
        moved = poses[..., :3, :3] @ shift + poses[..., :3, 3]
        near = make_pose(poses[..., :3, :3], torch.where(has_pose[:, None], moved, poses[..., :3, 3]))
        known = replace(known, cam_from_world=near[None].float(), has_pose=_unless_all(has_pose))
    return replace(views, known=known), Given(poses, has_pose, in_network, has_intrinsics, lenses, given.is_metric)


def given_in(known: Known | None) -> Given | None:
    """The cameras of ready views of one scene, None where nothing is known of them."""
    if known is None or (known.cam_from_world is None and known.intrinsics is None):
        return None
    views = next(part.shape[1] for part in (known.cam_from_world, known.intrinsics) if part is not None)
    poses, has_pose = _of_views(known.cam_from_world, known.has_pose, views, 4)
    matrices, has_intrinsics = _of_views(known.intrinsics, known.has_intrinsics, views, 3)
    return Given(poses, has_pose, matrices, has_intrinsics, (None,) * views)


class Placed(NamedTuple):
    """A prediction with the given cameras, in their world, and the scale that it has; the pictures shall tell the scale
    of its depth (`photo_scale`) where `guess` is a factor that may be off by e^`span`."""

    prediction: Prediction
    scale: Scale
    guess: float = 1.0
    span: float = 0.0


def in_given_world(found: Prediction, given: Given | None, read: frozenset[str] = frozenset()) -> Placed:
    """A prediction of one scene (on the CPU) brought into the world of the given cameras.

    Where at least two poses in different places are given, the predicted cameras are fitted to them by a similarity,
    which moves and scales everything: "aligned", or "metric" where the given world is so. Poses that leave the scale
    open set the frame. What is given then stands in place of what was predicted. A scale from predicted cameras is
    as good as these: where they fit badly, and the model did not itself read the poses, it is a guess.
    """
    scale: Scale = "metric" if found.is_metric else "relative"
    if given is None:
        return Placed(found, scale)
    intrinsics = torch.where(given.has_intrinsics[:, None, None], given.intrinsics, found.intrinsics[0].double())
    found = replace(found, intrinsics=intrinsics[None])
    has = given.has_pose
    if not bool(has.any()):
        return Placed(found, scale)
    own, theirs = found.cam_from_world[0].double(), given.cam_from_world
    is_apart, finds_places = spread(theirs[has]) > 0, spread(own[has]) > 0
    _, fit = align_cameras(own[has], theirs[has], with_scale=is_apart and finds_places)
    moved = fit.apply_to_poses(own)
    poses = torch.where(has[:, None, None], theirs, moved)
    depth = None if found.depth is None else found.depth * fit.scale.to(found.depth.dtype)
    guess, span = 1.0, 0.0
    if is_apart and depth is not None and "cam_from_world" not in read:
        steps = torch.cdist(centers := camera_centers(theirs[has]), centers).fill_diagonal_(torch.inf).amin(1)
        off = (camera_centers(moved[has]) - centers).norm(dim=-1).square().mean().sqrt()
        if finds_places and float(off) > FIT * float((centers - centers.mean(0)).norm(dim=-1).square().mean().sqrt()):
            span = SPAN
        elif not finds_places and not (found.is_metric and given.is_metric):
            guess = float(steps.median() / PARALLAX / depth[0][has][depth[0][has] > 0].median())
            span = SPAN_OF_NOTHING
    if is_apart:
        scale = "metric" if given.is_metric else "aligned"
    placed = replace(found, cam_from_world=poses[None], depth=depth, is_metric=scale == "metric")
    return Placed(placed, scale, guess, span)


def depth_factor(
    placed: Placed, given: Given, shown: Shown, sources: Sequence[Source], lenses: tuple[Lens, ...]
) -> float:
    """The factor that brings a placed prediction's depth, shown.depth [S, H, W], to the scale of the given poses."""
    at = given.has_pose.nonzero()[:, 0].tolist()
    intrinsics = placed.prediction.intrinsics[0].double().numpy()[at]
    optics = Optics([sources[view] for view in at], intrinsics, [lenses[view] for view in at] if lenses else ())
    of_posed = Shown(*(part[at] for part in shown))
    return photo_scale(of_posed, given.cam_from_world[at].numpy(), optics, placed.guess, placed.span) or placed.guess


def lenses_of(given: Given | None, sources: Sequence[Source], intrinsics: np.ndarray) -> tuple[Lens, ...]:
    """The lens of each view in pixels of its original: the given one, or the pinhole of `intrinsics` [S, 3, 3] (network
    pixels); none at all where no lens is given."""
    if given is None or not any(given.lenses):
        return ()
    pinholes = [s.original_intrinsics(k)[[0, 1, 0, 1], [0, 1, 2, 2]] for s, k in zip(sources, intrinsics, strict=True)]
    return tuple(
        lens or Lens("PINHOLE", tuple(map(float, pinhole)))
        for lens, pinhole in zip(given.lenses, pinholes, strict=True)
    )


def known_record(known: Known, given: Given | None, read: frozenset[str]) -> dict[str, Any]:
    """For the manifest: of how many views each part was known, and which parts the model read."""
    counts = (
        {}
        if given is None
        else {
            "intrinsics": int(given.has_intrinsics.sum()),
            "distortion": sum(lens is not None for lens in given.lenses),
            "cam_from_world": int(given.has_pose.sum()),
        }
    )
    if known.depth is not None:
        counts["depth"] = known.depth.shape[1] if known.has_depth is None else int(known.has_depth.sum())
    return {"views": {part: count for part, count in counts.items() if count}, "read": sorted(read)}


def uses(
    told: Mapping[str, Any], refinement: Mapping[str, Any] | None, known_poses: KnownPoses
) -> dict[str, list[str]]:
    """The use of each known part, in words: from `known_record` and the report of the refinement (None: not tried)."""
    used: dict[str, list[str]] = {
        part: ["read by the network"] if part in told["read"] else [] for part in told["views"] if part != "distortion"
    }
    is_refined = refinement is not None and refinement["status"] != "kept"
    if "intrinsics" in used:
        used["intrinsics"] += ["held fixed by refinement"] if is_refined else []
        used["intrinsics"].append("those of the result")
    if "cam_from_world" in used:
        if is_refined and known_poses == "start":
            began = refinement is not None and refinement["status"] == "refined"
            used["cam_from_world"] += ["where refinement started"] if began else []
            used["cam_from_world"].append("the world of the result")
        else:
            used["cam_from_world"] += ["held fixed by refinement"] if is_refined else []
            used["cam_from_world"].append("those of the result")
    return used


def _check_shared(camera: GivenCamera, sources: Sequence[Source]) -> None:
    """InputError where intrinsics without a picture size cannot be those of all pictures."""
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


def _network(matrix: np.ndarray | None, source: Source) -> Tensor | None:
    """Intrinsics of an original picture in network pixels."""
    if matrix is None:
        return None
    sx, sy, ox, oy = source.original_from_network
    return transform_intrinsics(torch.from_numpy(matrix), (1 / sx, 1 / sy), (-ox / sx, -oy / sy))


def _of_views(part: Tensor | None, has: Tensor | None, views: int, size: int) -> tuple[Tensor, Tensor]:
    """Matrices [S, size, size] of one scene in double precision, and which count [S]."""
    if part is None:
        return torch.eye(size, dtype=torch.float64).expand(views, size, size), torch.zeros(views, dtype=torch.bool)
    return part[0].double().cpu(), torch.ones(views, dtype=torch.bool) if has is None else has[0].cpu()


def _stack(parts: Sequence[Tensor | None], size: int) -> tuple[Tensor, Tensor]:
    """Matrices [S, size, size], the identity where there is none, and which are there [S]."""
    identity = torch.eye(size, dtype=torch.float64)
    return (
        torch.stack([identity if part is None else part.double() for part in parts]),
        torch.tensor([part is not None for part in parts]),
    )


def _unless_all(has: Tensor) -> Tensor | None:
    return None if bool(has.all()) else has[None]


def spread(cam_from_world: Tensor) -> float:
    """Largest distance of a camera centre from the first one; 0 below what single precision can tell apart."""
    centers = camera_centers(cam_from_world)
    far = float((centers - centers[:1]).norm(dim=-1).max())
    return far if far > 1e-6 * max(1.0, float(centers.abs().max())) else 0.0
