"""Values of files that may hold anything: each of the wanted kind, or a harmless one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def as_map(value: object) -> Mapping[str, Any]:
    """A table; an empty one instead of anything else."""
    return value if isinstance(value, Mapping) else {}


def as_list(value: object) -> list[Any]:
    """A list; an empty one instead of anything else."""
    return list(value) if isinstance(value, list | tuple) else []


def as_number(value: object) -> float | None:
    """A finite number; None instead of anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def as_text(value: object, otherwise: str = "") -> str:
    """A text; `otherwise` instead of anything else."""
    return value if isinstance(value, str) else otherwise


def visible(text: str) -> str:
    """The text with every control sign, and every sign that only changes how others look, as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
