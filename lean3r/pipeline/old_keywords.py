"""Keywords that `reconstruct` had before its options went into classes; they stay for one release, with a warning."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

from lean3r.inputs.cameras import GivenCameras
from lean3r.inputs.frames import FrameChoice
from lean3r.options import PointOptions
from lean3r.pipeline.options import CameraOptions, Intrinsics, KnownPoses, Part
from lean3r.refine.options import LensName, Refine, RefineOptions, ShareLens


class OldKeywords(TypedDict, total=False):
    """What `reconstruct` still takes."""

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
    **dict.fromkeys(("max_views", "fps", "every", "frames"), "frames=FrameChoice"),
    **dict.fromkeys(("known", "intrinsics", "known_poses"), "cameras=CameraOptions"),
    **dict.fromkeys(("refine_seconds", "lens", "share_lens"), "refine=RefineOptions"),
    **dict.fromkeys(("conf_percentile", "max_points", "keep_sky"), "points=PointOptions"),
}


def translated(
    old: OldKeywords,
    frames: FrameChoice | int | None,
    cameras: str | Path | GivenCameras | CameraOptions | None,
    refine: Refine | RefineOptions,
    points: PointOptions | None,
) -> tuple[FrameChoice | None, CameraOptions, RefineOptions, PointOptions | None]:
    """The options that old keywords mean beside those that were given; TypeError for a keyword that never was."""
    given: dict[str, Any] = dict(old)
    if isinstance(frames, int):
        given["frames"], frames = frames, None
    for name in given:
        if name not in NOW_IN:
            raise TypeError(f"reconstruct() got an unexpected keyword argument '{name}'")
    chosen: dict[str, dict[str, Any]] = {}
    for name, value in given.items():
        chosen.setdefault(NOW_IN[name], {})[name.removeprefix("refine_")] = value
    advice = "; ".join(
        f"{group}({', '.join(f'{name}={value!r}' for name, value in named.items())})" for group, named in chosen.items()
    )
    warnings.warn(f"old keywords of reconstruct(): use {advice} (docs/python.md)", FutureWarning, stacklevel=3)
    if named := chosen.get("frames=FrameChoice"):
        frames = replace(frames or FrameChoice(), **named)
    if not isinstance(cameras, CameraOptions):
        cameras = CameraOptions(cameras=cameras)
    if cameras.cameras is None:  # of nothing, every part was taken without complaint
        chosen["cameras=CameraOptions"] = {"intrinsics": given.get("intrinsics", cameras.intrinsics)}
    cameras = replace(cameras, **chosen.get("cameras=CameraOptions", {}))
    refine = replace(RefineOptions.of(refine), **chosen.get("refine=RefineOptions", {}))
    if named := chosen.get("points=PointOptions"):
        points = replace(points or PointOptions(), **named)
    return frames, cameras, refine, points
