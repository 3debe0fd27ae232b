"""Keywords of `reconstruct` from before its options classes; supported for one more release, with a warning."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, get_args

from lean3r.inputs.frames import FrameChoice
from lean3r.inputs.given import GivenCameras
from lean3r.options import PointOptions
from lean3r.pipeline.options import CameraOptions, Intrinsics, KnownPoses, Part
from lean3r.refine.options import LensName, Refine, RefineOptions, ShareLens
from lean3r.types import Views

if TYPE_CHECKING:
    from lean3r.inputs.pictures import PictureInput, Pictures


class OldKeywords(TypedDict, total=False):
    """The old keywords that `reconstruct` still accepts."""

    inputs: PictureInput | Views
    max_views: int | None
    fps: float | None
    every: int | None
    known: Part
    intrinsics: Intrinsics | None
    known_poses: KnownPoses
    refine_seconds: float | None
    lens: LensName
    share_lens: ShareLens
    conf_percentile: float
    max_points: int
    keep_sky: bool


NOW_IN = {
    "inputs": "pictures",
    **dict.fromkeys(("max_views", "fps", "every", "frames"), "frames=FrameChoice"),
    **dict.fromkeys(("known", "intrinsics", "known_poses"), "cameras=CameraOptions"),
    **dict.fromkeys(("refine_seconds", "lens", "share_lens"), "refine=RefineOptions"),
    **dict.fromkeys(("conf_percentile", "max_points", "keep_sky"), "points=PointOptions"),
}


def translate(
    old: OldKeywords,
    pictures: PictureInput | Pictures | Views | None,
    frames: FrameChoice | int | None,
    cameras: str | Path | GivenCameras | CameraOptions | None,
    refine: Refine | RefineOptions,
    points: PointOptions | None,
) -> tuple[
    PictureInput | Pictures | Views | None, FrameChoice | None, CameraOptions, RefineOptions, PointOptions | None
]:
    """Merge old keywords into the new arguments, and warn; TypeError for a keyword that never existed."""
    given: dict[str, Any] = dict(old)
    if not isinstance(frames, FrameChoice | None):
        given["frames"], frames = frames, None
    for name in given:
        if name not in NOW_IN:
            raise TypeError(f"reconstruct() got an unexpected keyword argument '{name}'")
    if "inputs" in given and pictures is not None:
        raise TypeError("reconstruct() got pictures twice: 'inputs' is their old name")
    chosen: dict[str, dict[str, Any]] = {}
    for name, value in given.items():
        chosen.setdefault(NOW_IN[name], {})[name.removeprefix("refine_")] = value
    advice = "; ".join(
        f"{group}({', '.join(f'{name}={value!r}' for name, value in named.items())})" if "=" in group else group
        for group, named in chosen.items()
    )
    warnings.warn(f"old keywords of reconstruct(): use {advice} (docs/python.md)", FutureWarning, stacklevel=3)
    pictures = given.get("inputs", pictures)
    named = chosen.get("frames=FrameChoice")
    if named and not isinstance(pictures, Views):  # for ready views, such options were always ignored
        frames = replace(frames or FrameChoice(), **named)
    if not isinstance(cameras, CameraOptions):
        cameras = CameraOptions(cameras=cameras)
    named = chosen.get("cameras=CameraOptions", {})
    if cameras.cameras is None:  # without cameras, valid choices were always ignored
        valid = (*get_args(Part), *get_args(KnownPoses))
        named = {name: value for name, value in named.items() if name == "intrinsics" or value not in valid}
    cameras = replace(cameras, **named)
    refine = replace(RefineOptions.of(refine), **chosen.get("refine=RefineOptions", {}))
    if named := chosen.get("points=PointOptions"):
        points = replace(points or PointOptions(), **named)
    return pictures, frames, cameras, refine, points
