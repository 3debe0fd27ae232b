"""Memory budgets: the mildest change that brings the predicted peak of a run below a budget.

Measures come in a fixed order, mildest first: the same results with smaller chunks of views, half-precision numbers,
weights in 8 bits, smaller pictures, fewer pictures. Options that the user gave by name never change.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch

from lean3r.errors import OutOfMemoryError, UsageError
from lean3r.inputs.views import network_size
from lean3r.models.base import Backbone
from lean3r.pipeline.memory import (
    Predictor,
    Setting,
    available_bytes,
    chunked,
    giving_back,
    in_units,
    is_out_of_memory,
    parse_memory,
    used_bytes,
)
from lean3r.pipeline.options import Measure, MemoryOptions
from lean3r.types import Views

MEASURES: tuple[Measure, ...] = get_args(Measure)
CHUNKS = (1 << 26, 1 << 24, 1)  # bytes to try below the default; 1 means one view at a time
SHARES = (0.5, 0.6, 0.7, 0.8, 0.9)  # of the resolution
LEAST_PATCHES = 6  # side of a square with the area of the smallest picture


@dataclass(frozen=True)
class Budget:
    """At most `size` bytes; `allow` is the strongest measure that may be taken.

    `writes` says that exporters run in this process too. `views` and `resolution` (None: the model's own) are the
    expected input when a model is loaded; a run uses its own.
    """

    size: int
    allow: Measure = "views"
    writes: bool = False
    views: int = 2
    resolution: int | None = None

    def __post_init__(self) -> None:
        if self.allow not in MEASURES:
            raise UsageError(f"allow is '{self.allow}'; expected {', '.join(MEASURES)}.")
        if self.size < 1 or self.views < 1:
            raise UsageError(f"a budget of {self.size} bytes for {self.views} views; expected at least 1 of each.")

    @classmethod
    def of(cls, memory: str | int | Budget) -> Budget:
        """The budget for `8GB`, a number of bytes or a Budget; UsageError for anything else."""
        return memory if isinstance(memory, Budget) else cls(parse_memory(memory))

    @classmethod
    def from_options(cls, options: MemoryOptions, views: int, resolution: int | None) -> Budget | None:
        """The budget of a run that writes files, on a number of views; None if memory is not limited."""
        if options.memory is None:
            return None
        return cls(parse_memory(options.memory), options.memory_allow, True, views, resolution)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values for config.toml."""
        return {"bytes": self.size, "allow": self.allow}

    def allows(self, measure: Measure) -> bool:
        """Whether a measure may be taken."""
        return MEASURES.index(measure) <= MEASURES.index(self.allow)


@dataclass(frozen=True)
class Fit:
    """How a run fits into its budget: setting, resolution, predicted peak in bytes, and the changes in words.

    `is_exact` says that the results equal those of a run without a budget.
    """

    budget: Budget
    setting: Setting
    resolution: int
    predicted: int
    changes: tuple[str, ...] = ()
    is_exact: bool = True

    def __str__(self) -> str:
        changes = "; ".join(self.changes) or "nothing changed"
        same = "same results" if self.is_exact else "results change"
        return f"budget {in_units(self.budget.size)}, predicted peak {in_units(self.predicted)}: {changes} ({same})"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values for the manifest; memory in MB of 10^6 bytes."""
        return {
            "budget_mb": round(self.budget.size / 1e6, 1),
            "predicted_mb": round(self.predicted / 1e6, 1),
            "chunk_bytes": self.setting.chunk_bytes,
            "dtype": str(self.setting.dtype).removeprefix("torch."),
            "resolution": self.resolution,
            "views": self.setting.views,
            "changes": list(self.changes),
            "same_results": self.is_exact,
        }


def fit(
    predictor: Predictor,
    start: Setting,
    resolution: int,
    budget: Budget,
    *,
    fixed: Sequence[Measure] = (),
    changes: Sequence[str] = (),
    is_exact: bool = True,
) -> Fit:
    """Find the mildest measure on a loaded model that fits: chunks, then resolution, then views.

    `start` is the setting without a budget. The `fixed` measures may not be taken, because the user made the choice.
    `changes` were made when the model was loaded. OutOfMemoryError states the smallest sufficient budget, and the
    measures that it needs.
    """
    patch = predictor.model.patch

    def result(setting: Setting, side: int, *more: str) -> Fit:
        exact = is_exact and setting.views == start.views and side == resolution
        return Fit(budget, setting, side, predictor.peak(setting), (*changes, *more), exact)

    def fits(setting: Setting) -> bool:
        return predictor.peak(setting) <= budget.size

    if fits(start):
        return result(start, resolution)
    small = replace(start, chunk_bytes=CHUNKS[-1])
    if fits(small):
        size = next(size for size in CHUNKS if fits(replace(start, chunk_bytes=size)))
        return result(replace(start, chunk_bytes=size), resolution, chunk_text(size))
    sides = [resolution]
    if budget.allows("resolution") and "resolution" not in fixed:
        least = LEAST_PATCHES * patch
        sides = [side for share in SHARES if least <= (side := round(share * resolution)) < resolution] + sides
    numbers = [start.views]
    if budget.allows("views") and "views" not in fixed and start.views > 1:
        numbers = [*view_counts(start.views), start.views]

    def reduce(side: int, views: int) -> Setting:
        setting = small if side == resolution else shrink(small, side, patch)
        return replace(setting, views=views)

    def describe(side: int, views: int) -> list[str]:
        texts = [chunk_text(small.chunk_bytes)]
        texts += [f"resolution {side} instead of {resolution}"] if side < resolution else []
        return texts + ([f"{views} of {start.views} views"] if views < start.views else [])

    smallest = sides[0], numbers[0]
    if not fits(reduce(*smallest)):
        raise too_small(budget, predictor.peak(reduce(*smallest)), [*changes, *describe(*smallest)], fixed)
    views = start.views
    at = bisect_right(sides, budget.size, key=lambda side: predictor.peak(reduce(side, views)))
    side = sides[max(0, at - 1)]
    if not at:
        at = bisect_right(numbers, budget.size, key=lambda count: predictor.peak(reduce(side, count)))
        views = numbers[at - 1]
    return result(reduce(side, views), side, *describe(side, views))


def too_small(budget: Budget, least: int, measures: Sequence[str], fixed: Sequence[str]) -> OutOfMemoryError:
    """The error for a budget that no allowed measure can meet."""
    unchanged = [*fixed, *(m for m in MEASURES if not budget.allows(m))]
    because = f" (not to be changed: {', '.join(dict.fromkeys(unchanged))})" if unchanged else ""
    return OutOfMemoryError(
        f"{in_units(budget.size)} of memory cannot hold this run, which needs at least {in_units(least)} "
        f"with {'; '.join(measures)}{because}. Give --memory {least // 10**6 + 1}MB or more, or allow more measures."
    )


def view_counts(views: int) -> list[int]:
    """At most 16 numbers of views below `views`, including 1, ascending, in about equal ratios."""
    return sorted({max(1, int(views * 0.8**step)) for step in range(1, 16)} | {1})


def chunk_text(size: int) -> str:
    """A chunk size in words."""
    return "one view at a time" if size == 1 else f"chunks of {in_units(size)}"


def fit_run(model: Backbone, views: Views, resolution: int, budget: Budget, fixed: Sequence[Measure] = ()) -> Fit:
    """`fit` for a loaded model and the views of one scene, which were read at a resolution."""
    device = next(model.parameters()).device
    images = 0 if device.type == "cuda" else views.images.nbytes  # the run includes them
    predictor = Predictor(model, device, lambda: used_bytes(device) - images, writes=budget.writes)
    start = setting_of(model, views, model.origin.dtype)
    changes, is_exact = model.origin.changes, model.origin.is_exact
    return fit(predictor, start, resolution, budget, fixed=fixed, changes=changes, is_exact=is_exact)


def setting_of(model: Backbone, views: Views, dtype: torch.dtype) -> Setting:
    """The setting of a run of a model on the views of one scene."""
    _, count, _, height, width = views.images.shape
    return Setting(count, height, width, model.chunk_bytes, dtype)


@contextmanager
def within(model: Backbone, chosen: Fit | None) -> Iterator[None]:
    """Inside, the model runs with the chosen setting, or unchanged if it is None."""
    if chosen is None:
        yield
        return
    on_cpu = next(model.parameters()).device.type == "cpu"
    with chunked(model, chosen.setting.chunk_bytes), giving_back() if on_cpu else nullcontext():
        yield


def suggest_options(model: Backbone, views: Views, dtype: torch.dtype) -> str:
    """The options with which a run on `views` should fit, after one ran out of memory."""
    failed = replace(setting_of(model, views, dtype), chunk_bytes=1)
    side = round((failed.height * failed.width) ** 0.5)
    halves = f"--max-views {max(1, failed.views // 2)}, --resolution {round(side / 1.5)}"
    device = next(model.parameters()).device
    predictor = Predictor(model, device, lambda: used_bytes(device))
    try:
        needed = predictor.peak(failed)
        limit = min(int(0.7 * needed), available_bytes(device) or needed)
        return _options_within(predictor, failed, limit, side) or halves
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return halves  # the prediction needs memory too


def _options_within(predictor: Predictor, failed: Setting, limit: int, side: int) -> str:
    """The largest number of views, and the largest resolution, within `limit` bytes; empty if there is neither."""
    numbers = view_counts(failed.views) if failed.views > 1 else []
    at = bisect_right(numbers, limit, key=lambda views: predictor.peak(replace(failed, views=views)))
    options = [f"--max-views {numbers[at - 1]}"] if at else []
    sides = [smaller for share in SHARES if (smaller := round(share * side)) >= 3 * predictor.model.patch]
    at = bisect_right(sides, limit, key=lambda smaller: predictor.peak(shrink(failed, smaller, predictor.model.patch)))
    options += [f"--resolution {sides[at - 1]}"] if at else []
    return " or ".join(options)


def shrink(setting: Setting, side: int, patch: int) -> Setting:
    """The setting with pictures of the area of a square of `side` pixels."""
    width, height = network_size(setting.width, setting.height, side, patch)
    return replace(setting, height=height, width=width)
