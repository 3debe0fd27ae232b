"""Compression from outside: a plan selects blocks by role and says how they change; models do not know about it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from lean3r.compress.tables import PLANS as PLANS
from lean3r.compress.tables import SCHEMES as SCHEMES

if TYPE_CHECKING:
    from lean3r.compress.modes import with_sla as with_sla
    from lean3r.compress.plan import CompressionPlan as CompressionPlan
    from lean3r.compress.plan import resolve_plan as resolve_plan
    from lean3r.compress.quantize import convert as convert
    from lean3r.compress.quantize import prepare as prepare
    from lean3r.compress.removal import remove as remove
    from lean3r.compress.sparsify import compress as compress

_PUBLIC = {
    "CompressionPlan": "plan",
    "resolve_plan": "plan",
    "convert": "quantize",
    "prepare": "quantize",
    "remove": "removal",
    "compress": "sparsify",
    "with_sla": "modes",
}


def __getattr__(name: str) -> object:
    """Import the functions of the room on first use: its tables need no torch."""
    if name not in _PUBLIC:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
