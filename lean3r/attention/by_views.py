"""Several mechanisms, one for each range of numbers of views."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from lean3r.attention import ATTENTION
from lean3r.attention.base import Mechanism, Projected
from lean3r.attention.dense import Dense
from lean3r.attention.settings import check_count, format_settings
from lean3r.attention.tokens import view_count
from lean3r.errors import UsageError
from lean3r.types import TokenLayout

Stage = tuple[int, str, Mapping[str, object]]


class ByViews(Mechanism):
    """The last of `stages` whose number of views is reached: (views, mechanism, settings); dense below the first.

    The numbers ascend. Mechanisms need no training: they have no parameters and want no order of tokens. The usual
    stages close the gap of Spark3R's schedule, which leaves up to 100 views dense.

    Source: the stages.
    Time: that of the stage.
    Use: no training, any number of views.
    """

    COMPLETE: ClassVar = (
        {"stages": ((2, "dense", {}), (3, "kv_prune", {"frames": 1, "query_merge": 1}))},
        {"stages": ((1000, "merge", {}),)},
    )
    SMALL: ClassVar = ({"stages": ((2, "kv_prune", {"frames": 2, "query_merge": 1}),)},)

    def __init__(self, stages: Sequence[Stage] = ((2, "merge", {}), (101, "kv_prune", {}))):
        super().__init__()
        if not stages:
            raise UsageError("stages are empty; expected (views, mechanism, settings) of one or more, or `dense`")
        odd = [stage for stage in stages if not isinstance(stage, tuple | list) or len(stage) != 3]
        if odd:
            raise UsageError(
                f"a stage is {odd[0]!r}; expected (views, mechanism, settings), such as (16, 'merge', {{}})"
            )
        self.starts = [check_count("the views of a stage", views) for views, _, _ in stages]
        if self.starts != sorted(set(self.starts)):
            raise UsageError(f"stages start at {self.starts} views; expected ascending numbers")
        self.stages = stages
        self.mechanisms = nn.ModuleList(_stage(name, settings) for _, name, settings in stages)
        self.few = Dense()

    def extra_repr(self) -> str:
        """Shown by repr(model)."""
        return format_settings(self, "stages")

    def forward(self, p: Projected, layout: TokenLayout) -> Tensor:
        """As the stage does, [B, H, N, D]."""
        reached = sum(start <= view_count(p, layout) for start in self.starts)
        return (self.mechanisms[reached - 1] if reached else self.few)(p, layout)


def _stage(name: str, settings: Mapping[str, object]) -> Mechanism:
    """The mechanism of a stage; UsageError if it would have parameters, which grow with the heads, or a window."""
    kind = ATTENTION.get(name)
    known = inspect.signature(kind).parameters
    if not isinstance(settings, Mapping) or not settings.keys() <= known.keys():
        got = sorted(settings.keys() - known.keys()) if isinstance(settings, Mapping) else settings
        raise UsageError(
            f"a stage of {name} has the settings {got!r}; expected a mapping of: {', '.join(known) or 'nothing'}"
        )
    mechanism = None if "heads" in known else kind(**settings)
    if mechanism is None or mechanism.window is not None:
        raise UsageError(f"{name} cannot be a stage; expected a mechanism without parameters and windows")
    return mechanism
