"""Vectors of how pictures look: pictures of one thing are alike, and hundreds take little memory."""

from __future__ import annotations

import tracemalloc

import numpy as np

from lean3r.refine.appearance import signature, vocabulary


def pictures_of(things: int, each: int, features: int = 300) -> list[np.ndarray]:
    """Descriptors [K, 128] of `each` pictures of every thing in turn: some of what it shows, with noise."""
    rng = np.random.default_rng(0)
    shown = rng.gamma(0.5, 40, (things, 2 * features, 128))
    chosen = [thing[rng.choice(len(thing), features, replace=False)] for _ in range(each) for thing in shown]
    return [np.clip(x + rng.normal(0, 4, x.shape), 0, 255).astype(np.uint8) for x in chosen]


def test_pictures_of_one_thing_are_the_most_alike():
    pictures = pictures_of(things=5, each=2)
    words = vocabulary(pictures)
    assert words is not None
    vectors = np.stack([signature(picture, words) for picture in pictures])
    likeness = vectors @ vectors.T
    np.testing.assert_allclose(np.diag(likeness), 1, rtol=1e-5)
    np.fill_diagonal(likeness, -1)
    assert likeness.argmax(axis=1).tolist() == [(view + 5) % 10 for view in range(10)]


def test_too_few_descriptors_have_no_words():
    assert vocabulary([]) is None
    assert vocabulary([np.ones((20, 128), np.uint8), np.zeros((0, 128), np.uint8)]) is None


def test_the_words_of_hundreds_of_pictures_take_less_memory_than_the_pictures():
    pictures = [np.full((4000, 128), view, np.uint8) for view in range(200)]
    tracemalloc.start()
    try:
        assert vocabulary(pictures) is not None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < sum(picture.nbytes for picture in pictures) / 2
