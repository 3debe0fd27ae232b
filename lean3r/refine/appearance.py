"""How pictures look as a whole: VLAD vectors of their SIFT descriptors over a small vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WORDS, SAMPLE, ROUNDS = 64, 20_000, 4  # words in the vocabulary


def root(descriptors: np.ndarray) -> np.ndarray:
    """Descriptors [K, 128] so that their distances are those of histograms (RootSIFT)."""
    values = descriptors.astype(np.float32)
    return np.sqrt(values / np.maximum(values.sum(1, keepdims=True), 1e-9))


def vocabulary(of_pictures: Sequence[np.ndarray]) -> np.ndarray | None:
    """Words [WORDS, 128] from the descriptors [K, 128] (of `root`) of pictures; None if they are too few."""
    every = np.concatenate([np.zeros((0, 128), np.float32), *of_pictures])
    if len(every) < WORDS:
        return None
    rng = np.random.default_rng(0)
    sample = every[rng.choice(len(every), min(SAMPLE, len(every)), replace=False)]
    words = sample[:WORDS]
    for _ in range(ROUNDS):
        nearest = _nearest(sample, words)
        words = np.stack([sample[nearest == w].mean(0) if (nearest == w).any() else words[w] for w in range(WORDS)])
    return words


def signature(descriptors: np.ndarray, words: np.ndarray) -> np.ndarray:
    """The vector [WORDS * 128] of a picture with descriptors [K, 128] (of `root`), of length 1; 0 without any. The
    product of two is the likeness of their pictures."""
    total = np.zeros_like(words)
    nearest = _nearest(descriptors, words)
    np.add.at(total, nearest, descriptors - words[nearest])
    total /= np.sqrt(np.linalg.norm(total, axis=1, keepdims=True)) + 1e-9
    return total.ravel() / (np.linalg.norm(total) + 1e-9)


def _nearest(descriptors: np.ndarray, words: np.ndarray) -> np.ndarray:
    return np.argmax(descriptors @ words.T - 0.5 * (words**2).sum(1), axis=1)
