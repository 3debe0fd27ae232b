"""Which steps count: those with a finite loss and gradient whose gradient does not explode."""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import TypedDict

from lean3r.errors import LeanError
from lean3r.train.config import TrainConfig

WINDOW = 100  # norms of counted steps that the median is taken of
FEWEST = 10  # norms that a median needs to be trusted


class GuardState(TypedDict):
    """What a checkpoint keeps of a guard."""

    skipped: int
    bad_in_row: int
    norms: list[float]


class StepGuard:
    """Judges each step by its loss and gradient norm; the same on all processes, since both are averages of all."""

    def __init__(self, config: TrainConfig):
        self._factor, self._limit, self._limit_in_row = (
            config.explode_factor,
            config.skip_limit,
            config.skip_limit_in_row,
        )
        self._norms: deque[float] = deque(maxlen=WINDOW)
        self.skipped = self.in_row = 0

    def problem(self, loss: float, norm: float) -> str:
        """Why the step must be skipped, which is counted; "" if it is sound."""
        typical = median(self._norms) if len(self._norms) >= FEWEST else math.inf
        if not (math.isfinite(loss) and math.isfinite(norm)):
            found = f"not finite: loss {loss}, gradient norm {norm}"
        elif self._factor and norm > self._factor * typical:
            found = (
                f"exploded: gradient norm {norm:.4g}, {norm / max(typical, 1e-30):.0f} times the median {typical:.4g}"
            )
        else:
            self._norms.append(norm)
            self.in_row = 0
            return ""
        self.skipped += 1
        self.in_row += 1
        return found

    def check_limits(self, step: int, why: str) -> None:
        """LeanError when too many steps were skipped, in a row or in all."""
        advice = (
            f"the last at step {step}: {why}. Look at its samples (events.jsonl), or start again with a lower "
            "learning rate"
        )
        if self.in_row >= self._limit_in_row:
            raise LeanError(f"{self.in_row} steps in a row were skipped (skip_limit_in_row), {advice}.")
        if self.skipped >= self._limit:
            raise LeanError(f"{self.skipped} steps of the run were skipped (skip_limit), {advice}.")

    def forget(self) -> None:
        """Begin a new median: another stage has other norms."""
        self._norms.clear()

    def state(self) -> GuardState:
        """What a resumed run needs."""
        return {"skipped": self.skipped, "bad_in_row": self.in_row, "norms": list(self._norms)}

    def restore(self, state: GuardState) -> None:
        """Take over what `state` gave."""
        self.skipped, self.in_row = state["skipped"], state["bad_in_row"]
        self._norms.clear()
        self._norms.extend(state["norms"])
