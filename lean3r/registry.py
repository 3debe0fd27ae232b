"""Tables of names: each row gives the location of an object, which is imported on first use.

A row is "module:object", or a NamedTuple with that text in `at` and further fields that need no import.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar

from lean3r.errors import UsageError


class Described(Protocol):
    """A row with further fields besides the location of its object."""

    @property
    def at(self) -> str:
        """ "module:object"."""
        ...


Row = TypeVar("Row", bound=str | Described)


class Registry(Generic[Row]):
    """An explicit table name -> row of one kind of thing ("model", "exporter", ...).

    `also` are names without a row that messages offer besides: what stands for a row elsewhere.
    """

    def __init__(self, kind: str, rows: Mapping[str, Row], also: Collection[str] = ()):
        self.kind, self.also = kind, also
        self._rows = dict(rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __getitem__(self, name: str) -> Row:
        return self._rows[self.check(name)]

    def check(self, name: str) -> str:
        """Return `name` if it is a row; otherwise raise UsageError that suggests the nearest names."""
        if name in self._rows:
            return name
        known = [*self._rows, *self.also]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f" Perhaps you meant {' or '.join(near)}." if near else ""
        raise UsageError(f"unknown {self.kind} '{name}'.{hint} Known: {', '.join(known)}.")

    def get(self, name: str) -> Any:
        """Import and return the object of a row."""
        row = self[name]
        module, _, attribute = (row if isinstance(row, str) else row.at).partition(":")
        return getattr(importlib.import_module(module), attribute)
