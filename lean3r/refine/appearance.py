"""How pictures look as a whole: VLAD vectors of their SIFT descriptors over a small vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WORDS, SAMPLE, ROUNDS = 64, 20_000, 4  # words in the vocabulary


def vocabulary(of_pictures: Sequence[np.ndarray]) -> np.ndarray | None:
    """Words [WORDS, 128] from the descriptors [K, 128] of pictures; None if they are too few."""
    ends = np.cumsum([0, *map(len, of_pictures)])
    if ends[-1] < WORDS:
        return None
    rng = np.random.default_rng(0)
    # Taken from each picture by itself: those of hundreds as one array of floats would be gigabytes.
    chosen = rng.choice(ends[-1], min(SAMPLE, ends[-1]), replace=False)
    picture = np.searchsorted(ends, chosen, side="right") - 1
    sample = _root(np.stack([of_pictures[of][row] for of, row in zip(picture, chosen - ends[picture], strict=True)]))
    words = sample[:WORDS]
    for _ in range(ROUNDS):
        nearest = _nearest(sample, words)
        words = np.stack([sample[nearest == w].mean(0) if (nearest == w).any() else words[w] for w in range(WORDS)])
    return words


def signature(descriptors: np.ndarray, words: np.ndarray) -> np.ndarray:
    """The vector [WORDS * 128] of a picture with descriptors [K, 128], of length 1; 0 without any. The product of two
    is the likeness of their pictures."""
    values = _root(descriptors)
    total = np.zeros_like(words)
    nearest = _nearest(values, words)
    np.add.at(total, nearest, values - words[nearest])
    total /= np.sqrt(np.linalg.norm(total, axis=1, keepdims=True)) + 1e-9
    return total.ravel() / (np.linalg.norm(total) + 1e-9)


def _root(descriptors: np.ndarray) -> np.ndarray:
    """Descriptors [K, 128] so that their distances are those of histograms (RootSIFT)."""
    values = descriptors.astype(np.float32)
    return np.sqrt(values / np.maximum(values.sum(1, keepdims=True), 1e-9))


def _nearest(descriptors: np.ndarray, words: np.ndarray) -> np.ndarray:
    return np.argmax(descriptors @ words.T - 0.5 * (words**2).sum(1), axis=1)
