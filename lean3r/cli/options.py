"""How options look in --help."""

from __future__ import annotations

from typing import Any

import tyro


def option(metavar: str | None = None, *aliases: str) -> Any:
    """One option: what its value is called, and its other names. Defaults that say nothing are not shown."""
    return tyro.conf.arg(metavar=metavar, aliases=aliases, help_behavior_hint=_hint)


def _hint(default: str) -> str:
    return "" if default in ("None", "False", "", "[]") else f"(default: {default})"
