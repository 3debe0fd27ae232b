"""Compression from outside: a plan says by role which blocks change and how; no model knows of it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from lean3r.compress.tables import PLANS as PLANS
from lean3r.compress.tables import SCHEMES as SCHEMES

if TYPE_CHECKING:
    from lean3r.compress.plan import CompressionPlan as CompressionPlan
    from lean3r.compress.plan import resolve_plan as resolve_plan
    from lean3r.compress.quantize import convert as convert
    from lean3r.compress.quantize import prepare as prepare
    from lean3r.compress.sparsify import compress as compress

_PUBLIC = {
    "CompressionPlan": "plan",
    "resolve_plan": "plan",
    "convert": "quantize",
    "prepare": "quantize",
    "compress": "sparsify",
}


def __getattr__(name: str) -> object:
    """The verbs of the room, imported when they are first asked for: the tables answer without torch."""
    if name not in _PUBLIC:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
