"""Options of the wrong type or value are refused where they are made, with one clear sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import lean3r
from lean3r.errors import UsageError
from lean3r.export.options import ExportOptions
from lean3r.inputs.frames import FrameChoice
from lean3r.inputs.pictures import Pictures
from lean3r.models.nano import Nano, NanoConfig
from lean3r.options import PointOptions
from lean3r.pipeline.options import CameraOptions, MemoryOptions, RunOptions
from lean3r.refine.options import RefineOptions, ScaleOptions
from lean3r.stereo.options import StereoOptions


@pytest.mark.parametrize(("group", "options", "message"), [
    (FrameChoice, {"fps": "2"}, "fps is '2'; expected a number or None."),
    (FrameChoice, {"every": 1.5}, "every is 1.5; expected a whole number or None."),
    (FrameChoice, {"max_views": True}, "max_views is True; expected a whole number or None."),
    (PointOptions, {"max_points": float("nan")}, "max_points is nan; expected a whole number."),
    (PointOptions, {"conf_percentile": None}, "conf_percentile is None; expected a number."),
    (PointOptions, {"keep_sky": "no"}, "keep_sky is 'no'; expected True or False."),
    (RunOptions, {"resolution": "518"}, "resolution is '518'; expected a whole number or None."),
    (RunOptions, {"reference_view": 1.0}, "reference_view is 1.0; expected a whole number or a text."),
    (RunOptions, {"seed": "0"}, "seed is '0'; expected a whole number."),
    (MemoryOptions, {"memory_allow": ["views"]}, "memory_allow is ['views']; expected one of exact, dtype, plan, "),
    (CameraOptions, {"intrinsics": 500}, "intrinsics is 500; expected a text, a path, a sequence of numbers or None."),
    (CameraOptions, {"known_poses": None}, "known_poses is None; expected one of fixed, start."),
    (RefineOptions, {"seconds": "60"}, "refine_seconds is '60'; expected a number or None."),
    (RefineOptions, {"side": None}, "side is None; expected a whole number."),
    (RefineOptions, {"when": "maybe"}, "refine is 'maybe'; expected one of auto, on, off."),
    (StereoOptions, {"depth_size": "full"}, "depth_size is 'full'; expected a whole number, one of original or None."),
    (StereoOptions, {"depth_size": 0}, "depth_size is 0; expected at least 1 pixel, or 'original'."),
    (StereoOptions, {"depth_size": -3}, "depth_size is -3; expected at least 1 pixel, or 'original'."),
    (StereoOptions, {"depth_size": 480.0}, "depth_size is 480.0; expected a whole number, one of original or None."),
    (ScaleOptions, {"scale": 1.5}, "scale is 1.5; expected a text or None."),
    (ExportOptions, {"image_factors": 2}, "image_factors is 2; expected a sequence of whole numbers."),
    (ExportOptions, {"image_factors": (2, "4")}, "image_factors is (2, '4'); expected a sequence of whole numbers."),
])  # fmt: skip
def test_options_of_the_wrong_type_are_refused(group: type, options: dict, message: str) -> None:
    with pytest.raises(UsageError) as error:
        group(**options)
    assert str(error.value).startswith(message)


def test_numbers_of_numpy_and_lists_are_accepted() -> None:
    FrameChoice(fps=np.float32(2), max_views=np.int64(3))  # type: ignore[arg-type]
    PointOptions(conf_percentile=0, keep_sky=np.bool_(True))  # type: ignore[arg-type]
    ExportOptions(image_factors=[2, 4])  # type: ignore[arg-type]
    CameraOptions(intrinsics=np.array([500.0, 500, 320, 240]))  # type: ignore[arg-type]


def test_pictures_expect_a_choice_of_frames(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"frames is 5; expected a FrameChoice, such as FrameChoice\(frames=5\)"):
        Pictures(tmp_path, 5)  # type: ignore[arg-type]


def test_reconstruct_expects_a_choice_of_points(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"points is 5; expected PointOptions, such as"):
        lean3r.reconstruct(Nano(NanoConfig()), tmp_path, points=5)  # type: ignore[arg-type]
