"""Which regions of which views one window of patches attends to, and how dense attention is in every layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from lean3r.attention.base import Mechanism, recording
from lean3r.attention.dense import Dense
from lean3r.attention.probe import capturing
from lean3r.attention.shares import Shares, Window, query_window, shares
from lean3r.compress.linears import sites_of
from lean3r.errors import UsageError
from lean3r.layers.attention import SelfAttention
from lean3r.types import Views


@dataclass(frozen=True)
class Look:
    """What a `window` of view `view` attends to in one `layer` with this `mechanism`.

    `density` is the share of pairs that each global layer attends to, None if its mechanism does not report it.
    `not_in_effect` says why attention is dense in spite of a plan, and what to do; it is empty otherwise.
    """

    layer: str
    mechanism: str
    names: list[str]
    view: int
    window: Window
    shares: Shares
    density: dict[str, float | None]
    not_in_effect: str

    def as_dict(self) -> dict[str, object]:
        """JSON-ready."""
        shared = zip(self.names, self.shares.by_view, strict=True)
        return {
            "layer": self.layer,
            "mechanism": self.mechanism,
            "not_in_effect": self.not_in_effect,
            "query": {"view": self.view, "name": self.names[self.view], "patches": self.window.as_dict()},
            "views": [{"view": i, "name": name, "share": round(share, 6)} for i, (name, share) in enumerate(shared)],
            "special_tokens_share": round(self.shares.special, 6),
            "tokens": self.shares.tokens,
            "tokens_that_hold_90_percent": self.shares.tokens_of_most,
            "density": self.density,
        }


def look(
    model: nn.Module,
    run: Callable[[], object],
    views: Views,
    *,
    plan: str | None = None,
    view: int | None = None,
    at: tuple[float, float] | None = None,
    block: int | None = None,
) -> Look:
    """Record one global layer while `run` applies the network, compressed by the plan called `plan`, to `views`.

    The query is the window of `view` (None: the middle one) around the point `at`, x and y in pixels of the original
    picture (None: its centre), in the `block`-th global layer (None: the last). UsageError for a block, view or point
    that does not exist.
    """
    layers = {site.name: _attention(model, site.name) for site in sites_of(model) if site.role == "global"}
    block = len(layers) - 1 if block is None else block
    if not 0 <= block < len(layers):
        raise UsageError(f"--block is {block}; the model has {len(layers)} global blocks, 0 to {len(layers) - 1}.")
    names = [source.name for source in views.sources]
    view = len(names) // 2 if view is None else view
    if not 0 <= view < len(names):
        raise UsageError(f"--view is {view}; there are {len(names)} views, 0 to {len(names) - 1}.")
    name = list(layers)[block]
    watched = layers[name]
    with torch.no_grad(), recording() as log, capturing(_mechanisms(watched)) as calls:
        run()
    window = query_window(calls[-1].layout, views, view, at)
    distribution, used = shares(calls[-1], window, view), calls[-1].mechanism
    reported = {id(record.mechanism): record.density for record in log}
    density = {key: _density(_parts(layer), reported) for key, layer in layers.items()}
    missed = ""
    if plan is not None and used is watched.short:
        missed = _not_in_effect(plan, distribution.tokens, len(names), watched.dense_below)
    return Look(name, repr(used), names, view, window, distribution, density, missed)


def _attention(model: nn.Module, name: str) -> SelfAttention:
    layer = model.get_submodule(name)
    assert isinstance(layer, SelfAttention)
    if layer.fixed:
        raise UsageError(f"{name} cannot be looked at: {layer.fixed}. Choose another model.")
    return layer


def _mechanisms(layer: SelfAttention) -> list[Mechanism]:
    return [mechanism for mechanism in (layer.mechanism, layer.short) if mechanism is not None]


def _parts(layer: SelfAttention) -> list[Mechanism]:
    parts = [part for mechanism in _mechanisms(layer) for part in mechanism.modules()]
    return [part for part in parts if isinstance(part, Mechanism)]


def _density(mechanisms: list[Mechanism], reported: dict[int, float | None]) -> float | None:
    for mechanism in mechanisms:
        if (density := reported.get(id(mechanism))) is not None:
            return round(density, 6)
    return 1.0 if any(isinstance(mechanism, Dense) for mechanism in mechanisms) else None


def _not_in_effect(plan: str, tokens: int, pictures: int, dense_below: int) -> str:
    enough = math.ceil(dense_below * pictures / tokens)
    return (
        f"plan {plan} is not in effect here: {pictures} pictures have {tokens:,} tokens, and below {dense_below:,} "
        f"attention stays dense, because sparse attention would not be faster. The result shows dense attention. Use "
        f"{enough} pictures or more, a larger --resolution, or a plan of your own with a smaller dense_below."
    )
