"""Frames of a video: two models side by side, and features that are kept between windows."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lean3r.colmap_library import pycolmap
from lean3r.inputs.pictures import Pictures
from lean3r.refine import (
    KnownCameras,
    RefineOptions,
    adjust,
    ahead,
    aside,
    features,
    film_lenses,
    matching,
    overlay,
    run,
    separate,
    settle,
    worker,
)
from lean3r.refine.built import Built
from lean3r.refine.job import PICTURES, Answer, Group, Job
from lean3r.refine.kept import Kept
from lean3r.stream.pictures import Recent
from lean3r.types import Source

sys.path.insert(0, str(Path(__file__).parent))
import scenes

POSES = scenes.arc(11, 0.22)
ZOOM = np.interp(np.arange(11), [0, 3, 7, 10], [1, 1, 1.4, 1.4])


def window(first: int, last: int, folder: Path, kept: Path | None = None, focals: Iterable[float] = ()) -> Job:
    """The job of some frames, in a folder; `focals` of a lens that zooms."""
    (folder / "files").mkdir(parents=True)
    scenes.write(POSES[first:last], folder / "files", focals=focals or repeat(scenes.FOCAL))
    scene = scenes.scene(POSES[first:last])
    of_video = [replace(source, timestamp_s=index / 10) for index, source in enumerate(scene.sources)]
    pictures = Pictures(folder / "files")
    pictures.kept = kept
    options = RefineOptions(features=300)
    return run.prepare(replace(scene, sources=tuple(of_video)), pictures, options, KnownCameras(), None, folder)


def with_matches(job: Job, folder: Path) -> Path:
    """A database of the features and matches of a job in a folder."""
    database, store = folder / "database.db", Kept(job, folder, features.FINE)
    features.detect(job, folder, database, features.FINE, store)
    matching.match(job, folder, database, store)
    return database


def test_frames_of_films_are_searched_smaller_than_photos(tmp_path: Path) -> None:
    scene = scenes.scene(POSES[:4])
    large = [replace(source, width=1920, height=1440) for source in scene.sources]
    large[2:] = [replace(source, timestamp_s=index / 10) for index, source in enumerate(large[2:])]
    for side, of_photo, of_frame in ((1600, (1600, 1200), (640, 480)), (320, (320, 240), (320, 240))):
        folder = tmp_path / str(side)
        mixed = replace(scene, sources=tuple(large))
        job = run.prepare(mixed, None, RefineOptions(side=side), KnownCameras(), None, folder)
        for view, size in zip(job.views, (of_photo, of_photo, of_frame, of_frame), strict=True):
            assert (round(1920 * view.scale), round(1440 * view.scale)) == size
            assert view.file is not None and (job.groups[view.group].width, job.groups[view.group].height) == size
            assert Image.open(folder / PICTURES / view.file).size == size


def solved(job: Job, folder: Path) -> Answer:
    worker.solve(job, folder)
    answer = Answer.read(folder)
    assert answer is not None and answer.trusted.all()
    return answer


def test_places_that_share_no_match_give_no_model_where_they_must_meet(tmp_path: Path) -> None:
    job = window(0, 6, tmp_path / "one")
    assert matched(replace(job, meeting=3), tmp_path / "one")
    job = window(0, 6, tmp_path / "two")
    other = sorted((tmp_path / "two" / PICTURES).rglob("*.bmp"))[3:]
    for index, file in enumerate(other):  # the last three show another place
        Image.fromarray(scenes.photograph(POSES[index], seed=1)[0]).convert("L").save(file)
    assert not matched(replace(job, meeting=3), tmp_path / "two")
    (tmp_path / "two" / "again").mkdir()
    (tmp_path / "two" / PICTURES).rename(tmp_path / "two" / "again" / PICTURES)
    assert matched(job, tmp_path / "two" / "again")


def matched(job: Job, folder: Path) -> bool:
    worker.solve(job, folder)
    return Answer.read(folder) is not None


def test_frames_that_windows_share_are_searched_and_matched_once_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    solved(window(0, 7, tmp_path / "first", kept), tmp_path / "first")
    assert searched(kept) == 7
    counts: list[tuple[int, int]] = []
    nearest, detect = matching.mutual_nearest, features.pycolmap.extract_features

    def counting(*descriptors: np.ndarray) -> np.ndarray:
        counts[-1] = counts[-1][0], counts[-1][1] + 1
        return nearest(*descriptors)

    def detecting(database: Path, *arguments: object, **options: object) -> None:
        with features.pycolmap.Database.open(database) as opened:
            counts.append((opened.num_keypoints_for_image(1), 0))
        detect(database, *arguments, **options)

    monkeypatch.setattr(matching, "mutual_nearest", counting)
    monkeypatch.setattr(features.pycolmap, "extract_features", detecting)
    again = solved(window(4, 11, tmp_path / "again", kept), tmp_path / "again")
    plain = solved(window(4, 11, tmp_path / "plain"), tmp_path / "plain")
    third = solved(window(4, 11, tmp_path / "third", kept), tmp_path / "third")
    (has, new), (has_not, every), (_, none) = counts
    assert has and not has_not and none == 0
    assert new == every - 3, "those of the three frames that both have"
    for answer in (again, third):
        for name in ("cam_from_world", "xyz", "point", "view", "xy", "error_px"):
            np.testing.assert_array_equal(getattr(answer, name), getattr(plain, name))
    assert searched(kept) == 11


def searched(kept: Path) -> int:
    """The number of pictures whose features are kept."""
    return len(list(kept.glob("*.npz")))


def test_frames_that_were_searched_ahead_of_their_window_give_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    job = window(0, 7, tmp_path / "whole", kept)
    scene = scenes.scene(POSES[:7])
    sources = [replace(source, timestamp_s=index / 10) for index, source in enumerate(scene.sources)]
    pictures = Pictures(tmp_path / "whole" / "files")
    ahead.write_job(sources, pictures, RefineOptions(features=300), tmp_path / "ahead")
    assert Job.read(tmp_path / "ahead").kept is None, "nobody asked to keep anything"
    pictures.kept = kept
    search = ahead.Ahead()
    search.begin(sources[:1], pictures, RefineOptions(features=300))  # a single frame has no matches
    assert search.process is None
    search.begin(sources, pictures, RefineOptions(features=300))
    first = search.process
    assert first is not None and first.wait(240) == 0 and searched(kept) == 7
    search.begin(sources, pictures, RefineOptions(features=300))
    assert search.process is first, "these frames are being searched, or were"
    search.begin(sources[1:], pictures, RefineOptions(features=300))
    assert search.process not in (None, first)
    search.end()
    assert search.process is None

    def not_again(*_: object, image_names: list[str], **__: object) -> None:
        found = {path.stem for path in kept.iterdir()}
        names = Kept(job, tmp_path / "whole", features.FINE)._names
        assert {names[name] for name in image_names} <= found

    plain = window(0, 7, tmp_path / "plain")
    expected = solved(plain, tmp_path / "plain")
    monkeypatch.setattr(features.pycolmap, "extract_features", not_again)
    again = solved(job, tmp_path / "whole")
    for name in ("cam_from_world", "xyz", "point", "view", "xy", "error_px"):
        np.testing.assert_array_equal(getattr(again, name), getattr(expected, name))


def test_a_full_disk_ends_no_stream_that_searches_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ahead, "write_originals", full)
    sources = [Source(name, 64, 48, timestamp_s=time_s) for name, time_s in (("a", 0.0), ("b", 0.1))]
    search, pictures = ahead.Ahead(), Recent([], tmp_path)
    search.begin(sources, pictures, RefineOptions())
    assert search.process is None
    search.end()


@pytest.mark.parametrize("is_given", [False, True])
def test_a_lens_that_zooms_gets_a_focal_length_for_each_frame_or_nothing_is_trusted(
    tmp_path: Path, is_given: bool
) -> None:
    focals = scenes.FOCAL * ZOOM
    job = window(0, 11, tmp_path, focals=focals.tolist())
    if is_given:
        params = (scenes.FOCAL, scenes.FOCAL, scenes.WIDTH / 2, scenes.HEIGHT / 2)
        group = Group(scenes.WIDTH, scenes.HEIGHT, "PINHOLE", params, fixed=True)
        job = replace(job, groups=(group,))
    worker.solve(job, tmp_path)
    answer = Answer.read(tmp_path)
    assert answer is not None and answer.report["zooms"]
    if is_given:
        assert not answer.trusted.any() and "zoom" in answer.report["doubts"][0]
        return
    found = np.array([answer.params[camera][0] for camera in answer.camera])
    assert answer.trusted.sum() > 8
    np.testing.assert_allclose(found[answer.has], focals[answer.has], rtol=0.06)


def test_a_point_that_runs_away_does_not_hide_a_zoom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the midst of an adjustment, one may project anywhere."""
    job = window(0, 11, tmp_path, focals=(scenes.FOCAL * ZOOM).tolist())
    monkeypatch.setattr(film_lenses, "LENSES", film_lenses.LENSES[:-1])
    worker.solve(job, tmp_path)
    shared, adjusted = Answer.read(tmp_path), separate.pycolmap.bundle_adjustment
    assert shared is not None

    def astray(model: Any, options: Any) -> None:
        adjusted(model, options)
        point = next(iter(model.points3D.values()))
        seen_by = model.images[point.track.elements[0].image_id]
        point.xyz = seen_by.cam_from_world().inverse() * np.array([1e9, 0, 1e-6])

    monkeypatch.setattr(separate.pycolmap, "bundle_adjustment", astray)
    assert film_lenses.varying_focals(job, shared) is not None


def test_poses_of_the_network_that_misled_a_model_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the frames seem to have different focal lengths, although the lens does not zoom."""
    job, seen = window(0, 11, tmp_path), []

    def varying(job: Job, answer: Answer) -> np.ndarray | None:
        seen.append(answer.report["start"])
        return np.full(11, 300.0) if answer.report["start"] else None

    monkeypatch.setattr(film_lenses, "varying_focals", varying)
    worker.solve(job, tmp_path)
    answer = Answer.read(tmp_path)
    assert answer is not None and answer.trusted.all() and "zooms" not in answer.report
    assert seen[0] and not seen[-1] and not answer.report["start"]


@pytest.mark.parametrize(("count", "are_photos", "step"), [(11, False, 0), (11, False, 6), (6, True, 0)])
def test_what_stands_still_or_runs_through_pictures_that_move_is_no_part_of_the_scene(
    count: int, are_photos: bool, step: int, tmp_path: Path
) -> None:
    job = window(0, count, tmp_path)
    if are_photos:  # with a date, a watermark or a frame
        job = replace(job, sequences=(), pairs=None)
    cells, at = ((12, 110), -400) if step else ((6, 20), 160)  # one that runs is as wide as the picture
    noise = np.random.default_rng(0).integers(0, 255, cells, np.uint8)
    logo = Image.fromarray(noise).resize((7 * cells[1], 7 * cells[0]))
    for number, view in enumerate(job.views):
        picture = Image.open(tmp_path / PICTURES / str(view.file))
        picture.paste(logo, (at + step * number, 180 if step else 190))
        picture.save(tmp_path / PICTURES / str(view.file))
    database = with_matches(job, tmp_path)

    view_of = {image: view for view, image in matching.image_ids(job, database).items()}

    def standing() -> list[np.ndarray]:
        """Pixels of the matches that stand still, or run as the logo does, and of the others."""
        with features.pycolmap.Database.open(database) as opened:
            found: list[list[np.ndarray]] = [[], []]
            for pair, index in zip(*opened.read_all_matches(), strict=True):
                a, b = features.pycolmap.pair_id_to_image_pair(pair)
                old, new = (
                    np.asarray(opened.read_keypoints(i))[:, :2][np.asarray(index)[:, n]] for n, i in enumerate((a, b))
                )
                run = np.array([step * (view_of[b] - view_of[a]), 0])
                moves = np.linalg.norm(old + run - new, axis=1) > 1
                found[0].append(old[~moves])
                found[1].append(old[moves])
        return [np.concatenate(part) for part in found]

    still, moving = standing()
    assert len(still) > 250 and np.median(still[:, 1]) > 180
    assert not overlay.drop_overlays(job, database)
    left, others = standing()
    assert len(left) < len(still) / 10
    np.testing.assert_array_equal(others[others[:, 1] < 170], moving[moving[:, 1] < 170])


@pytest.mark.parametrize(("background", "rests"), [(300, True), (20, False)])
def test_what_stands_still_at_a_place_that_few_pictures_show_is_of_a_background_that_rests(
    background: int, rests: bool
) -> None:
    """As on a turntable, beside the thing: 7 of 14 cameras were taken for certain that followed such places. Where
    little stands still, such matches may be of the scene."""
    rng = np.random.default_rng(0)
    usual, rare, thing = (
        rng.uniform(*room, (count, 2)) for room, count in (((0, 64), background), ((80, 96), 3), ((100, 180), 60))
    )
    before = [np.concatenate([usual, *([rare] if pair == 0 else []), thing]) for pair in range(12)]
    after = [old + (np.arange(len(old)) >= len(old) - 60)[:, None] * (20.0, 0.0) for old in before]
    found, is_background = overlay.overlaid(before, after, 240, 200, overlay.LEAST)
    assert is_background == rests
    assert found[0][background : background + 3].tolist() == 3 * [rests]
    assert not any(each[-60:].any() for each in found), "the thing stays"


def test_a_film_within_a_frame_says_that_most_of_the_picture_rests(tmp_path: Path) -> None:
    job = window(0, 8, tmp_path)
    frame = Image.fromarray((255 * scenes.texture(5)[: scenes.HEIGHT, : scenes.WIDTH]).astype(np.uint8))
    for view in job.views:
        film = Image.open(tmp_path / PICTURES / str(view.file)).crop((50, 40, 270, 200))
        framed = frame.copy()
        framed.paste(film, (50, 40))
        framed.save(tmp_path / PICTURES / str(view.file))
    worker.solve(job, tmp_path)
    answer = Answer.read(tmp_path)
    assert answer is not None and "background-rests" in [code for code, _ in answer.report["notes"]]


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


def assert_same(first: Built | None, second: Built | None) -> None:
    assert first is not None and second is not None
    for name in ("cam_from_world", "trusted", "xyz", "point"):
        np.testing.assert_array_equal(getattr(first.answer, name), getattr(second.answer, name))


def test_a_model_from_another_process_is_that_of_this_one(tmp_path: Path) -> None:
    job = window(0, 8, tmp_path)
    database = with_matches(job, tmp_path)
    with pycolmap.Database.open(database) as opened:  # one frame fits badly: it is registered again
        image = matching.image_ids(job, database)[3]
        xy = np.asarray(opened.read_keypoints(image))[:, :2]
        opened.update_keypoints(image, xy + np.random.default_rng(0).normal(0, 0.4, xy.shape))
    matches, mapper = matching.verify_again(job, database), adjust.Mapper(job, database)
    begun = partial(aside.incremental_aside, job, matches, mapper, tmp_path)
    with begun(database) as other:
        theirs = other.made()
        assert theirs is not None and any(settle.loose_frames(job, theirs.answer))
        step = other.settled(theirs, settle.most_again(job))
    model = adjust.incremental_model(job, tmp_path, database)
    assert model is not None
    own = Built.of(job, matches, mapper.polish(model), False)
    assert_same(own, theirs)
    assert own is not None and step == (None, 0)
    assert settle.settled_once(job, matches, mapper, own, settle.most_again(job)) == step
    with pytest.raises(RuntimeError, match="exit code"), begun(tmp_path / "none" / "database.db") as other:
        other.made()


def test_better_models_come_from_another_process_as_they_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = window(0, 8, tmp_path)
    database = with_matches(job, tmp_path)
    matches, mapper = matching.verify_again(job, database), adjust.Mapper(job, database)
    made: list[Built | None] = []

    def once(job: Job, matches: Any, mapper: adjust.Mapper, built: Built, most: int) -> tuple[Built | None, int]:
        moved = mapper.reattach(pycolmap.Reconstruction(built.model), {len(made)})
        made.append(Built.of(job, matches, moved, False))
        return (made[-1], most - 5) if len(made) < 3 else (None, 0)

    monkeypatch.setattr(aside, "settled_once", once)
    monkeypatch.setattr(aside, "end_with_input", lambda: None)
    monkeypatch.setattr(sys, "argv", ["aside", str(tmp_path), str(database)])
    job.write(tmp_path)
    aside.main()
    process: Any = SimpleNamespace(stdout=io.StringIO(capsys.readouterr().out), wait=lambda: 1)
    other = aside.Aside(job, matches, mapper, tmp_path, process)
    first = other.made()
    assert first is not None
    steps = [other.settled(first, 16) for _ in range(3)]
    assert [left for _, left in steps] == [11, 6, 0] and steps[2][0] is None
    for (built, _), there in zip(steps[:2], made[:2], strict=True):
        assert_same(built, there)
    with pytest.raises(RuntimeError, match="exit code 1"):
        other.settled(first, 0)
