"""Trajectories as cameras: which pose belongs to which picture, by times and by numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from export.scene import make_scene

from lean3r.errors import InputError
from lean3r.export import export
from lean3r.geometry.rotation import matrix_from_quaternion, quaternion_from_matrix, so3_exp
from lean3r.inputs.cameras import GivenCameras, read_given

STEP = torch.tensor([0.02, -0.03, 0.01]).double()


def place(at: float) -> np.ndarray:
    """world_from_cam [4, 4] of a camera that moves and turns steadily."""
    pose = np.eye(4)
    pose[:3, :3] = so3_exp(at * STEP).numpy()
    pose[:3, 3] = 0.1 * at, -0.2 * at, 3.0
    return pose


def write_trajectory(path: Path, times: list[float], places: list[float] | None = None) -> GivenCameras:
    """A file of poses at `places` (those of the times), one at each time."""
    lines = ["# timestamp tx ty tz qx qy qz qw", ""]
    for time, at in zip(times, times if places is None else places, strict=True):
        w, x, y, z = quaternion_from_matrix(torch.from_numpy(place(at)[:3, :3])).tolist()
        lines.append(" ".join(repr(v) for v in (time, *place(at)[:3, 3].tolist(), x, y, z, w)))
    path.write_text("\n".join(lines) + "\n")
    return read_given(path)


def found(given: GivenCameras, names: list[str], times_s: list[float | None] | None = None) -> list[np.ndarray | None]:
    cameras = given.match(names, times_s or [None] * len(names))
    return [c.cam_from_world if c is not None else None for c in cameras]


def assert_at(pose: np.ndarray | None, at: float) -> None:
    assert pose is not None
    np.testing.assert_allclose(np.linalg.inv(pose), place(at), atol=1e-9)


def test_frames_by_time_exactly_or_between_two_poses(tmp_path: Path) -> None:
    given = write_trajectory(tmp_path / "poses.txt", [0.0, 0.1, 0.3, 2.0])
    names = [f"clip_{i:06d}.png" for i in range(4)]
    exact, between, far, outside = found(given, names, [0.1, 0.25, 1.0, 5.0])
    assert_at(exact, 0.1)
    assert_at(between, 0.25)
    assert far is None and outside is None


def test_pictures_by_the_time_that_is_their_name(tmp_path: Path) -> None:
    start = 1305031102.0
    given = write_trajectory(tmp_path / "poses.txt", [start, start + 1, start + 2], [0, 1, 2])
    assert_at(found(given, ["rgb/1305031103.000200.png"])[0], 1)
    assert_at(found(given, ["1305031104000000000.png"])[0], 2)


def test_pictures_by_numbers(tmp_path: Path) -> None:
    counted = write_trajectory(tmp_path / "counted.txt", [2.0, 5.0, 7.0])
    first, second = found(counted, ["a_0005.jpg", "a_0006.jpg"])
    assert_at(first, 5)
    assert second is None
    assert_at(found(counted, ["clip_000007.png"], [0.7])[0], 7)  # times beyond the video's end are numbers of frames
    timed = write_trajectory(tmp_path / "timed.txt", [0.0, 0.1, 0.2])
    assert_at(found(timed, ["f0.png", "f2.png"])[1], 0.2)
    assert_at(found(timed, ["f1.png", "f2.png", "f3.png"])[2], 0.2)


def test_a_picture_never_gets_the_pose_of_another(tmp_path: Path) -> None:
    timed = write_trajectory(tmp_path / "timed.txt", [0.1 * i for i in range(11)], list(range(11)))
    with pytest.raises(InputError, match=r"numbers 1 to 5 may count the 11 lines .* from 0 or from 1"):
        found(timed, [f"frame_{i:05d}.png" for i in range(1, 6)])  # the first of a sequence that ffmpeg counts from 1
    assert_at(found(timed, [f"frame_{i:05d}.png" for i in (9, 10, 11)])[2], 10)
    assert_at(found(timed, ["0000000000.png", "0000000003.png"])[1], 3)  # ten digits, but no Unix time
    assert_at(found(timed, ["0000_cam2.png", "0001_cam2.png"])[1], 1)
    with pytest.raises(InputError, match=r"both a_1\.png and b_1\.png"):
        found(timed, ["a_1.png", "b_1.png", "c_0.png"])


def test_times_in_other_units_and_behind_other_words(tmp_path: Path) -> None:
    start = 1403636579.763555527
    given = write_trajectory(tmp_path / "ns.txt", [(start + i) * 1e9 for i in range(3)], [0, 1, 2])
    assert_at(found(given, [f"{round((start + 1) * 1e9)}.png"])[0], 1)
    assert_at(found(given, [f"frame_{start + 2:.6f}.png"])[0], 2)


def test_our_own_trajectories_of_pictures_come_back(tmp_path: Path) -> None:
    scene = make_scene(4)
    names = [f"img_{i}.jpg" for i in (1, 2, 3, 5)]
    scene = replace(scene, sources=tuple(replace(s, name=n) for s, n in zip(scene.sources, names, strict=True)))
    given = read_given(export(scene, tmp_path / "out", ["trajectory"]) / "trajectory_tum.txt")
    for pose, true in zip(found(given, names), scene.cam_from_world, strict=True):
        np.testing.assert_allclose(pose, true, atol=1e-6)
    with pytest.raises(InputError, match="from 0 to 3, and 2 are here"):
        found(given, names[:2])


def test_what_matches_nothing_and_what_is_not_a_trajectory(tmp_path: Path) -> None:
    given = write_trajectory(tmp_path / "poses.txt", [10.0, 10.1])
    with pytest.raises(InputError, match=r"from 10\.000 to 10\.100; looked for video frames from 0\.000"):
        found(given, ["a.png", "b.png"], [0.0, 0.5])
    with pytest.raises(InputError, match="several videos"):
        found(given, ["a.png", "b.png"], [10.0, 10.0])
    with pytest.raises(InputError, match="several videos"):
        found(given, ["a_000001.png", "b_000001.png"], [10.0, 10.1])
    for text, said in (
        ("1 2 3", "3 numbers a line"),
        ("0 0 0 0 0 0 0 0", "no quaternion"),
        ("", "0 numbers"),
        ("0 0 0 0 0 0 0 x", "could not convert"),
    ):
        (tmp_path / "bad.txt").write_text(text)
        with pytest.raises(InputError, match=said):
            read_given(tmp_path / "bad.txt")


def test_the_real_one_is_camera_to_world(data_dir: Path) -> None:
    path = data_dir / "video" / "office_walk_poses_tum.txt"
    row = np.loadtxt(path)[37]
    pose = found(read_given(path), ["office_walk_000037.png"], [3.7])[0]
    assert pose is not None
    np.testing.assert_allclose(np.linalg.inv(pose)[:3, 3], row[1:4], atol=1e-9)
    turn = matrix_from_quaternion(torch.from_numpy(row[[7, 4, 5, 6]])).numpy()
    np.testing.assert_allclose(np.linalg.inv(pose)[:3, :3], turn, atol=1e-6)


def test_whole_seconds_of_a_longer_recording_are_no_numbers_of_frames(tmp_path: Path) -> None:
    """Of 61 poses in 60 seconds, frames at 0 to 56 s; numbers 0 and 60 are among them."""
    given = write_trajectory(tmp_path / "poses.txt", [float(i) for i in range(61)])
    times_s: list[float | None] = [2.0 * i for i in range(29)]
    poses = found(given, [f"film_{60 * i:06d}.png" for i in range(29)], times_s)
    for pose, time_s in zip(poses, times_s, strict=True):
        assert time_s is not None
        assert_at(pose, time_s)
