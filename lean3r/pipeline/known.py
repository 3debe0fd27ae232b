"""Cameras that the user has: into network pixels before the network runs, and its result into their world after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lean3r.cameras import GivenCameras, read_given
from lean3r.errors import InputError
from lean3r.geometry.align import align_cameras
from lean3r.geometry.camera import transform_intrinsics
from lean3r.geometry.pose import camera_centers, make_pose
from lean3r.types import Known, Prediction, Scale, Source, Views

Part = Literal["both", "intrinsics", "poses"]


@dataclass(frozen=True)
class Given:
    """Poses of one scene's world: cam_from_world [S, 4, 4] float64, and has [S] bool, for which views they count."""

    cam_from_world: Tensor
    has: Tensor
    is_metric: bool = False


def with_cameras(
    views: Views, sources: Sequence[Source], cameras: str | Path | GivenCameras, use: Part = "both"
) -> tuple[Views, Given | None]:
    """Views of one scene that know their cameras, and the poses in the cameras' own world (None without poses).

    Cameras are matched to `sources` by file name; their intrinsics are carried into network pixels. InputError
    when the file is unreadable, when nothing matches, or when what `use` asks for is not there.
    """
    given = cameras if isinstance(cameras, GivenCameras) else read_given(cameras)
    found = given.match([source.name for source in sources])
    matrices, poses = [], []
    for source, camera in zip(sources, found, strict=True):
        matrix = None if camera is None or use == "poses" else camera.intrinsics_of(source.width, source.height)
        sx, sy, ox, oy = source.original_from_network
        if matrix is not None:
            matrix = transform_intrinsics(torch.from_numpy(matrix), (1 / sx, 1 / sy), (-ox / sx, -oy / sy))
        matrices.append(matrix)
        pose = None if camera is None or use == "intrinsics" else camera.cam_from_world
        poses.append(None if pose is None else torch.from_numpy(pose))
    if use != "both" and not any(part is not None for part in (*matrices, *poses)):
        raise InputError(f"{given.origin} holds no {use} of these pictures.")
    known = Known()
    if any(matrix is not None for matrix in matrices):
        filled, has = _filled(matrices, 3)
        known = replace(known, intrinsics=filled[None].float(), has_intrinsics=_unless_all(has))
    if not any(pose is not None for pose in poses):
        return replace(views, known=known), None
    filled, has = _filled(poses, 4)
    # Where the world's origin is far off, as in maps, single precision would swallow the motion.
    shift = camera_centers(filled[has][:1])[0]
    moved = filled[..., :3, :3] @ shift + filled[..., :3, 3]
    near = make_pose(filled[..., :3, :3], torch.where(has[:, None], moved, filled[..., :3, 3]))
    known = replace(known, cam_from_world=near[None].float(), has_pose=_unless_all(has))
    return replace(views, known=known), Given(filled, has, given.is_metric)


def given_in(known: Known | None) -> Given | None:
    """The poses of ready views of one scene, None where there are none."""
    if known is None or known.cam_from_world is None:
        return None
    pose = known.cam_from_world[0].double().cpu()
    has = torch.ones(len(pose), dtype=torch.bool) if known.has_pose is None else known.has_pose[0].cpu()
    return Given(pose, has) if bool(has.any()) else None


def in_given_world(
    found: Prediction, known: Known | None, given: Given | None, read: frozenset[str]
) -> tuple[Prediction, Scale]:
    """A prediction of one scene (on the CPU) brought into the world of the given poses, and the scale that it has.

    Where at least two poses in different places are given, the predicted cameras are fitted to them by a
    similarity, which moves and scales everything: "aligned", or "metric" where the given world is so. Parts that
    the model has `read` then come back as they were given, as in Depth Anything 3's own program; cameras that it
    did not read stay its own, moved. Poses that leave the scale open only set the frame, if they were read.
    """
    scale: Scale = "metric" if found.is_metric else "relative"
    intrinsics = found.intrinsics
    if known is not None and known.intrinsics is not None and "intrinsics" in read:
        has = torch.ones(known.intrinsics.shape[:2], dtype=torch.bool)
        has = has if known.has_intrinsics is None else known.has_intrinsics.cpu()
        intrinsics = torch.where(has[..., None, None], known.intrinsics.cpu().to(intrinsics.dtype), intrinsics)
    found = replace(found, intrinsics=intrinsics)
    if given is None:
        return found, scale
    is_read = "cam_from_world" in read
    own, theirs = found.cam_from_world[0].double(), given.cam_from_world
    has_scale = _spread(own[given.has]) > 0 and _spread(theirs[given.has]) > 0
    if not has_scale and not is_read:
        return found, scale
    _, fit = align_cameras(own[given.has], theirs[given.has], with_scale=has_scale)
    poses = fit.apply_to_poses(own)
    if is_read:
        poses = torch.where(given.has[:, None, None], theirs, poses)
    if has_scale:
        scale = "metric" if given.is_metric else "aligned"
    depth = None if found.depth is None else found.depth * fit.scale.to(found.depth.dtype)
    return replace(found, cam_from_world=poses[None], depth=depth, is_metric=scale == "metric"), scale


def _filled(parts: Sequence[Tensor | None], size: int) -> tuple[Tensor, Tensor]:
    """Matrices [S, size, size], the identity where there is none, and which are there [S]."""
    identity = torch.eye(size, dtype=torch.float64)
    return (
        torch.stack([identity if part is None else part.double() for part in parts]),
        torch.tensor([part is not None for part in parts]),
    )


def _unless_all(has: Tensor) -> Tensor | None:
    return None if bool(has.all()) else has[None]


def _spread(cam_from_world: Tensor) -> float:
    """Largest distance of a camera centre from the first one; 0 below what single precision can tell apart."""
    centers = camera_centers(cam_from_world)
    far = float((centers - centers[:1]).norm(dim=-1).max())
    return far if far > 1e-6 * max(1.0, float(centers.abs().max())) else 0.0
