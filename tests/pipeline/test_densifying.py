"""Stereo as a step of a run: limits on memory."""

from __future__ import annotations

import numpy as np
import torch
from stereo.rendered import scene, truth

from lean3r.pipeline.budget import Budget
from lean3r.pipeline.densifying import bytes_of_stereo, densify_scene
from lean3r.pipeline.memory import used_bytes
from lean3r.pipeline.observer import Observer

CPU = torch.device("cpu")


def test_stereo_that_does_not_fit_into_memory_is_left_out_with_a_warning() -> None:
    before = scene(truth(3, 3, 60, 80))
    needed = used_bytes(CPU) + bytes_of_stereo(60 * 80, 3)
    kept = densify_scene(before, Observer(), CPU, budget=Budget(needed - (1 << 24)))
    assert kept.info["stereo"]["status"] == "kept" and "of memory" in kept.info["stereo"]["reason"]
    assert [warning["code"] for warning in kept.info["warnings"]] == ["stereo-kept"]
    np.testing.assert_array_equal(kept.depth, before.depth)
    measured = densify_scene(before, Observer(), CPU, budget=Budget(needed + (1 << 30)))
    assert measured.info["stereo"]["status"] == "measured"
