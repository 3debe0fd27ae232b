"""Photos of a fisheye lens get the cameras of one, and others do not."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lean3r.geometry.lens import Optics
from lean3r.inputs.pictures import Pictures
from lean3r.refine import RefineOptions, refine
from lean3r.refine.fisheye import as_fisheye, is_fisheye
from lean3r.refine.job import Answer, Group, Job, View
from lean3r.refine.separate import difference_deg

sys.path.insert(0, str(Path(__file__).parent))
import scenes

POSES = scenes.arc(7)
FOCAL = 160.0  # a fisheye that sees 115 degrees across


def test_photos_of_an_action_camera_have_the_cameras_of_a_fisheye(tmp_path: Path) -> None:
    for index, pose in enumerate(POSES):
        picture, _ = scenes.photograph(pose, focal=FOCAL, is_fisheye=True)
        Image.fromarray(picture).save(tmp_path / f"{index:03d}.png")
    found = refine(scenes.scene(POSES, focal=0.9), Pictures(tmp_path), RefineOptions(seconds=300.0))
    assert found.info["refinement"]["trusted"] == len(POSES)
    assert {lens.model for lens in found.lenses} == {"FOV"}
    assert [note["code"] for note in found.info["warnings"]] == ["fisheye"]
    assert difference_deg(found.cam_from_world, POSES) < 0.3
    corner = np.linalg.norm(Optics.of(found).slopes(0, scenes.HEIGHT // 2, scenes.WIDTH // 2)[0, 0])
    assert corner == pytest.approx(np.tan(np.hypot(159, 119) / FOCAL), rel=0.03)


@pytest.mark.parametrize(
    ("bend", "changes", "is_tried"),
    [
        (-0.4, {}, True),
        (-0.15, {}, False),
        (0.4, {}, False),
        (-0.4, {"lens_assumed": False}, False),
        (-0.4, {"focal_fixed": True}, False),
    ],
)
def test_fisheyes_are_tried_only_where_lines_bend_inwards_and_nothing_is_known_of_the_lens(
    bend: float, changes: dict[str, bool], is_tried: bool
) -> None:
    group = replace(Group(640, 480, "SIMPLE_RADIAL", (700.0, 320.0, 240.0, 0.0), lens_assumed=True), **changes)
    poses, nothing = np.tile(np.eye(4), (3, 1, 1)), np.zeros(0, int)
    pinholes = np.tile([700.0, 700.0, 320.0, 240.0], (3, 1))
    views = tuple(View(0, 1.0, None) for _ in poses)
    job = Job(views, (group,), poses, pinholes, poses, np.zeros(3, bool), None, 100, 1)
    answer = Answer(
        poses, np.ones(3, bool), (group.model,), ((*group.params[:3], bend),), (0, 0, 0), *[nothing] * 5, {}
    )
    wide = as_fisheye(job, answer)
    assert (wide is not None) == is_tried
    if wide is not None:
        assert wide.groups[0].model == "FOV" and wide.groups[0].params[2:4] == (320.0, 240.0)


@pytest.mark.parametrize(
    ("params", "expected"), [((300.0, 301.0, 0.93), True), ((340.0, 255.0, 0.93), False), ((300.0, 300.0, 0.01), False)]
)
def test_a_straight_lens_and_oblong_pixels_are_no_fisheye(params: tuple[float, float, float], expected: bool) -> None:
    fx, fy, angle = params
    poses, nothing = np.tile(np.eye(4), (3, 1, 1)), np.zeros(0, int)
    camera = (fx, fy, 320.0, 240.0, angle)
    assert is_fisheye(Answer(poses, np.ones(3, bool), ("FOV",), (camera,), (0, 0, 0), *[nothing] * 5, {})) == expected
