"""Photographs whose focal length the pictures hardly tell, and pairs that no third view confirms, are said to be so."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refine.scenes import arc, look, scene, write
from refine.test_ties import turn

import lean3r
from lean3r.refine import refine
from lean3r.refine.equations import BLUR
from lean3r.refine.focal_error import GUESSED, STATED, focal_error, lens_variances
from lean3r.refine.job import Answer, Group, Job, View

FOCAL, WIDTH, HEIGHT = 400.0, 540, 360
LENS = (FOCAL, WIDTH / 2, HEIGHT / 2, -0.05)


def seen(poses: np.ndarray, xyz: np.ndarray, cameras: int = 1) -> Answer:
    """The model of points [P, 3] that all views see, with errors of a tenth of a pixel."""
    views, points = len(poses), len(xyz)
    point, view = np.repeat(np.arange(points), views), np.tile(np.arange(views), points)
    used = np.arange(views) % cameras
    xy = project(poses, xyz, np.tile(LENS, (cameras, 1)), point, view, used)
    report = {"doubts": [None] * views}
    lenses = ("SIMPLE_RADIAL",) * cameras, (LENS,) * cameras, tuple(used.tolist())
    errors = np.full(points, 0.1)
    return Answer(
        poses, np.ones(views, bool), *lenses, xyz, errors, point.astype(np.int32), view.astype(np.int32), xy, report
    )


def project(poses: np.ndarray, xyz: np.ndarray, lenses: np.ndarray, point, view, camera) -> np.ndarray:
    cam = (poses[view, :3, :3] @ xyz[point][..., None])[..., 0] + poses[view, :3, 3]
    rays, lens = cam[:, :2] / cam[:, 2:], lenses[camera[view]]
    bent = rays * (1 + lens[:, 3:] * (rays**2).sum(1, keepdims=True))
    return lens[:, :1] * bent + lens[:, 1:3]


def around(views: int, points: int = 60, step_deg: float = 20.0) -> Answer:
    """Cameras on an arc about a cloud of points, at which they look."""
    rng = np.random.default_rng(0)
    poses = np.tile(np.eye(4), (views, 1, 1))
    for index, pose in enumerate(poses):
        pose[:3, :3] = turn(np.radians([3.0 * (-1) ** index, step_deg * (index - (views - 1) / 2), 4.0 * index]))
        pose[2, 3] = 5 + 0.3 * index
    return seen(poses, rng.uniform(-1, 1, (points, 3)))


def flight(views: int) -> Answer:
    """Cameras side by side that look straight down at level ground."""
    rng = np.random.default_rng(1)
    poses = np.tile(np.eye(4), (views, 1, 1))
    poses[:, :3, :3] = [turn(each) for each in 0.01 * rng.normal(size=(views, 3))]
    poses[:, 0, 3], poses[:, 2, 3] = 0.8 * np.arange(views), 0.02 * rng.normal(size=views)
    xyz = rng.uniform((-2, -1.5, 4.95), (1, 1.5, 5.05), (150, 3))
    return seen(poses, xyz)


def job(answer: Answer, **known: Any) -> Job:
    """The job of an answer, with a group of cameras as it is `known`."""
    views, (lens, *_) = len(answer.has), answer.params
    none = np.full((views, 4, 4), np.nan)
    shown = tuple(View(0, 1.0, f"{view}.bmp") for view in range(views))
    group = Group(WIDTH, HEIGHT, "SIMPLE_RADIAL", lens, **known)
    return Job(shown, (group,), none, np.zeros((views, 4)), none, np.zeros(views, bool), None, 1000, 1)


@pytest.mark.parametrize(("cameras", "frees_centres"), [(1, False), (3, False), (1, True)])
def test_variances_are_those_of_all_unknowns_together(cameras: int, frees_centres: bool) -> None:
    """Against the inverse of the whole of the equations, by differences, with a similarity of the world held still."""
    answer = seen(around(3, points=12).cam_from_world, around(3, points=12).xyz, cameras)
    if frees_centres:  # lenses count as pinholes, and what distortion there is acts like a principal point that moved
        answer = replace(answer, params=((*LENS[:3], 0.0),))
    views, points = len(answer.has), len(answer.xyz)
    camera = np.array(answer.camera)

    def shown(change: np.ndarray) -> np.ndarray:
        poses = answer.cam_from_world.copy()
        moved = change[: 6 * views].reshape(views, 6)
        for pose, by in zip(poses, moved, strict=True):
            pose[:3, :3] = turn(by[:3]) @ pose[:3, :3]
            pose[:3, 3] += by[3:]
        xyz = answer.xyz + change[6 * views : 6 * views + 3 * points].reshape(points, 3)
        of_focal, *of_centre, of_bend = change[6 * views + 3 * points :].reshape(-1, cameras)
        lenses = np.array(answer.params)
        for axis, off in enumerate(of_centre):
            lenses[:, 1 + axis] += off * lenses[:, 0]
        lenses[:, 0] *= np.exp(of_focal)
        lenses[:, 3] += of_bend
        return project(poses, xyz, lenses, answer.point, answer.view, camera).ravel()

    told = 3 if frees_centres else 1
    size = 6 * views + 3 * points + (told + 1) * cameras
    step = 1e-6
    jacobian = np.stack([(shown(step * row) - shown(-step * row)) / (2 * step) for row in np.eye(size)], axis=1)
    weight = np.sqrt(1 / (1 + 0.1**2)) * BLUR / 0.1
    information = weight**2 * jacobian.T @ jacobian
    values, vectors = np.linalg.eigh(information)
    assert (values[:7] < 1e-6 * values[7]).all()
    covariance = (vectors[:, 7:] / values[7:]) @ vectors[:, 7:].T
    wanted = np.diag(covariance)[6 * views + 3 * points :][: told * cameras].reshape(told, cameras)
    np.testing.assert_allclose(lens_variances(answer, frees_centres), wanted, rtol=0.03)


def test_many_lenses_take_memory_for_some_measurements_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The change of all measurements with all lenses is 31 MB, and was held twice."""
    answer = around(40, points=300, step_deg=5.0)
    answer = seen(answer.cam_from_world, answer.xyz, cameras=40)

    def run(batch: int) -> tuple[np.ndarray, float]:
        monkeypatch.setattr("lean3r.refine.focal_error.BATCH", batch)
        tracemalloc.start()
        found = lens_variances(answer, frees_centres=True)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found, peak

    (whole, most), (parts, least) = run(10**6), run(500)
    np.testing.assert_allclose(parts, whole, rtol=1e-6)
    assert least < 50e6 < most / 3


def test_what_is_expected_of_focal_lengths() -> None:
    """Cameras about a thing tell it, those that fly over level ground do not, and two hold what the network says."""
    assert focal_error(job(around(4)), around(4)) < 0.05
    assert focal_error(job(flight(4)), flight(4)) > 0.1
    assert focal_error(job(flight(4), focal_fixed=True), flight(4)) == 0
    assert focal_error(job(around(2)), around(2)) == GUESSED
    assert focal_error(job(around(2), trusted=True), around(2)) == STATED
    pair = around(4)
    pair = replace(pair, report={"doubts": [None, None, "far off", "far off"]})
    assert focal_error(job(pair), pair) == GUESSED
    each = seen(flight(4).cam_from_world, flight(4).xyz, 4)
    assert focal_error(job(each, trusted=True), each) > 0.1  # what EXIF states of all was given up
    copied = around(2).cam_from_world.repeat(2, axis=0)
    twice = seen(copied, around(2).xyz)
    assert focal_error(job(twice), twice) == GUESSED  # 9 % were told of two photos and copies of them


def codes(found: lean3r.Reconstruction) -> list[str]:
    return [warning["code"] for warning in found.info.get("warnings", ())]


def test_two_photographs_say_that_their_focal_length_is_a_guess(tmp_path: Path) -> None:
    write(arc(2), tmp_path)
    network = scene(arc(2))
    found = refine(network, lean3r.Pictures(tmp_path))
    assert codes(found) == ["focal-length"] and found.is_certain.all()
    (warning,) = found.info["warnings"]
    assert "30%" in warning["text"] and warning["views"] == list(network.names)
    stated = replace(network, sources=tuple(replace(source, focal_px=290.0) for source in network.sources))
    assert not codes(refine(stated, lean3r.Pictures(tmp_path)))


def test_copies_of_two_photographs_confirm_nothing(tmp_path: Path) -> None:
    """They were not refined at all, and then said their focal length as if there were four."""
    poses = arc(2).repeat(2, axis=0)
    write(poses, tmp_path)
    found = refine(scene(poses), lean3r.Pictures(tmp_path))
    assert codes(found) == ["focal-length"] and found.is_certain.all()


def test_many_photographs_from_different_directions_say_nothing(tmp_path: Path) -> None:
    write(arc(4), tmp_path)
    assert not codes(refine(scene(arc(4)), lean3r.Pictures(tmp_path)))


def test_a_focal_length_that_photographs_hardly_tell_stays_near_what_is_stated(tmp_path: Path) -> None:
    """Pictures of a wall from straight in front."""
    rng = np.random.default_rng(0)
    poses = np.stack(
        [
            look((float(a), float(b), float(c)), (-3.2 + 0.35 * i, 0.1 * (-1) ** i, 4 + 0.1 * i))
            for i, (a, b, c) in enumerate(1.5 * rng.normal(size=(3, 3)))
        ]
    )
    write(poses, tmp_path)
    network = scene(poses)
    guessed = refine(network, lean3r.Pictures(tmp_path))
    assert codes(guessed) == ["focal-length"] and 0.1 < guessed.info["refinement"]["focal_error"] < 0.3
    low = replace(network, sources=tuple(replace(source, focal_px=0.9 * 290) for source in network.sources))
    stated = refine(low, lean3r.Pictures(tmp_path))
    assert not codes(stated) and stated.info["refinement"]["focal_error"] <= STATED
    assert 0.9 * 290 <= stated.lenses[0].params[0] < 0.95 * 290 < guessed.lenses[0].params[0]
