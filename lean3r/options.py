"""Options declared once, with type, default and help text; calls, the command line and records derive from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import Field, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from lean3r.errors import UsageError


class Options(Protocol):
    """A frozen dataclass with fields made by `option`; other fields are not options for the user."""

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

    On the command line, `metavar` names its value, `aliases` are further names (`--interval`), and `name` is the
    option's name if it is not the field's. `parse` reads a value that is not a number, text, path or fixed choice; its
    ValueError says what is wrong.
    """
    metadata = {"help": text, "metavar": metavar, "aliases": aliases, "name": name, "parse": parse}
    return field(default=default, metadata=metadata)


def options_of(options: Options | type[Options]) -> dict[str, Field[Any]]:
    """The fields of an options class that the user may choose, by their names on the command line (`_` for `-`)."""
    chosen = [f for f in dataclasses.fields(options) if "help" in f.metadata]
    return {f.metadata["name"] or f.name: f for f in chosen}


def as_record(*groups: Options) -> dict[str, Any]:
    """Chosen options as JSON-ready values by their names, for config.toml."""
    return {name: _plain(getattr(group, f.name)) for group in groups for name, f in options_of(group).items()}


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # of NumPy
        value = value.tolist()
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
    """Which points a cloud has: the least confident `conf_percentile` per cent of the depth values give no points, and
    at most `max_points` are kept. Smooth bright regions at the upper border are taken for sky; they have depth and
    points only if `keep_sky` is set."""

    conf_percentile: float = option(
        20.0, "Make no points from the least confident PERCENT of the depths.", "PERCENT", "--conf-thresh-percentile"
    )
    max_points: int = option(1_000_000, "Keep at most N points in the cloud.", "N", "--num-max-points")
    keep_sky: bool = option(
        False,
        "Keep depth and points of the sky (smooth bright regions at the upper border).",
    )

    def __post_init__(self) -> None:
        if not 0 <= self.conf_percentile < 100:
            raise UsageError(f"conf_percentile is {self.conf_percentile}; expected 0 or more and less than 100.")
        if self.max_points < 1:
            raise UsageError(f"max_points is {self.max_points}; expected at least 1.")
