"""Tables of names: each row says where an object lives, and nothing is imported before it is asked for."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from lean3r.errors import UsageError


class Registry:
    """An explicit table name -> "module:object" of one kind of thing ("model", "exporter", ...)."""

    def __init__(self, kind: str, rows: Mapping[str, str]):
        self.kind = kind
        self._rows = dict(rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def check(self, name: str) -> str:
        """Return `name` if it is a row; raise UsageError with the nearest rows otherwise."""
        if name in self._rows:
            return name
        near = difflib.get_close_matches(name, self._rows, n=3, cutoff=0.5)
        hint = f" Perhaps you meant {' or '.join(near)}." if near else ""
        raise UsageError(f"unknown {self.kind} '{name}'.{hint} Known: {', '.join(self._rows)}.")

    def get(self, name: str) -> Any:
        """Import and return the object of a row."""
        module, _, attribute = self._rows[self.check(name)].partition(":")
        return getattr(importlib.import_module(module), attribute)
