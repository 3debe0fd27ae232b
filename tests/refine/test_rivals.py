"""Frames that two models of one video have in different places are doubted; models that agree doubt nothing."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import repeat
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from lean3r.refine import compare, settle
from lean3r.refine.built import Built, doubted
from lean3r.refine.job import Answer

FRAMES = 30


def model_of(centres: np.ndarray, trusted: np.ndarray | None = None, score: float = 1.0) -> Answer:
    """Cameras at these places, in a world frame and scale of the model's own."""
    poses = np.tile(np.eye(4), (len(centres), 1, 1))
    turn = Rotation.random(random_state=len(centres)).as_matrix()
    poses[:, :3, :3] = turn
    poses[:, :3, 3] = -(3 * centres + [5, 0, 1]) @ turn.T
    sure = np.ones(len(centres), bool) if trusted is None else trusted
    fits = {"score": score, "view_inliers": [95] * len(centres), "view_matches": [100] * len(centres)}
    nothing, report = np.zeros(0, int), {"doubts": [None if known else "lost" for known in sure], "after": fits}
    return Answer(poses, sure, (), (), (), *[nothing] * 5, report)


def walk() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.cumsum([1, 0.1, 0.2] + 0.3 * rng.normal(size=(FRAMES, 3)), axis=0)


def built(answer: Answer, shares: np.ndarray | None = None) -> Built:
    return Built(answer, cast(Any, None), np.full((FRAMES, FRAMES), np.nan) if shares is None else shares)


def doubts_of(answer: Answer, *others: Answer, video: bool = True) -> list[int]:
    return doubts_of_built(built(answer), *map(built, others), video=video)


def doubts_of_built(answer: Built, *others: Built, video: bool = True, as_found: Built | None = None) -> list[int]:
    job: Any = SimpleNamespace(
        sequences=[list(range(FRAMES))] if video else [],
        held=np.zeros(FRAMES, bool),
        joined=(),
        past=0,
        views=(),
    )
    return np.flatnonzero(~doubted(job, answer, as_found or answer, [as_found or answer, *others]).trusted).tolist()


def shares_of(slipped: bool) -> np.ndarray:
    """Pairs of up to five frames apart fit; across a slip at frame 20 only if there is none."""
    frames = np.arange(FRAMES)
    shares = np.where(np.abs(frames[:, None] - frames) <= 5, 0.95, np.nan)
    across = (frames[:, None] > 20) != (frames > 20)
    return np.where(across & slipped, shares - 0.3, shares)


def test_frames_of_a_slip_are_doubted_with_those_beside_it_that_the_other_model_lacks() -> None:
    right = walk()
    slipped = right.copy()
    slipped[20:] = slipped[20] + 2.5 * (slipped[20:] - slipped[20])
    lost = np.arange(FRAMES) < FRAMES - 3
    for doubts in (
        doubts_of(model_of(right), model_of(slipped)),
        doubts_of(model_of(slipped), model_of(right)),
        doubts_of(model_of(slipped), model_of(right, lost)),
    ):
        assert doubts == list(range(21, FRAMES))


def test_a_slip_of_the_other_model_doubts_nothing_if_the_matches_tell_which_one_slips() -> None:
    right = walk()
    slipped = right.copy()
    slipped[20:] = slipped[20] + 2.5 * (slipped[20:] - slipped[20])
    good, bad = built(model_of(right), shares_of(False)), built(model_of(slipped), shares_of(True))
    assert doubts_of_built(good, bad) == []
    assert doubts_of_built(bad, good) == list(range(21, FRAMES))
    alike = built(model_of(slipped), shares_of(False))
    assert doubts_of_built(good, alike) == doubts_of_built(alike, good) == list(range(21, FRAMES))


def test_other_models_are_compared_with_what_a_model_was_before_its_last_adjustment() -> None:
    """That may move the middle of the lens, and with it the path: of a walk, twelve right frames of 95 for five."""
    right, bend = walk(), np.linspace(-1, 1, FRAMES)[:, None] ** 2
    moved, as_found = built(model_of(right + 40 * bend * [0, 1, 0])), built(model_of(right))
    assert doubts_of_built(moved, as_found) and doubts_of_built(moved, built(model_of(right)), as_found=as_found) == []


def test_frames_between_agreement_and_a_slip_that_the_other_model_lacks_are_doubted() -> None:
    right = walk()
    slipped = right.copy()
    slipped[20:] = slipped[20] + 2.5 * (slipped[20:] - slipped[20])
    lacks = ~np.isin(np.arange(FRAMES), range(12, 24))
    assert doubts_of(model_of(right), model_of(slipped, lacks)) == list(range(12, FRAMES))
    assert doubts_of(model_of(right), model_of(right, lacks)) == []


def test_straight_and_level_walks_are_compared_too() -> None:
    for right in (walk() * [1, 0, 0], walk() * [1, 0, 1]):
        slipped = right.copy()
        slipped[20:] = slipped[20] + 2.5 * (slipped[20:] - slipped[20])
        assert doubts_of(model_of(right), model_of(right)) == []
        assert doubts_of(model_of(right), model_of(slipped)) == list(range(21, FRAMES))


def test_models_that_agree_doubt_nothing_nor_do_small_ones_or_those_of_photos() -> None:
    right = walk()
    near = right + 0.05 * np.random.default_rng(1).normal(size=right.shape)
    assert doubts_of(model_of(right), model_of(near)) == [] == doubts_of(model_of(right))
    wrong = np.random.default_rng(2).normal(size=right.shape)
    assert doubts_of(model_of(right), model_of(wrong, np.arange(FRAMES) < FRAMES // 3)) == []
    assert doubts_of(model_of(right), model_of(wrong), video=False) == []
    assert len(doubts_of(model_of(right), model_of(wrong))) > FRAMES / 2


def test_models_agree_if_the_best_trusts_every_frame_and_none_contests_one() -> None:
    job: Any = SimpleNamespace(sequences=[list(range(FRAMES))], views=range(FRAMES))
    right, slipped = walk(), walk()
    slipped[20:] += 3
    without_one, without_many = np.arange(FRAMES) > 0, np.arange(FRAMES) > FRAMES / 5
    one, other, wrong, short, shorter = (
        built(model_of(centres, trusted, score))
        for centres, trusted, score in [
            (right, None, 2.0),
            (right, None, 1.0),
            (slipped, None, 1.0),
            (right, without_one, 1.0),
            (right, without_many, 1.0),
        ]
    )
    assert settle.agree(job, [one, other])
    assert settle.agree(job, [one, short]), "the frame that only the other one doubts"
    assert settle.agree(job, [built(one.answer, shares_of(False)), built(wrong.answer, shares_of(True))]), "it slips"
    assert not any(settle.agree(job, found) for found in ([], [one], [one, wrong], [one, shorter], [short, short]))
    kinked = model_of(right, None, 3.0)
    kinked.report["after"]["view_inliers"][12:18] = [85] * 6
    assert not settle.agree(job, [one, built(kinked)]), "then it is worth to locate frames again"


def test_models_are_settled_until_they_agree_or_nothing_makes_them_better() -> None:
    job: Any = SimpleNamespace(sequences=[list(range(FRAMES))], views=range(FRAMES))
    right, slipped = walk(), walk()
    slipped[20:] += 3
    one, wrong, mended = (
        built(model_of(centres, None, score)) for centres, score in ((right, 1), (slipped, 2), (right, 3))
    )
    asked: list[Any] = []

    def once(model: Built, most: int) -> tuple[Built | None, int]:
        asked.append(model)
        return (mended, most) if model is wrong and cures else (None, 0)

    cures = True
    assert settle.settle(job, [(one, once), (wrong, once)]) == [one, mended]
    assert asked == [one, wrong], "then they agree"
    asked.clear()
    cures = False
    assert settle.settle(job, [(one, once), (wrong, once)]) == [one, wrong]
    assert asked == [one, wrong], "each is tried once, since the same would come of it again"
    asked.clear()
    assert settle.settle(job, [(one, once), (mended, once)]) == [one, mended] and not asked


def test_frames_are_registered_again_twice_each_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that hardly fits has so many doubted frames that it could take minutes, and gain nothing."""
    job: Any = SimpleNamespace(sequences=[list(range(FRAMES))], views=range(FRAMES))
    mapper: Any = SimpleNamespace(reattach=lambda model, loose: tried.append(loose))
    tried: list[set[int]] = []
    monkeypatch.setattr(settle, "loose_frames", lambda *_: repeat(set(range(FRAMES // 3))))
    monkeypatch.setattr(settle, "pycolmap", SimpleNamespace(Reconstruction=lambda model: model))
    monkeypatch.setattr(settle.Built, "of", lambda *_: None)
    one = built(model_of(walk(), None, 1.0))
    once = partial(settle.settled_once, job, None, mapper)  # type: ignore[arg-type]
    assert settle.settle(job, [(one, once)]) == [one] and len(tried) == 6


@pytest.mark.parametrize("bad", [[26], [22, 26], [14, 22, 26, 28]])
@pytest.mark.parametrize("gain", [0.999, 1.001])
def test_frames_behind_a_past_that_fit_badly_are_registered_again(
    monkeypatch: pytest.MonkeyPatch, bad: list[int], gain: float
) -> None:
    job: Any = SimpleNamespace(past=12, joined=(12, 13, 14), views=range(FRAMES))
    tried: list[set[int]] = []
    mapper: Any = SimpleNamespace(reattach=lambda _, loose: tried.append(loose))
    answer = model_of(walk(), None, 1000.0)
    for frame in [5, *bad]:  # one of the past, too
        answer.report["after"]["view_inliers"][frame] = 88
    one, again = built(answer), built(model_of(walk(), None, 1000.0 * gain))
    monkeypatch.setattr(settle, "pycolmap", SimpleNamespace(Reconstruction=lambda model: model))
    monkeypatch.setattr(settle.Built, "of", lambda *_: again)
    found = settle.refitted(job, None, mapper, one)  # type: ignore[arg-type]
    if len(bad) == 1:
        assert found is one and not tried, "it is blurred, or has something in front of it"
    else:
        assert tried == [set(bad) - {14}] and found is (again if gain > 1 else one)


def test_a_second_model_is_settled_only_if_it_is_more_than_the_first() -> None:
    first, all_frames = model_of(walk(), np.arange(FRAMES) > 2), model_of(walk())
    first.report["after"]["inliers"] = all_frames.report["after"]["inliers"] = 1000
    richer = replace(first, report=first.report | {"after": first.report["after"] | {"inliers": 1100}})
    assert compare.is_promising(all_frames, first) and compare.is_promising(richer, first)
    assert not compare.is_promising(first, first) and not compare.is_promising(first, all_frames)
