"""Two models on the same scenes: figures of every scene, and the interval of the mean difference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lean3r.data.base import SceneBatch
from lean3r.eval.synthetic import score_scenes
from lean3r.models.base import Backbone
from lean3r.pipeline.reconstruct import predict

KEYS = ("auc5", "auc15", "auc30", "abs_rel")
DRAWS = 4_000


def per_scene(model: Backbone, batches: Sequence[SceneBatch]) -> dict[str, list[float]]:
    """KEYS for each scene, in per cent."""
    scores = [score_scenes(lambda views: predict(model, views), [batch]) for batch in batches]
    return {key: [round(score[key], 3) for score in scores] for key in KEYS}


def difference(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> dict[str, float]:
    """Mean of ours - theirs [runs, scenes], and its 95 per cent interval by drawing scenes, and runs, with replacement.

    Each scene is compared with itself; the runs of both sides are independent of each other.
    """
    a, b, rng = np.asarray(ours, float), np.asarray(theirs, float), np.random.default_rng(0)

    def drawn(values: np.ndarray, scenes: np.ndarray) -> np.ndarray:
        runs = rng.integers(0, len(values), (DRAWS, len(values)))
        return values[runs[:, :, None], scenes[:, None, :]].mean((1, 2))

    scenes = rng.integers(0, a.shape[1], (DRAWS, a.shape[1]))
    low, high = np.percentile(drawn(a, scenes) - drawn(b, scenes), [2.5, 97.5])
    return {"mean": round(float(a.mean() - b.mean()), 3), "low": round(float(low), 3), "high": round(float(high), 3)}
