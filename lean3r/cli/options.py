"""How options look in --help."""

from __future__ import annotations

from typing import Any

import tyro

from lean3r.errors import UsageError


def option(metavar: str | None = None, *aliases: str) -> Any:
    """One option: what its value is called, and its other names. Defaults that say nothing are not shown."""
    return tyro.conf.arg(metavar=metavar, aliases=aliases, help_behavior_hint=_hint)


def check_seed(seed: int | None) -> None:
    """UsageError for a seed that is none of 32 bits, which every generator takes."""
    if seed is not None and not 0 <= seed < 2**32:
        shown = str(seed) if abs(seed) < 10**20 else f"a number of {len(str(abs(seed)))} digits"
        raise UsageError(f"--seed is {shown}; expected 0 to {2**32 - 1}.")


def _hint(default: str) -> str:
    return "" if default in ("None", "False", "", "[]") else f"(default: {default})"
