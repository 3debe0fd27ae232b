"""Keyframes of a window that are trusted alone among doubted ones are doubted, and windows that nothing confirms."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import lean3r
from lean3r.errors import InputError
from lean3r.stream import solver
from lean3r.stream.frames import Source as Frames
from lean3r.stream.pictures import Keyframe, Recent
from lean3r.stream.solver import Solver, contradicted, doubt_islands
from stream.walk import Knows, walk


@pytest.mark.parametrize(
    ("trusted", "kept"),
    [
        ("11111111", "11111111"),
        ("00000000", "00000000"),
        ("111111110010", "111111110000"),
        ("1111001111110", "0000001111110"),
        ("11111001111110", "11111001111110"),
        ("0110010110", "0110000110"),
        ("1", "1"),
    ],
)
def test_few_trusted_keyframes_among_doubted_ones_are_doubted(trusted: str, kept: str) -> None:
    results: Any = [SimpleNamespace(is_certain=each == "1") for each in trusted]
    doubt_islands(results)
    assert "".join(str(int(each.is_certain)) for each in results) == kept


@pytest.mark.parametrize(("info", "certain"), [({"refinement": {"status": "kept", "reason": "dark"}}, 0), ({}, 3)])
def test_a_window_whose_refinement_failed_is_doubted_and_says_why(
    info: dict[str, Any], certain: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it was not asked for, nothing was tried, and nothing failed."""
    keyframes: Any = [SimpleNamespace(index=i, size=(4, 3)) for i in range(3)]
    results = [SimpleNamespace(is_certain=True, original_intrinsics=np.eye(3), lens=None) for _ in keyframes]
    monkeypatch.setattr(Solver, "_pictures", lambda self, keyframes, joined: SimpleNamespace())
    monkeypatch.setattr(Solver, "_run", lambda self, pictures: (SimpleNamespace(info=info, lenses=()), False))
    monkeypatch.setattr(solver, "results_of", lambda scene, keyframes: results)
    found = Solver(None, None).window(keyframes)  # type: ignore[arg-type]
    assert found is not None and found[1]["certain"] == certain
    assert found[1].get("reason") == info.get("refinement", {}).get("reason")


def test_the_network_sees_the_keyframes_of_a_window_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = Knows(), []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda views, **more: seen.append(views) or forward(views, **more))
    pictures = Recent([Keyframe.of(frame) for frame in Frames([*walk(4)])])
    first, again = (lean3r.reconstruct(model, pictures, refine="off") for _ in range(2))
    assert len(seen) == 1 and np.array_equal(first.depth, again.depth)
    assert np.array_equal(first.cam_from_world, again.cam_from_world)


def test_intrinsics_of_the_windows_before_are_given_up_when_the_lens_zooms(monkeypatch: pytest.MonkeyPatch) -> None:
    keyframes: Any = [SimpleNamespace(index=i, size=(4, 3)) for i in range(3)]
    results = [SimpleNamespace(is_certain=True, original_intrinsics=np.eye(3), lens=None) for _ in keyframes]
    given: list[bool] = []

    def run(self: Solver, pictures: object) -> tuple[object, bool]:
        given.append((4, 3) in self.cameras)
        report = {"status": "fallback", "trusted": 3} | ({"zooms": True} if zooming else {})
        return SimpleNamespace(info={"refinement": report}, lenses=()), given[-1]

    monkeypatch.setattr(Solver, "_pictures", lambda self, keyframes, joined: SimpleNamespace())
    monkeypatch.setattr(Solver, "_run", run)
    monkeypatch.setattr(solver, "results_of", lambda scene, keyframes: results)
    found = Solver(None, SimpleNamespace(intrinsics=None, window=3))  # type: ignore[arg-type]
    zooming = False
    found.window(keyframes)
    zooming = True
    told = found.window(keyframes)
    assert given == [False, True, False] and not found.cameras
    assert told is not None and told[1]["zooms"]


@pytest.mark.parametrize(("window", "is_held"), [(6, True), (7, False)])
def test_a_window_of_few_keyframes_does_not_tell_the_intrinsics_of_the_next_ones(
    window: int, is_held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two views of a camera that hardly moved fit many focal lengths."""
    keyframes: Any = [SimpleNamespace(index=i, size=(4, 3)) for i in range(3)]
    results = [SimpleNamespace(is_certain=True, original_intrinsics=np.eye(3), lens=None) for _ in keyframes]
    scene = SimpleNamespace(info={"refinement": {"status": "refined", "trusted": 3}}, lenses=())
    monkeypatch.setattr(Solver, "_pictures", lambda self, keyframes, joined: SimpleNamespace())
    monkeypatch.setattr(Solver, "_run", lambda self, pictures: (scene, False))
    monkeypatch.setattr(solver, "results_of", lambda scene, keyframes: results)
    found = Solver(None, SimpleNamespace(intrinsics=None, window=window))  # type: ignore[arg-type]
    found.window(keyframes)
    assert bool(found.cameras) == is_held


def test_what_contradicts_stated_intrinsics_is_said_at_once_and_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    keyframes: Any = [SimpleNamespace(index=i, size=(4, 3)) for i in range(3)]
    results = [SimpleNamespace(is_certain=True, original_intrinsics=np.eye(3), lens=None) for _ in keyframes]
    warnings = [{"code": "known-focal-length", "text": "it does not fit"}, {"code": "no-parallax", "text": "at rest"}]
    scene = SimpleNamespace(info={"refinement": {"status": "refined", "trusted": 3}, "warnings": warnings}, lenses=())
    monkeypatch.setattr(Solver, "_pictures", lambda self, keyframes, joined: SimpleNamespace())
    monkeypatch.setattr(Solver, "_run", lambda self, pictures: (scene, True))
    monkeypatch.setattr(solver, "results_of", lambda scene, keyframes: results)
    found = Solver(None, SimpleNamespace(intrinsics=(4, 4, 2, 1), window=3))  # type: ignore[arg-type]
    with caplog.at_level("WARNING", logger="lean3r"):
        reports = [each[1] for each in (found.window(keyframes), found.window(keyframes)) if each]
    assert [report["known-focal-length"] for report in reports] == ["it does not fit"] * 2
    assert "no-parallax" not in reports[0] and len(caplog.records) == 1


def scene_of(centres: np.ndarray, certain: int, goes_on: bool) -> Any:
    """A scene with cameras at these places, of which so many first ones are certain."""
    poses = np.tile(np.eye(4), (len(centres), 1, 1))
    poses[:, :3, 3] = -centres
    report: dict[str, Any] = {"trusted": certain, "views": [{"part": 0}] * len(centres)}
    info = {"refinement": report | ({"past": {}} if goes_on else {})}
    return SimpleNamespace(cam_from_world=poses, is_certain=np.arange(len(centres)) < certain, info=info)


@pytest.mark.parametrize(
    ("certain", "bends", "expected"), [(12, 1.0, []), (12, 2.0, [9, 10, 11]), (8, 1.0, [8, 9, 10, 11]), (5, 2.0, [])]
)
def test_what_a_window_by_itself_says_is_doubted_where_the_film_before_it_says_otherwise(
    certain: int, bends: float, expected: list[int]
) -> None:
    """Unless that trusts few cameras only."""
    centres = np.cumsum([1, 0.1, 0.2] + 0.3 * np.random.default_rng(0).normal(size=(12, 3)), axis=0)
    bent = np.where(np.arange(12)[:, None] < 7, centres, centres[7] + bends * (centres - centres[7]))
    past, alone = scene_of(2 * centres, certain, True), scene_of(bent, 12, False)
    found = contradicted(alone, past, ())
    assert found == expected and all(type(view) is int for view in found)  # they are indices
    assert contradicted(past, past, ()) == contradicted(alone, None, ()) == []


def test_intrinsics_hold_for_frames_of_the_stated_size_and_are_scaled_to_others(tmp_path: Path) -> None:
    stated = {"fx": 70, "fy": 70, "cx": 40, "cy": 28, "width": 80, "height": 56}
    file = tmp_path / "camera.json"
    file.write_text(json.dumps(stated))
    for given, focal in ((str(file), 140), ((70, 70, 40, 28), 70)):
        found = list(lean3r.stream(Knows(), walk(12), intrinsics=given, refine="off"))
        assert found[0].intrinsics[0, 0] == pytest.approx(focal) and found[0].width == 160
    sizes = [np.ascontiguousarray(image[:, 20:-20]) if i >= 6 else image for i, (_, image) in enumerate(walk(12))]
    found = list(lean3r.stream(Knows(), sizes, intrinsics=str(file), refine="off"))
    assert "lost" in found[-1].flags, "later pictures of another shape"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"fx": 70, "fy": 70, "cx": 28, "cy": 40, "width": 56, "height": 80}, "for 56x80 pixels"),
        ((700.0, 700.0, 400.0, 280.0), "outside the pictures"),
    ],
)
def test_intrinsics_of_other_pictures_are_refused_at_the_first_frame(given: Any, why: str, tmp_path: Path) -> None:
    file = tmp_path / "camera.json"
    file.write_text(json.dumps(given))
    stream = lean3r.stream(
        Knows(), walk(12), tmp_path / "out", intrinsics=str(file) if isinstance(given, dict) else given, refine="off"
    )
    with pytest.raises(InputError, match=why):
        next(iter(stream))
    assert not (tmp_path / "out").exists()
