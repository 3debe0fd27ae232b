"""Plans by name: functions that return them, with the settings of their sources as defaults."""

from __future__ import annotations

from typing import Any

from lean3r.compress.plan import CompressionPlan, Step


def dense(target: str = "global blocks", **settings: Any) -> CompressionPlan:
    """Softmax attention over everything, explicitly."""
    return CompressionPlan((Step(target, "dense", settings),), "dense")
