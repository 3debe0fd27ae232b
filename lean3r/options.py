"""Options declared once: type, default and help text, from which calls, the command line and records are made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import Field, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from lean3r.errors import UsageError


class Options(Protocol):
    """A frozen dataclass whose fields are made by `option`; fields that are not are no options of the user's."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


def option(
    default: object,
    text: str,
    metavar: str | None = None,
    *aliases: str,
    name: str | None = None,
    parse: Callable[[str], object] | None = None,
) -> Any:
    """A field of an options class: its default and one help text.

    On the command line its value is called `metavar`; it has other names (`aliases`, `--interval`), and may be called
    otherwise than the field (`name`). `parse` reads a value that is no number, text, path or fixed choice; ValueError
    says what is wrong with it.
    """
    told = {"help": text, "metavar": metavar, "aliases": aliases, "name": name, "parse": parse}
    return field(default=default, metadata=told)


def options_of(options: Options | type[Options]) -> dict[str, Field[Any]]:
    """The fields of an options class that the user may choose, by their names on the command line (`_` for `-`)."""
    found = [f for f in dataclasses.fields(options) if "help" in f.metadata]
    return {f.metadata["name"] or f.name: f for f in found}


def recorded(*groups: Options) -> dict[str, Any]:
    """Chosen options as JSON-ready values by their names, for config.toml."""
    return {name: _plain(getattr(group, f.name)) for group in groups for name, f in options_of(group).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value) if isinstance(value, Path) else str(getattr(value, "origin", value))


def check_seed(seed: int | None) -> None:
    """UsageError for a seed that is none of 32 bits, which every generator takes."""
    if seed is not None and not 0 <= seed < 2**32:
        shown = str(seed) if abs(seed) < 10**20 else f"a number of {len(str(abs(seed)))} digits"
        raise UsageError(f"--seed is {shown}; expected 0 to {2**32 - 1}.")


@dataclass(frozen=True, kw_only=True)
class PointOptions:
    """Which points a cloud has: the least confident `conf_percentile` per cent of the depths give none, at most
    `max_points` are kept, and smooth bright regions at the upper border, taken for sky, have depth and points only
    where `keep_sky`."""

    conf_percentile: float = option(
        20.0, "The least confident per cent of the depths give no points.", "PERCENT", "--conf-thresh-percentile"
    )
    max_points: int = option(1_000_000, "At most N points in the cloud.", "N", "--num-max-points")
    keep_sky: bool = option(
        False, "Depth and points for smooth bright regions at the upper border too, which are taken for sky."
    )

    def __post_init__(self) -> None:
        if not 0 <= self.conf_percentile < 100:
            raise UsageError(f"conf_percentile is {self.conf_percentile}; expected 0 or more and less than 100.")
        if self.max_points < 1:
            raise UsageError(f"max_points is {self.max_points}; expected at least 1.")
