"""Two models on the same scenes: students from their files, figures of every scene, the interval of the mean
difference, and the density of attention."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import lean3r
from lean3r.attention.base import recording
from lean3r.compress import CompressionPlan, compress, prepare
from lean3r.compress.sparsify import stored_plan
from lean3r.data.base import SceneBatch
from lean3r.eval.synthetic import score_scenes
from lean3r.models.base import Backbone
from lean3r.models.checkpoint import read_tensors
from lean3r.pipeline.predict import predict
from lean3r.types import Views

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


def student(dense: Backbone, path: str | Path) -> Backbone:
    """A trained student from a published file, or from the weights of one phase of its run."""
    tensors, metadata = read_tensors(Path(path))
    if stored_plan(metadata) is not None:
        return lean3r.load("nano", weights=str(path))
    plan = CompressionPlan.from_dict(json.loads(metadata["config"])["settings"]["plan"])
    model = (prepare if plan.quantizes else compress)(copy.deepcopy(dense), plan)
    model.load_state_dict(tensors)
    return model.eval()


def density_of(model: Backbone, views: Views) -> float:
    """Mean share of the pairs of tokens that global attention attends to; 1 if nothing is reported."""
    with recording() as log, torch.no_grad():
        model(views)
    found = [r.density for r in log if r.density is not None and r.layout.views == views.images.shape[1]]
    return sum(found) / len(found) if found else 1.0
