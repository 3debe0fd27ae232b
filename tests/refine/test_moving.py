"""Photos in which something large moves by itself, of which a model follows the place or the thing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch
from PIL import Image
from scenes import FOCAL, HEIGHT, WIDTH, arc, look, scene, write

import lean3r
from lean3r.eval.pose_errors import rotation_error_deg
from lean3r.refine import refine, run
from lean3r.refine.attempts import FOLLOWS
from lean3r.refine.job import Answer, Group, Job, View
from lean3r.refine.moving import keep_only, moving

VIEWS = 5
LENS = ("SIMPLE_PINHOLE", (FOCAL, WIDTH / 2, HEIGHT / 2))
COLUMNS, ROWS, THING = 30, 20, 900  # windows of a facade, and points of a thing, which shows more detail
NOWHERE = np.full((VIEWS, 4, 4), np.nan)


@pytest.fixture
def job() -> Job:
    views = tuple(View(0, 1.0, f"{view}.png") for view in range(VIEWS))
    none = np.zeros(VIEWS, bool)
    return Job(views, (Group(WIDTH, HEIGHT, *LENS),), NOWHERE, np.ones((VIEWS, 4)), NOWHERE, none, None, 2000, 1)


def moved() -> np.ndarray:
    """How the thing has moved [S, 4, 4] in each photo."""
    rng = np.random.default_rng(1)
    return np.stack([look(tuple(rng.normal(size=3) * 4), tuple(rng.uniform(-0.8, 0.8, 3))) for _ in range(VIEWS)])


def photograph(folder: Path, motion: np.ndarray | None, repeats: int = 0) -> Path:
    """A database of the matches of all photos: those of a facade, so many of a hundred as `repeats` with the window
    below, and those of a thing before it that has this motion [S, 4, 4] (None: there is none)."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.linspace(-5, 5, COLUMNS), np.linspace(-3, 3, ROWS))
    place = np.stack([x.ravel(), y.ravel(), np.full(x.size, 6.0)], 1)
    place[::3, 2] -= 0.4
    thing = rng.uniform((-0.7, -0.7, 2.7), (0.7, 0.7, 3.3), (0 if motion is None else THING, 3))
    database = folder / "database.db"
    seen, poses = [], arc(VIEWS, 0.3)
    with pycolmap.Database.open(database) as opened:
        camera = opened.write_camera(pycolmap.Camera(model=LENS[0], width=WIDTH, height=HEIGHT, params=LENS[1]))
        for view, pose in enumerate(poses):
            own = pose if motion is None else pose @ motion[view]
            there = np.concatenate([place @ pose[:3, :3].T + pose[:3, 3], thing @ own[:3, :3].T + own[:3, 3]])
            xy = FOCAL * there[:, :2] / there[:, 2:] + (WIDTH / 2, HEIGHT / 2) + rng.normal(size=(len(there), 2)) * 0.3
            image = opened.write_image(pycolmap.Image(name=f"{view}.png", camera_id=camera))
            opened.write_keypoints(image, xy.astype(np.float32))
            seen.append(np.flatnonzero(((xy > 0) & (xy < (WIDTH, HEIGHT))).all(1)))
        for a in range(VIEWS):
            for b in range(a + 1, VIEWS):
                both = np.intersect1d(seen[a], seen[b])
                after = both + COLUMNS * (rng.permutation(len(both)) < repeats * len(both) / 100)
                there = np.isin(after, seen[b])
                opened.write_matches(a + 1, b + 1, np.stack([both, after], 1)[there].astype(np.uint32))
    return database


def answer(poses: np.ndarray) -> Answer:
    none = np.zeros(0)
    report = {"doubts": [None] * VIEWS}
    every = np.ones(VIEWS, bool)
    return Answer(poses, every, LENS[:1], LENS[1:], (0,) * VIEWS, none, none, none, none, none, report)


def test_the_place_and_a_thing_that_moves_are_told_apart(job, tmp_path):
    """By a model of either; and what is left of the matches are those of the other one."""
    database = photograph(tmp_path, moved())
    right = moving(job, answer(arc(VIEWS, 0.3)), database)
    assert right is not None and right.views == list(range(VIEWS)) and not right.is_thing
    wrong = moving(job, answer(arc(VIEWS, 0.3) @ moved()), database)
    assert wrong is not None and wrong.views == list(range(VIEWS)) and wrong.is_thing
    assert all((index[:, 0] < COLUMNS * ROWS).mean() > 0.95 for index in wrong.others.values())
    left = sum(map(len, wrong.others.values()))
    keep_only(wrong.others, database)
    with pycolmap.Database.open(database) as opened:
        assert sum(map(len, opened.read_all_matches()[1])) == left
    assert moving(job, answer(arc(VIEWS, 0.3)), database) is None


@pytest.mark.parametrize("is_thing", [True, False])
def test_a_model_of_a_thing_is_told_by_few_photos_of_the_place(is_thing, job, tmp_path):
    """Two of five, where the thing hides the place in most of them; one that crosses them is not worth a word."""
    database = photograph(tmp_path, moved())
    with pycolmap.Database.open(database) as opened:
        listed = zip(*opened.read_all_matches(), strict=True)
        every = {pycolmap.pair_id_to_image_pair(pair): np.asarray(index) for pair, index in listed}
    rare = {pair: (index[:, 0] < COLUMNS * ROWS) == is_thing for pair, index in every.items()}
    few = [(1, 2), (1, 3), (2, 4)] if is_thing else [(1, 2)]
    keep_only({pair: index[~rare[pair] | (pair in few)] for pair, index in every.items()}, database)
    found = moving(job, answer(arc(VIEWS, 0.3) @ moved() if is_thing else arc(VIEWS, 0.3)), database)
    assert (found is not None) == is_thing
    assert found is None or (found.is_thing and found.views == [0, 1])


@pytest.mark.parametrize("repeats", [0, 30])
def test_repeated_windows_do_not_move(repeats, job, tmp_path):
    assert moving(job, answer(arc(VIEWS, 0.3)), photograph(tmp_path, None, repeats)) is None


def test_what_goes_with_the_camera_is_not_the_place(job, tmp_path):
    """A car's bonnet, or the background of a turntable, however far it spreads."""
    rng = np.random.default_rng(2)
    shaken = np.stack([look(tuple(rng.normal(size=3) * 2), (0, 0, 0)) for _ in range(VIEWS)])
    wide = np.diag([3.2, 0.6, 1.0, 1.0])
    wide[1, 3] = 0.9
    found = moving(job, answer(arc(VIEWS, 0.3)), photograph(tmp_path, np.linalg.inv(arc(VIEWS, 0.3)) @ shaken @ wide))
    assert found is not None and not found.is_thing


def test_photos_of_a_place_with_a_passer_by(tmp_path):
    """Whose shirt gives more matches than all behind: no camera was found, or all were relative to the shirt."""
    poses, rng = arc(6, 0.5), np.random.default_rng(0)
    write(poses, tmp_path)
    shirt = Image.fromarray((255 * rng.random((50, 33))).astype(np.uint8)).resize((113, 170), Image.Resampling.BICUBIC)
    for path in sorted(tmp_path.iterdir()):
        photo = Image.open(path).point(lambda value: 128 + 0.15 * (value - 128))
        worn = shirt.convert("LA").rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC, expand=True)
        at = (int(rng.uniform(20, 300 - worn.width)), int(rng.uniform(10, 230 - worn.height)))
        photo.paste(worn.getchannel("L"), at, worn.getchannel("A"))
        photo.save(path)
    found = refine(scene(poses, off_deg=30.0, off=1.5), lean3r.Pictures(tmp_path))
    assert set(found.registration) == {"fallback"}
    assert [warning["code"] for warning in found.info["warnings"]] == ["moving"]
    both = map(torch.from_numpy, (found.cam_from_world, poses))
    turns = [(each[1:] @ torch.linalg.inv(each[:-1]))[:, :3, :3] for each in both]
    assert rotation_error_deg(*turns).max() < 0.1


def test_what_moves_is_told_where_no_camera_is_certain(tmp_path, monkeypatch):
    """The network's cameras stay, and what was seen in the photos may be why."""
    poses, work = arc(3), run.work
    write(poses, tmp_path)

    def doubting(folder: Path, *limits: float) -> str | None:
        ended, found = work(folder, *limits), Answer.read(folder)
        assert found is not None
        found.with_doubts(range(3), FOLLOWS).with_note("moving", "something moves").write(folder)
        return ended

    monkeypatch.setattr(run, "work", doubting)
    found = refine(scene(poses), lean3r.Pictures(tmp_path))
    assert found.info["refinement"]["status"] == "kept"
    assert [warning["code"] for warning in found.info["warnings"]] == ["moving"]
