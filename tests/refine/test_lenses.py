"""Which views share a camera when nobody said so, and what is tried where that does not fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lean3r.refine.adjust import pincushion
from lean3r.refine.built import NO_FOCAL, NO_LENS, why_made_up
from lean3r.refine.features import camera_of
from lean3r.refine.job import Group, Job, View


def job(groups: tuple[Group, ...], of_views: tuple[int, ...]) -> Job:
    """Views of the given groups with pinholes of 100, 101, ... pixels."""
    count = len(of_views)
    views = tuple(View(group, 1.0, f"{group}/{index:06d}.bmp") for index, group in enumerate(of_views))
    poses = np.tile(np.eye(4), (count, 1, 1))
    pinholes = np.array([[100.0 + i, 100.0 + i, 32, 24] for i in range(count)])
    return Job(views, groups, poses, pinholes, poses, np.zeros(count, bool), None, 100, 1)


def test_views_that_share_by_assumption_can_get_separate_cameras() -> None:
    shared = Group(64, 48, "SIMPLE_RADIAL", (90.0, 32.0, 24.0, 0.0), assumed=True)
    alone = job((shared,), (0, 0, 0)).each_alone()
    assert alone is not None
    assert [view.group for view in alone.views] == [0, 1, 2]
    assert [group.params for group in alone.groups] == [(100.0 + i, 32.0, 24.0, 0.0) for i in range(3)]
    assert alone.each_alone() is None  # nothing is shared any more


@pytest.mark.parametrize("cx", [32.0, 32.35])  # shrunken pictures lose a part of a pixel, their cameras do not
def test_two_focal_lengths_start_at_the_predicted_ones(cx: float) -> None:
    shared = Group(64, 48, "OPENCV", (90.0, 90.0, cx, 24.0, 0.0, 0.0, 0.0, 0.0), assumed=True)
    alone = job((shared,), (0, 0)).each_alone()
    assert alone is not None
    assert alone.groups[1].params == (101.0, 101.0, cx, 24.0, 0.0, 0.0, 0.0, 0.0)


def test_cameras_that_the_user_stated_are_not_separated() -> None:
    shared = Group(64, 48, "SIMPLE_RADIAL", (90.0, 32.0, 24.0, 0.0), assumed=True)
    stated = replace(shared, trusted=True, assumed=False)
    assert job((stated,), (0, 0)).each_alone() is None
    assert job((shared, stated), (0, 0, 1, 1)).each_alone() is None
    assert job((shared,), (0,)).each_alone() is None


@pytest.mark.parametrize(
    ("model", "params", "expected"),
    [
        ("SIMPLE_PINHOLE", (100.0, 32.0, 24.0), 0.0),
        ("SIMPLE_RADIAL", (100.0, 32.0, 24.0, 0.5), 0.5 * 0.16),
        ("OPENCV", (100.0, 100.0, 32.0, 24.0, -0.5, 0.0, 0.0, 0.0), -0.5 * 0.16),
    ],
)
def test_how_far_a_lens_moves_the_corners_outwards(model: str, params: tuple[float, ...], expected: float) -> None:
    assert pincushion(camera_of(Group(64, 48, model, params))) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("group", "params", "why"),
    [
        (Group(64, 48, "SIMPLE_RADIAL", ()), (60.0, 32.0, 24.0, 0.0), None),
        (Group(64, 48, "SIMPLE_RADIAL", ()), (150.0, 32.0, 24.0, 0.0), None),  # a long lens, that the network misjudges
        (Group(64, 48, "SIMPLE_RADIAL", ()), (450.0, 32.0, 24.0, 2.0), NO_FOCAL),
        (Group(64, 48, "SIMPLE_RADIAL", ()), (11.0, 32.0, 24.0, 0.0), NO_FOCAL),
        (Group(64, 48, "SIMPLE_RADIAL", ()), (50.0, 32.0, 24.0, 0.5), NO_LENS),
        (Group(64, 48, "SIMPLE_RADIAL", (), trusted=True), (450.0, 32.0, 24.0, 0.0), None),
        (Group(64, 48, "SIMPLE_RADIAL", (), fixed=True), (450.0, 32.0, 24.0, 90.0), None),
    ],
)
def test_cameras_that_cannot_be_real_are_doubted(group: Group, params: tuple[float, ...], why: str | None) -> None:
    assert why_made_up(group, camera_of(replace(group, params=params)), 60.0) == why
