"""Options of a stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lean3r.errors import UsageError
from lean3r.options import check_types, option
from lean3r.pipeline.options import CameraOptions, Intrinsics
from lean3r.refine.options import RefineOptions
from lean3r.stereo.options import StereoOptions

if TYPE_CHECKING:
    from lean3r.models.base import Backbone
    from lean3r.types import Lens

Drop = Literal["auto", "on", "off"]
Loops = Literal["on", "off"]
CAMERA, DEVICE = "camera:", "/dev/video"  # how the name of a camera begins


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """How a stream is divided: `window` keyframes are reconstructed at once (None: 48, or what `--memory` allows), of
    which `overlap` are shared with the window before (None: a quarter); a keyframe is taken whenever the picture has
    moved by `keyframe_step` of its longer side. `loops` says whether places that are seen again are found, and earlier
    cameras revised by them. `drop` says whether frames are dropped when the source is faster: auto
    for cameras only."""

    window: int | None = option(None, "Reconstruct N keyframes at once (default: 48, or what --memory allows).", "N")
    overlap: int | None = option(None, "Share N keyframes with the window before (default: a quarter of it).", "N")
    keyframe_step: float = option(
        0.12, "Take a keyframe whenever the picture has moved by SHARE of its longer side.", "SHARE"
    )
    loops: Loops = option("on", "Find places that are seen again, and revise earlier cameras by them.")
    drop: Drop = option("auto", "Drop frames when the source is faster than the model; auto: for cameras only.")

    def __post_init__(self) -> None:
        check_types(self)
        if self.window is not None and self.window < 2:
            raise UsageError(f"--window is {self.window}; expected at least 2.")
        if self.overlap is not None and not 1 <= self.overlap < (self.window or 48):
            raise UsageError(f"--overlap is {self.overlap}; expected 1 or more, and less than the window.")
        if not 0.005 <= self.keyframe_step <= 0.5:
            raise UsageError(f"--keyframe-step is {self.keyframe_step}; expected 0.005 to 0.5.")


def check_engine(
    model: Backbone,
    options: StreamOptions,
    intrinsics: Intrinsics | None,
    refine: RefineOptions,
    dense: StereoOptions,
) -> None:
    """UsageError if a network with a cache, whose cameras and depth are final at once, is to be given others."""
    if model.STREAMS != "cache":
        return
    usual = RefineOptions(), RefineOptions(when="off")
    given = {
        "--intrinsics": intrinsics is not None,
        f"--refine {refine.when} or a setting of it": refine not in usual,
        f"--dense {dense.dense}": dense.dense not in ("auto", "network"),
        f"--overlap {options.overlap}": options.overlap is not None,
    }
    for what in (what for what, is_given in given.items() if is_given):
        raise UsageError(
            f"{what} has no effect on a stream of {model.name}: its network gives the cameras and the depth of every "
            "frame at once. Leave it out, or use another --model."
        )


def made_by(model: Backbone) -> dict[str, Any]:
    """What another stream's network must share, if this one is to go on with its state."""
    plan = None if model.plan is None else model.plan.as_dict()
    return {"engine": model.STREAMS, "model": model.name, "weights": model.origin.hash, "plan": plan}


def check_state(state: Mapping[str, Any], model: Backbone, options: StreamOptions, memory: str | int | None) -> None:
    """UsageError if a stream with these options cannot begin with a `state`."""
    made, here = state.get("made_by"), made_by(model)
    if made is None:
        raise UsageError("the state is that of no stream; expected what `state()` of a stream gave.")
    if made != here:
        found = "; ".join(
            f"{key}: {made.get(key)} there, {here[key]} now" for key in here if made.get(key) != here[key]
        )
        raise UsageError(f"the state is that of a stream with another model ({found}). Use the same.")
    window = state["fitted"]["window"]
    if memory is not None or options.window not in (None, window):
        raise UsageError(
            f"the state is that of a stream with {window} keyframes in a window, which stay; leave out memory and "
            "window."
        )


def known_camera(intrinsics: Intrinsics | None) -> dict[str, Any]:
    """Known intrinsics as settings of a stream: four or six numbers (fx, fy, cx, cy, and the width and height of the
    pictures in whose pixels they are, if these are stated), and the lens, if its distortion is stated; UsageError or
    InputError if they are none."""
    if intrinsics is None:
        return {}
    from lean3r.inputs.cameras import read_intrinsics

    CameraOptions(intrinsics=intrinsics)  # checks its type
    camera = read_intrinsics(intrinsics)
    if camera.intrinsics is None:
        raise UsageError("the intrinsics state no focal length; give fx, fy, cx, cy.")
    size = () if camera.width is None or camera.height is None else (float(camera.width), float(camera.height))
    return {"intrinsics": (*map(float, camera.intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]]), *size), "lens": camera.lens}


def given_camera(numbers: tuple[float, ...], lens: Lens | None) -> CameraOptions:
    """The cameras of frames by `known_camera`."""
    import numpy as np

    from lean3r.inputs.given import GivenCamera, GivenCameras

    (fx, fy, cx, cy), size = numbers[:4], [round(side) for side in numbers[4:]]
    width, height = size or (None, None)
    matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    return CameraOptions(cameras=GivenCameras(shared=GivenCamera("all frames", width, height, matrix, lens=lens)))
