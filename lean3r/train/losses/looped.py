"""The objective of a looped trunk: nano's loss, with a number of loops that varies from step to step."""

from __future__ import annotations

import math
import random
from typing import Protocol

from torch import Tensor

from lean3r.data.base import SceneBatch
from lean3r.errors import UsageError
from lean3r.train.losses.nano import IterativeModel, nano_loss


def loops_at(progress: float, least: int, most: int) -> int:
    """Number of loops of a step: least + round((most - least) * m), m from Beta(2, 1), the same on all processes.

    The draw is a pure function of `progress`, so a resumed run repeats it. Source: DVLT (arXiv 2605.30215), which
    uses 8 to 16 loops.
    """
    if not 1 <= least <= most:
        raise UsageError(f"training with {least} to {most} loops; expected 1 <= least <= most.")
    share = math.sqrt(random.Random(f"{progress!r}").random())
    return least + round((most - least) * share)


class LoopedModel(IterativeModel, Protocol):
    """A model with a settable number of trunk loops."""

    loops: int


def looped_loss(
    model: LoopedModel, batch: SceneBatch, progress: float = 0.0, *, least: int = 1, most: int = 5, full: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """nano_loss of a pass with `loops_at` loops, which includes every loop; `model.loops` is restored afterwards."""
    loops = model.loops
    model.loops = loops_at(progress, int(least), int(most))
    try:
        return nano_loss(model, batch, progress, full=full)
    finally:
        model.loops = loops
