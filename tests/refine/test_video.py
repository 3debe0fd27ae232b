"""Frames of a video: two models side by side, and features that are kept between windows."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lean3r.inputs.pictures import Pictures
from lean3r.refine import KnownCameras, RefineOptions, adjust, aside, features, matching, run, worker
from lean3r.refine.job import PICTURES, Answer, Job
from lean3r.refine.kept import Kept

sys.path.insert(0, str(Path(__file__).parent))
import scenes

POSES = scenes.arc(11, 0.22)


def window(first: int, last: int, folder: Path, kept: Path | None = None) -> Job:
    """The job of some frames, in a folder."""
    (folder / "files").mkdir(parents=True)
    scenes.write(POSES[first:last], folder / "files")
    scene = scenes.scene(POSES[first:last])
    of_video = [replace(source, timestamp_s=index / 10) for index, source in enumerate(scene.sources)]
    pictures = Pictures(folder / "files")
    pictures.kept = kept
    options = RefineOptions(features=300)
    return run.prepare(replace(scene, sources=tuple(of_video)), pictures, options, KnownCameras(), None, folder)


def solved(job: Job, folder: Path) -> Answer:
    worker.solve(job, folder)
    answer = Answer.read(folder)
    assert answer is not None and answer.trusted.all()
    return answer


def test_frames_that_windows_share_are_searched_and_matched_once_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    solved(window(0, 7, tmp_path / "first", kept), tmp_path / "first")
    assert len(list(kept.iterdir())) == 7
    given: list[int] = []
    recalled = Kept.recall_matches

    def counting(self: Kept, database: Path, pairs: list[tuple[str, str]]) -> None:
        recalled(self, database, pairs)
        with features.pycolmap.Database.open(database) as opened:
            given.extend((opened.num_keypoints() > 0, opened.num_matched_image_pairs()))

    monkeypatch.setattr(Kept, "recall_matches", counting)
    again = solved(window(4, 11, tmp_path / "again", kept), tmp_path / "again")
    assert given == [True, 3]  # those of the three frames that both have
    plain = solved(window(4, 11, tmp_path / "plain"), tmp_path / "plain")
    for name in ("cam_from_world", "xyz", "point", "view", "xy", "error_px"):
        np.testing.assert_array_equal(getattr(again, name), getattr(plain, name))
    assert len(list(kept.iterdir())) == 11


def test_features_are_those_of_the_pixels_and_the_last_ones_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    job = window(0, 2, tmp_path, kept)
    search = partial(features.detect, job, tmp_path)
    search(tmp_path / "a.db", features.COARSE, Kept(job, tmp_path, features.COARSE))
    Kept(job, tmp_path, features.COARSE).keep(tmp_path / "a.db")
    first, second = (tmp_path / PICTURES / str(view.file) for view in job.views)
    second.write_bytes(first.read_bytes())  # another picture under the same name
    monkeypatch.setattr("lean3r.refine.kept.MOST", 1)
    store = Kept(job, tmp_path, features.COARSE)
    search(tmp_path / "b.db", features.COARSE, store)
    assert len(set(map(len, matching.read_matches(job, tmp_path / "b.db").keypoints))) == 1
    store.keep(tmp_path / "b.db")
    (left,) = kept.iterdir()
    left.write_bytes(b"not an archive")
    search(tmp_path / "d.db", features.COARSE, Kept(job, tmp_path, features.COARSE))
    left.unlink()
    kept.rmdir()  # a system that tidies up
    store = Kept(job, tmp_path, features.FINE)
    search(tmp_path / "c.db", features.FINE, store)
    store.keep(tmp_path / "c.db")


def test_a_model_from_another_process_is_that_of_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = window(0, 8, tmp_path)
    database, store = tmp_path / "database.db", Kept(job, tmp_path, features.FINE)
    features.detect(job, tmp_path, database, features.FINE, store)
    matching.match(job, tmp_path, database, store, verify=False)
    matching.verify_again(job, database)
    mapper = adjust.Mapper(job, database)
    with aside.incremental_aside(job, tmp_path, database) as second:
        theirs = second(mapper)
    own = adjust.incremental_model(job, tmp_path, database)
    assert own is not None and theirs is not None
    own = mapper.polish(own)
    assert set(own.reg_image_ids()) == set(theirs.reg_image_ids()) and own.num_points3D() == theirs.num_points3D()
    for image_id in own.reg_image_ids():
        poses = [model.images[image_id].cam_from_world().matrix() for model in (own, theirs)]
        np.testing.assert_array_equal(*poses)
    with (
        pytest.raises(RuntimeError, match="exit code"),
        aside.incremental_aside(job, tmp_path, tmp_path / "none" / "database.db") as second,
    ):
        second(mapper)
