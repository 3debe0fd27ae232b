"""A network gives a pose for any picture: keyframes confirm it, or it is uncertain."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from contracts.tiny import tiny
from PIL import Image

import lean3r
from lean3r.stream.confirm import confirmed
from lean3r.stream.pictures import Keyframe
from lean3r.stream.result import Result
from lean3r.types import Source
from stream.walk import DEPTH, FOCAL, HEIGHT, WIDTH, frame, walk


def result(shown_m: float, at_m: float | None = None, depth: float = DEPTH) -> Result:
    """What the camera sees `shown_m` along the wall, said to be `at_m` along it."""
    pose = np.eye(4)
    pose[0, 3] = -(shown_m if at_m is None else at_m)
    intrinsics = np.array([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]])
    maps = np.full((2, HEIGHT, WIDTH), depth, np.float32)
    keyframe = Keyframe(0, 0.0, (WIDTH, HEIGHT), frame(shown_m), 1)
    return Result(keyframe, Source("wall", WIDTH, HEIGHT), pose, intrinsics, *maps, frame(shown_m), True, True)


def test_a_keyframe_confirms_a_picture_of_its_place() -> None:
    keyframes = [result(10.0), result(2.0)]
    assert confirmed(result(2.5), keyframes) and confirmed(result(4.5), keyframes)
    darker = result(2.5)
    darker.image = (0.4 * darker.image + 20).astype(np.uint8)
    assert confirmed(darker, keyframes), "the exposure may differ"


@pytest.mark.parametrize(
    "asked",
    [result(30.0, at_m=2.5), result(2.5, at_m=2.2), result(2.5, depth=1.3 * DEPTH), result(5.9), result(90.0)],
    ids=["another place", "moved", "another depth", "little overlap", "elsewhere"],
)
def test_what_no_keyframe_shows_is_not_confirmed(asked: Result) -> None:
    assert not confirmed(asked, [result(10.0), result(2.0)]) and not confirmed(asked, [])


def test_a_picture_without_texture_or_depth_is_not_confirmed() -> None:
    plain, hollow = result(2.5), result(2.5)
    plain.image, hollow.depth = np.full_like(plain.image, 90), np.zeros_like(hollow.depth)
    assert not confirmed(plain, [result(2.0)]) and not confirmed(hollow, [result(2.0)])


def test_a_network_with_a_cache_says_what_nothing_confirms(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = lean3r.stream(
        tiny("lingbot-map"), walk(12), options=lean3r.StreamOptions(window=4, keyframe_step=0.1), resolution=70
    )
    flags = list(stream)[-1].flags - {"keyframe"}
    found = stream.locate(frame(60.0))
    assert found is not None and found.flags == flags | {"uncertain"}, "this network knows nothing"
    monkeypatch.setattr(importlib.import_module("lean3r.stream.cached"), "confirmed", lambda *of: True)
    larger = np.asarray(Image.fromarray(frame(1.0)).resize((320, 224)))
    found = stream.locate(larger)
    assert found is not None and found.intrinsics[0, 2] == found.width / 2 == 160
    assert stream.locate(np.ascontiguousarray(frame(1.0).swapaxes(0, 1))) is None, "of another shape"
    found = stream.locate(frame(1.0))
    assert found is not None and found.flags == flags
