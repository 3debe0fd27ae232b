"""The contract of causal networks: frames one by one, with a cache of what they saw before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from lean3r.errors import UsageError
from lean3r.layers.frames import CachePolicy
from lean3r.models.base import Backbone
from lean3r.types import Prediction, Views


class Cache(Protocol):
    """What a stream keeps of past frames."""

    @property
    def stored(self) -> int:
        """Frames that it holds, in full or by their memory tokens."""
        ...

    @property
    def bytes(self) -> int:
        """Bytes of all that it holds."""
        ...

    def expected_bytes(self, stored: int, dtype: torch.dtype = torch.float32) -> int:
        """`bytes` once `stored` frames are stored, products in `dtype`, by a formula."""
        ...

    def accept(self) -> None:
        """Store the frame of the last step after all."""
        ...

    def state(self) -> dict[str, Tensor | int]:
        """A copy of what it holds."""
        ...

    def restore(self, state: Mapping[str, Tensor | int], device: torch.device) -> None:
        """Hold what `state` gave; UsageError if it is of other sizes."""
        ...


@runtime_checkable
class CausalModel(Protocol):
    """A Backbone that takes frames one by one. `policy` is its usual one. A stream has at most WIDEST keyframes in its
    window (None: any number). After LONGEST stored frames it begins anew, with the last BRIDGE keyframes (None: as many
    as it has anchors)."""

    WIDEST: int | None
    LONGEST: int
    BRIDGE: int | None
    policy: CachePolicy

    def new_cache(self, policy: CachePolicy, height: int, width: int) -> Any:
        """An empty Cache for pictures of this size; it takes no memory yet."""
        ...

    def step(self, views: Views, cache: Any, *, keep: bool = True, dense: bool = True) -> Prediction:
        """Predict the next frames of a stream [1, S, 3, H, W]: all anchors in the first call, later one frame a call;
        they are stored in a cache of `new_cache` if `keep`."""
        ...


class CausalBackbone(Backbone, CausalModel):  # pyright: ignore[reportGeneralTypeIssues]
    """Both in one, for type hints only."""


def as_causal(model: object) -> CausalBackbone:
    """The model, if it keeps a cache of past frames; UsageError otherwise."""
    if not (isinstance(model, Backbone) and isinstance(model, CausalModel)):
        name = getattr(model, "name", type(model).__name__)
        raise UsageError(f"{name} keeps no cache of past frames; it streams in windows.")
    return cast(CausalBackbone, model)
