"""How long frames take, in constant memory: counts by the logarithm of the time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

LEAST_S, PER_DECADE, DECADES = 1e-5, 50, 9


class Times:
    """Times in seconds, of which quantiles are asked for (to 5 %)."""

    def __init__(self) -> None:
        self._counts = np.zeros(PER_DECADE * DECADES, np.int64)

    def add(self, seconds: float) -> None:
        """One time more."""
        place = int(PER_DECADE * math.log10(max(seconds, LEAST_S) / LEAST_S))
        self._counts[min(place, len(self._counts) - 1)] += 1

    def quantile(self, share: float) -> float:
        """The time that this share does not exceed; 0 without any."""
        total = np.cumsum(self._counts)
        if not total[-1]:
            return 0.0
        place = int(np.searchsorted(total, share * total[-1]))
        return LEAST_S * 10 ** ((place + 0.5) / PER_DECADE)

    @property
    def number(self) -> int:
        """How many there are."""
        return int(self._counts.sum())

    def as_dict(self) -> Mapping[str, Any]:
        """JSON-ready values, in seconds."""
        return {"p50": float(f"{self.quantile(0.5):.3g}"), "p95": float(f"{self.quantile(0.95):.3g}")}
