"""Skip steps whose loss or gradient is not finite, or whose gradient explodes."""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import TypedDict

from lean3r.errors import LeanError
from lean3r.train.config import TrainConfig

WINDOW = 100  # norms in the running median, without those of skipped steps
ADVICE = "Look at its samples in events.jsonl, or start again with a lower learning rate"
FEWEST = 10  # norms needed before the median is used


class GuardState(TypedDict):
    """The state of a guard in a checkpoint."""

    skipped: int
    bad_in_row: int
    norms: list[float]


class StepGuard:
    """Checks the loss and gradient norm of each step; both are means over all processes, so all processes agree."""

    def __init__(self, config: TrainConfig):
        self._factor, self._limit, self._limit_in_row = (
            config.explode_factor,
            config.skip_limit,
            config.skip_limit_in_row,
        )
        self._norms: deque[float] = deque(maxlen=WINDOW)
        self.skipped = self.in_row = 0

    def problem(self, loss: float, norm: float) -> str:
        """Return the reason to skip this step and count it as skipped; "" if the step is sound."""
        # A median of 0, of steps that had nothing to learn from, says nothing about the others.
        typical = (median(self._norms) if len(self._norms) >= FEWEST else 0.0) or math.inf
        if not (math.isfinite(loss) and math.isfinite(norm)):
            reason = f"not finite: loss {loss}, gradient norm {norm}"
        elif self._factor and norm > self._factor * typical:
            reason = (
                f"exploded: gradient norm {norm:.4g}, {norm / max(typical, 1e-30):.0f} times the median {typical:.4g}"
            )
        else:
            self._norms.append(norm)
            self.in_row = 0
            return ""
        self.skipped += 1
        self.in_row += 1
        return reason

    def check_limits(self, step: int, why: str) -> None:
        """Raise LeanError if too many steps were skipped, in a row or in total."""
        advice = f"the last at step {step}: {why}. {ADVICE}"
        if self.in_row >= self._limit_in_row:
            raise LeanError(f"{self.in_row} steps in a row were skipped (skip_limit_in_row), {advice}.")
        if self.skipped >= self._limit:
            raise LeanError(f"{self.skipped} steps of the run were skipped (skip_limit), {advice}.")

    def check_some(self, steps: int) -> None:
        """Raise LeanError if all steps of a run were skipped: its weights are those that it started from."""
        if steps and self.skipped >= steps:
            raise LeanError(
                f"all {steps} steps of the run were skipped: its weights are those that it started from. {ADVICE}."
            )

    def forget(self) -> None:
        """Start a new median: gradient norms differ between stages."""
        self._norms.clear()

    def state(self) -> GuardState:
        """The state to save in a checkpoint."""
        return {"skipped": self.skipped, "bad_in_row": self.in_row, "norms": list(self._norms)}

    def restore(self, state: GuardState) -> None:
        """Restore a result of `state`."""
        self.skipped, self.in_row = state["skipped"], state["bad_in_row"]
        self._norms.clear()
        self._norms.extend(state["norms"])
