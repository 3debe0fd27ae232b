"""Which frames become keyframes: by where the camera goes, not only by how far the picture shifts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

import lean3r
from lean3r.stream.engine import Frame
from lean3r.stream.keyframes import Selector
from lean3r.stream.pictures import Keyframe, shrinking
from stream.walk import PAINTED, Knows, frame

SIZE = 192, 128


def ahead(closer: float, right: float = 0.0) -> np.ndarray:
    """A wall that is so many times closer than at first, from a camera that is turned so many pixels to the right."""
    half = SIZE[0] / 2 / closer, SIZE[1] / 2 / closer
    middle = 600 + right / closer, 150
    box = (middle[0] - half[0], middle[1] - half[1], middle[0] + half[0], middle[1] + half[1])
    return np.asarray(Image.fromarray(PAINTED).resize(SIZE, Image.Resampling.BICUBIC, box=box))


def chosen(frames: list[np.ndarray], step: float = 0.12) -> list[int]:
    """Numbers of the keyframes."""
    selector = Selector(step)
    found = [k for i, one in enumerate(frames) for k in selector.add(Keyframe.of(Frame(i, i / 10, one)))]
    return [each.index for each in found + selector.end()]


def test_a_camera_that_walks_ahead_gets_keyframes_however_it_turns() -> None:
    closer = 1.012 ** np.arange(60)  # half the distance
    straight = chosen([ahead(c) for c in closer])
    looking_round = chosen([ahead(c, 12 * np.sin(i / 4)) for i, c in enumerate(closer)])
    for keys in (straight, looking_round):
        assert max(closer[b] / closer[a] for a, b in pairwise(keys)) < 1.2
        assert len(keys) <= 14


def test_a_camera_that_only_turns_gets_one_for_each_step() -> None:
    keys = chosen([ahead(1, 4.0 * i) for i in range(80)])
    assert 10 <= len(keys) <= 20 and np.diff(keys).max() <= 7


def test_noise_and_changing_light_are_no_motion() -> None:
    rng = np.random.default_rng(0)
    still = ahead(1).astype(np.float64)
    frames = [still * (1 + 0.1 * np.sin(i / 9)) + rng.normal(0, 4, still.shape) for i in range(120)]
    assert chosen([each.clip(0, 255).astype(np.uint8) for each in frames]) == [0]


@pytest.mark.parametrize("rest", [500])
def test_a_rest_ends_with_keyframes_that_still_have_their_estimates_to_come(rest: int) -> None:
    """Frames of a long rest are given without a window, but not those that may yet become keyframes."""

    def source() -> Iterator[tuple[float, np.ndarray]]:
        for index in range(540):
            x_m = 0.04 * max(0, index - rest)
            yield x_m / 1.2 + 1e-4 * index, frame(x_m)

    found = list(lean3r.stream(Knows(), source(), options=lean3r.StreamOptions(), refine="off"))
    assert [each.index for each in found] == list(range(540))
    assert sum("keyframe" in each.flags for each in found) > 2


@pytest.mark.parametrize(("window", "step_m"), [(2, 0.4), (3, 0.45), (5, 0.45)])
def test_windows_of_a_few_keyframes_that_come_late(window: int, step_m: float) -> None:
    options = lean3r.StreamOptions(window=window, overlap=1, loops="off")
    source = [(step_m * index / 1.2, frame(step_m * index)) for index in range(40)]
    found = list(lean3r.stream(Knows(), source, options=options, refine="off"))
    assert [each.index for each in found] == list(range(40))


def test_large_frames_are_kept_smaller() -> None:
    sizes = {640: 1, 1439: 1, 1440: 2, 1920: 2, 2704: 3, 3840: 4}
    assert {side: shrinking(side, side // 2) for side in sizes} == sizes
