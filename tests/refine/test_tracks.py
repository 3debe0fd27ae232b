"""Points that are followed from frame to frame where features do not match, and what they become in a database."""

from __future__ import annotations

import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from lean3r.colmap_library import pycolmap
from lean3r.inputs.pictures import Pictures
from lean3r.refine import RefineOptions, attempts, features, matching, prepare, tracks
from lean3r.refine.job import MASKS, PICTURES, Job
from lean3r.refine.options import KnownCameras
from lean3r.refine.tracks import Frame, add_tracks, follow

sys.path.insert(0, str(Path(__file__).parent))
import scenes

SIZES = [(240, 180), (180, 240), (241, 179)]
PLANE = np.array([[1.02, -0.03, 6.0], [0.03, 1.01, -9.0], [2e-5, 1e-5, 1.0]])  # from one frame to the next


def wall(width: int, height: int, plane: np.ndarray, seed: int = 0) -> np.ndarray:
    """A painted wall [H, W] as seen after a homography."""
    noise = np.random.default_rng(seed).integers(0, 255, (height + 100, width + 100)).astype(np.uint8)
    painted = Image.fromarray(noise).filter(ImageFilter.GaussianBlur(1.5)).point(lambda v: (v - 128) * 4 + 128)
    shift = np.array([[1, 0, 50], [0, 1, 50], [0, 0, 1.0]])
    inverse = shift @ np.linalg.inv(plane)
    form = (inverse / inverse[2, 2]).ravel()[:8].tolist()
    seen = painted.transform((width, height), Image.Transform.PERSPECTIVE, form, Image.Resampling.BICUBIC)
    return np.asarray(seen, np.float32)


def moved(xy: np.ndarray, plane: np.ndarray = PLANE) -> np.ndarray:
    """Where places [N, 2] are after a homography."""
    there = np.column_stack([xy, np.ones(len(xy))]) @ plane.T
    return there[:, :2] / there[:, 2:]


def walls(size: tuple[int, int]) -> tuple[Frame, Frame, np.ndarray]:
    """Two frames of a wall, and their matches: 20, all in the left third."""
    width, height = size
    xy = np.random.default_rng(1).uniform((10, 20), (width / 3, height - 20), (20, 2))
    frames = Frame(wall(width, height, np.eye(3)), xy), Frame(0.8 * wall(width, height, PLANE) + 20, moved(xy))
    return *frames, np.repeat(np.arange(20)[:, None], 2, axis=1)


def followed(second: Frame) -> np.ndarray:
    """The numbers [N, 2] in two frames of the points that were followed to the second."""
    return np.array([(track[0][1], b) for b, track in second.earlier.items() if track[0][2]], int).reshape(-1, 2)


@pytest.mark.parametrize("size", SIZES)
def test_points_are_followed_where_there_is_no_match(size: tuple[int, int]) -> None:
    first, second, matches = walls(size)
    follow(first, second, 7, matches)
    pairs = followed(second)
    assert len(pairs) > 100 and (first.xy[pairs[:, 0], 0] > size[0] / 3).sum() > 80
    off = np.linalg.norm(second.xy[pairs[:, 1]] - moved(first.xy[pairs[:, 0]]), axis=1)
    assert np.percentile(off, 95) < 0.2 and off.max() < 1.0
    assert len(set(pairs[:, 0])) == len(set(pairs[:, 1])) == len(pairs), "one match each"
    assert {track[0][0] for track in second.earlier.values()} == {7}
    assert [second.earlier[b] for b in range(20)] == [[(7, b, False)] for b in range(20)], "matches stay"


def test_with_many_matches_nothing_is_followed() -> None:
    width, height = SIZES[0]
    xy = np.random.default_rng(1).uniform((10, 20), (width / 3, height - 20), (tracks.WEAK, 2))
    first, second = Frame(wall(width, height, np.eye(3)), xy), Frame(wall(width, height, PLANE), moved(xy))
    follow(first, second, 0, np.repeat(np.arange(len(xy))[:, None], 2, axis=1))
    assert len(first.xy) == len(second.xy) == len(xy) and not len(followed(second))


def test_what_is_not_there_is_not_followed() -> None:
    first, second, matches = walls(SIZES[0])
    second.picture[:, 120:] = wall(*SIZES[0], np.eye(3), seed=5)[:, 120:]  # something else
    first.picture[:60, :] = 90.0  # a wall without paint
    first.allowed = np.ones(first.picture.shape, bool)
    first.allowed[120:] = False  # masked
    follow(first, second, 0, matches)
    found = first.xy[followed(second)[:, 0]]
    assert len(found) > 10
    assert (moved(found)[:, 0] < 124).all() and (found[:, 1] > 55).all() and (found[:, 1] < 121).all()


def test_frames_that_have_nothing_in_common_stay_as_they_are() -> None:
    first, second = (Frame(wall(*SIZES[0], np.eye(3), seed), np.zeros((0, 2))) for seed in (0, 1))
    follow(first, second, 0, np.zeros((0, 2), np.int64))
    blank = Frame(np.full((180, 240), 7.0, np.float32), np.zeros((0, 2)))
    follow(second, blank, 1, np.zeros((0, 2), np.int64))
    assert not second.earlier and not blank.earlier


def video(folder: Path, follows: bool = True) -> Job:
    """A job of four frames of a video."""
    count = 4
    poses = scenes.arc(count, 0.05)
    (folder / "files").mkdir(parents=True)
    scenes.write(poses, folder / "files")
    scene = scenes.scene(poses)
    sources = tuple(replace(source, timestamp_s=i / 10) for i, source in enumerate(scene.sources))
    known = KnownCameras(intrinsics=np.tile(scenes.INTRINSICS, (count, 1, 1)))
    pictures = Pictures(folder / "files")
    pictures.follows = follows
    return prepare.prepare(replace(scene, sources=sources), pictures, RefineOptions(features=300), known, None, folder)


def contents(job: Job, database: Path) -> tuple[list[np.ndarray], dict[tuple[int, int], np.ndarray]]:
    """The keypoints and matches of a database, by views."""
    ids = matching.image_ids(job, database)
    with pycolmap.Database.open(database) as opened:
        found = tracks._read_matches(opened, {image: view for view, image in ids.items()})
        return [np.asarray(opened.read_keypoints(ids[view])) for view in range(len(job.views))], found


def test_a_database_gets_points_behind_its_features_and_matches_over_several_frames(tmp_path: Path) -> None:
    job, database = video(tmp_path), tmp_path / "database.db"
    matching.find(job, tmp_path, database, features.COARSE)
    with pycolmap.Database.open(database) as opened:
        ids = matching.image_ids(job, database)
        few = {pair: index[:20] for pair, index in contents(job, database)[1].items()}
        for (a, b), index in few.items():  # as if the others had not been found
            opened.delete_matches(ids[a], ids[b])
            opened.write_matches(ids[a], ids[b], index.astype(np.uint32))
    keypoints, before = contents(job, database)
    mask = tmp_path / MASKS / f"{job.views[0].file}.png"
    mask.parent.mkdir(parents=True)
    with Image.open(tmp_path / PICTURES / str(job.views[0].file)) as picture:
        width, height = picture.size
    Image.fromarray(np.repeat([[255] * (width // 2) + [0] * (width - width // 2)], height, 0).astype(np.uint8)).save(
        mask
    )
    add_tracks(job, tmp_path, database)
    more, after = contents(job, database)
    for old, new in zip(keypoints, more, strict=True):
        assert len(new) > len(old) and (new[: len(old)] == old).all(), "features stay, and keep their numbers"
    for pair, index in before.items():
        assert (after[pair][: len(index)] == index).all()
        assert len(np.unique(after[pair][:, 0])) == len(np.unique(after[pair][:, 1])) == len(after[pair])
    new = after[0, 1][len(before[0, 1]) :]
    assert len(new) > 20 and (more[0][new[:, 0], 0] <= width // 2).all(), "not where a mask is"
    assert len(after[0, 3]) > len(before.get((0, 3), ())), "tracks reach over frames"


def test_pictures_of_few_frames_are_held_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, database = video(tmp_path), tmp_path / "database.db"
    matching.find(job, tmp_path, database, features.COARSE)
    made: list[weakref.ref[Frame]] = []
    held: list[int] = []

    def of(*what: Any) -> Frame:
        frame = Frame(np.zeros((60, 80), np.float32), what[-1])
        made.append(weakref.ref(frame))
        return frame

    monkeypatch.setattr(Frame, "of", of)
    monkeypatch.setattr(tracks, "follow", lambda *of: held.append(sum(each() is not None for each in made)))
    add_tracks(job, tmp_path, database)
    assert len(made) == 4 and held == [2, 2, 2]


@pytest.mark.parametrize("follows", [False, True])
def test_points_are_followed_if_the_pictures_ask_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, follows: bool
) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(attempts, "add_tracks", lambda job, folder, database: asked.append(folder))
    assert video(tmp_path, follows).follows == follows
    list(attempts.attempts(Job.read(tmp_path), tmp_path, features.COARSE))
    assert asked == [tmp_path] * follows
