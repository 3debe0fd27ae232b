"""Plans by name: functions that return them, with the settings of their sources as defaults."""

from __future__ import annotations

from typing import Any

from lean3r.compress.plan import CompressionPlan, Step


def dense(target: str = "global blocks", **settings: Any) -> CompressionPlan:
    """Softmax attention over everything, explicitly."""
    return CompressionPlan((Step(target, "dense", settings),), "dense")


def gsa(target: str = "global blocks", *, dense_below: int = 4096, **settings: Any) -> CompressionPlan:
    """Coarse-to-fine attention of Speed3R: 32 windows of 4 x 4 patches a query window, two gates. Wants training."""
    return CompressionPlan((Step(target, "gsa", settings, dense_below),), "gsa")
