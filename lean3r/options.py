"""Options declared once, with type, default and help text; calls, the command line and records derive from them."""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Callable, Hashable, Iterable
from dataclasses import Field, dataclass, field
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Protocol, Union, get_args, get_origin

from lean3r.errors import UsageError

UNIONS = (UnionType, Union)  # of types, and of types and choices


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
    """Declare a field of an options class, with its default and its help text.

    On the command line, `metavar` names the value, `aliases` are further names (`--interval`), and `name` is the
    option's name if it differs from the field's. `parse` reads a value that is not a number, text, path or fixed
    choice; its ValueError says what is wrong.
    """
    metadata = {"help": text, "metavar": metavar, "aliases": aliases, "name": name, "parse": parse}
    return field(default=default, metadata=metadata)


def options_of(options: Options | type[Options]) -> dict[str, Field[Any]]:
    """The fields of an options class that the user may choose, by their names on the command line (`_` for `-`)."""
    chosen = [f for f in dataclasses.fields(options) if "help" in f.metadata]
    return {f.metadata["name"] or f.name: f for f in chosen}


def type_of(option: Field[Any], group: type) -> Any:
    """The declared type of a field of an options class; NameError if only type checkers know a name in it."""
    names = vars(sys.modules[group.__module__]) | vars(typing)
    return eval(str(option.type), names)  # annotations are text


def check_types(options: Options) -> None:
    """Raise UsageError for the first field whose value is not of the declared type, or not one of the named choices."""
    for each in dataclasses.fields(options):
        try:
            kind = type_of(each, type(options))
        except NameError:  # a class that is not imported just to check an option
            continue
        value = getattr(options, each.name)
        if not _fits(value, kind):
            raise UsageError(f"{each.metadata.get('name') or each.name} is {value!r}; expected {_describe(kind)}.")


def _fits(value: object, kind: Any) -> bool:
    """Whether a value is of a type; numbers may be NumPy's, and any sequence serves as a tuple."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in UNIONS:
        return any(_fits(value, part) for part in args)
    if origin is Literal or kind is bool:
        return isinstance(value, Hashable) and value in (args or (True, False))
    if origin is not None:
        if isinstance(value, str) or not isinstance(value, Iterable):
            return False
        return origin is not tuple or all(_fits(part, args[0]) for part in value)
    return isinstance(value, {int: Integral, float: Real}.get(kind, kind)) and not isinstance(value, bool)


def _describe(kind: Any) -> str:
    """A type in words."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in UNIONS:
        *first, last = map(_describe, args)
        return f"{', '.join(first)} or {last}"
    if origin is Literal:
        return f"one of {', '.join(args)}"
    if origin is not None:
        return "a sequence of whole numbers" if int in args else "a sequence of numbers"
    return {int: "a whole number", float: "a number", bool: "True or False", str: "a text", Path: "a path"}.get(
        kind, "None" if kind is NoneType else kind.__name__
    )


def as_record(*groups: Options) -> dict[str, Any]:
    """Chosen options as JSON-ready values by their names, for config.toml."""
    return {name: _plain(getattr(group, f.name)) for group in groups for name, f in options_of(group).items()}


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # NumPy
        value = value.tolist()
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value) if isinstance(value, Path) else str(getattr(value, "origin", value))


def check_seed(seed: int | None) -> None:
    """Raise UsageError unless a seed has at most 32 bits, the range that every generator takes."""
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
        check_types(self)
        if not 0 <= self.conf_percentile < 100:
            raise UsageError(f"conf_percentile is {self.conf_percentile}; expected 0 or more and less than 100.")
        if self.max_points < 1:
            raise UsageError(f"max_points is {self.max_points}; expected at least 1.")
