"""Which views share a camera when nobody said so, and what is tried where that does not fit."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lean3r.inputs.pictures import Pictures
from lean3r.refine import KnownCameras, RefineOptions, refine, worker
from lean3r.refine.adjust import pincushion
from lean3r.refine.attempts import Attempt
from lean3r.refine.built import NO_FOCAL, NO_LENS, why_made_up
from lean3r.refine.features import camera_of
from lean3r.refine.job import Answer, Group, Job, View
from lean3r.refine.separate import DIFFERENT, TURNED, Own, difference_deg
from lean3r.types import Reconstruction

sys.path.insert(0, str(Path(__file__).parent))
import scenes

GENEROUS = 300.0  # seconds: the tests share their processor
WHOLE = (0.0, 0.0, 1.0, 1.0)


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


@pytest.mark.parametrize("focals_px", [None, np.full(3, 70.0)])
def test_known_cameras_stay_where_others_are_separated(focals_px: np.ndarray | None) -> None:
    shared = Group(64, 48, "SIMPLE_RADIAL", (90.0, 32.0, 24.0, 0.0), trusted=True, assumed=True)
    known = Group(64, 48, "PINHOLE", (80.0, 82.0, 30.0, 25.0), fixed=True)
    alone = job((shared, known), (0, 0, 1)).each_alone(focals_px)
    assert alone is not None and alone.groups[2] == known


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


@pytest.mark.parametrize(("is_held", "why"), [(False, NO_FOCAL), (True, None)])
def test_focal_lengths_measured_in_a_video_can_be_made_up(is_held: bool, why: str | None) -> None:
    """A thing that moves before the camera and fills the picture: flat, it fits 2,600 pixels instead of 480."""
    group = Group(64, 48, "SIMPLE_RADIAL", (450.0, 32.0, 24.0, 0.0), trusted=True, focal_fixed=is_held)
    assert why_made_up(group, camera_of(group), 60.0, of_video=True) == why


def refine_parts(
    folder: Path, boxes: Sequence[tuple[float, float, float, float]], stated_px: float | None = None
) -> Reconstruction:
    """The room, of whose pictures only these parts (left, top, right, bottom, as shares) are kept, enlarged again, with
    a focal length that EXIF data state."""
    poses = scenes.arc(len(boxes), step=0.5)
    scenes.write(poses, folder)
    for path, box in zip(sorted(folder.iterdir()), boxes, strict=True):
        image = Image.open(path).convert("L")
        (left, top, right, bottom), (width, height) = box, image.size
        pixels = (left * width, top * height, right * width, bottom * height)
        image.resize(image.size, Image.Resampling.BICUBIC, pixels).save(path)
    scene = scenes.scene(poses, focal=1.2)
    scene = replace(scene, sources=tuple(replace(source, focal_px=stated_px) for source in scene.sources))
    return refine(scene, Pictures(folder), RefineOptions(seconds=GENEROUS))


def codes(scene: Reconstruction) -> set[str]:
    """Of its warnings."""
    return {warning["code"] for warning in scene.info.get("warnings", [])}


@pytest.mark.parametrize(("zoom", "stated_px"), [(3.0, None), (1.5, scenes.FOCAL)])
def test_half_of_the_pictures_zoomed(zoom: float, stated_px: float | None, tmp_path: Path) -> None:
    """Many matches do not survive the network's focal lengths, but those with which the shared model fits best. EXIF
    data state one focal length for all, if they were zoomed afterwards."""
    edge = (1 - 1 / zoom) / 2
    found = refine_parts(tmp_path, [WHOLE, (edge, edge, 1 - edge, 1 - edge)] * 3, stated_px)
    assert not codes(found)
    focals = [lens.params[0] / scenes.FOCAL for lens in found.lenses]
    np.testing.assert_allclose(focals, [1.0, zoom] * 3, rtol=0.05)


@pytest.mark.parametrize(
    ("differ_deg", "parallax_deg", "is_trusted", "note"),
    [(1.0, 5.0, True, DIFFERENT), (9.0, 5.0, False, DIFFERENT), (1.0, 0.5, False, TURNED)],
)
def test_pictures_of_which_no_camera_each_is_found_are_told(
    differ_deg: float,
    parallax_deg: float,
    is_trusted: bool,
    note: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """It was a line of the log; scripts read the warnings. Cameras that would lie elsewhere are not trusted."""
    nothing, report = np.zeros(0), {"notes": [], "doubts": [None] * 6, "after": {"inliers": 9}, "matches": 9}
    answer = Answer(nothing, np.ones(6, bool), (), (), (), nothing, nothing, nothing, nothing, nothing, report)
    found = Attempt(answer, lambda: answer)
    monkeypatch.setattr(worker, "attempts", lambda *_: iter(()))
    own = Own(np.full(6, np.nan), differ_deg, parallax_deg)
    monkeypatch.setattr(worker, "own_focals", lambda *_: own)
    monkeypatch.setattr(Answer, "write", lambda *_: None)
    shared = Group(64, 48, "SIMPLE_RADIAL", (90.0, 32.0, 24.0, 0.0), assumed=True)
    told = worker.apart(job((shared,), (0,) * 6), tmp_path, 0, found)
    assert told.answer.report["notes"] == told.sharpened().report["notes"] == [("zoom", note)]
    assert told.answer.trusted.tolist() == told.sharpened().trusted.tolist() == [is_trusted] * 6


def test_how_far_cameras_differ_is_told_pair_by_pair() -> None:
    """Neither the world frame nor its scale counts; one camera of five does not move the median."""
    poses = np.stack([scenes.look((0, 3.0 * i, 0), (0.1 * i, 0, 0.02 * i * i)) for i in range(5)])
    moved = poses @ scenes.look((10, 20, 30), (1, 2, 3))
    moved[:, :3, 3] *= 7
    assert difference_deg(moved, poses) < 1e-5
    moved[4] = scenes.look((0, 0, 40), (0, 0, 0)) @ moved[4]
    assert difference_deg(moved, poses) < 1e-5
    turned = np.stack([scenes.look((0, 0, 4.0 * i), (0, 0, 0)) @ pose for i, pose in enumerate(poses)])
    assert 4 <= difference_deg(turned, poses) < 30
    assert difference_deg(poses[:1], poses[:1]) == 0


def test_pictures_cropped_off_their_middle_are_told(tmp_path: Path) -> None:
    """They fit wrong focal lengths well: without the warning all views were certain."""
    corners = ((0, 0, 0.8, 0.8), (0.2, 0, 1, 0.8), (0, 0.2, 0.8, 1), (0.2, 0.2, 1, 1))
    assert codes(refine_parts(tmp_path, [corners[i % 4] for i in range(6)])) == {"cropped"}


def test_whole_pictures_have_their_middle_where_it_is(tmp_path: Path) -> None:
    assert not codes(refine_parts(tmp_path, [WHOLE] * 5))


@pytest.mark.parametrize(("factor", "is_told"), [(1.0, False), (1.15, True)])
@pytest.mark.parametrize("are_held", [False, True])
def test_stated_focal_lengths_that_do_not_fit_are_told(
    factor: float, is_told: bool, are_held: bool, tmp_path: Path
) -> None:
    poses = scenes.arc(5)
    scenes.write(poses, tmp_path)
    stated = np.stack([np.diag([factor, factor, 1]) @ scenes.INTRINSICS] * 5)
    stated[:, :2, 2] = scenes.INTRINSICS[:2, 2]
    known = KnownCameras(intrinsics=stated, cam_from_world=poses if are_held else None)
    found = refine(scenes.scene(poses), Pictures(tmp_path), RefineOptions(seconds=GENEROUS), known=known)
    assert ("known-focal-length" in codes(found)) == is_told


def test_nothing_is_said_against_intrinsics_that_a_stream_found_itself(tmp_path: Path) -> None:
    poses = scenes.arc(5)
    scenes.write(poses, tmp_path)
    pictures = Pictures(tmp_path)
    pictures.calibrated = True
    known = KnownCameras(intrinsics=np.stack([np.diag([1.15, 1.15, 1]) @ scenes.INTRINSICS] * 5))
    assert not codes(refine(scenes.scene(poses), pictures, RefineOptions(seconds=GENEROUS), known=known))


@pytest.mark.parametrize(("off", "is_told"), [(0.0, False), (0.1, True)])
def test_stated_principal_points_that_do_not_fit_are_told(off: float, is_told: bool, tmp_path: Path) -> None:
    """They fit with nearly the same error, by cameras that are turned and moved."""
    poses = scenes.arc(5)
    scenes.write(poses, tmp_path)
    stated = np.stack([scenes.INTRINSICS] * 5)
    stated[:, 0, 2] += off * scenes.WIDTH
    known = KnownCameras(intrinsics=stated)
    found = refine(scenes.scene(poses), Pictures(tmp_path), RefineOptions(seconds=GENEROUS), known=known)
    assert codes(found) == ({"known-principal-point"} if is_told else set())
    assert not is_told or "at 60% of the width and 50%" in found.info["warnings"][0]["text"]
