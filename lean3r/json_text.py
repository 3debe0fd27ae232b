"""Parse untrusted JSON, with a limit on nesting, and no key twice in one object."""

from __future__ import annotations

import json
from typing import Any

MAX_DEPTH = 64  # far above any format that lean3r reads, far below the limit of Python's stack


def parse_json(text: str | bytes) -> Any:
    """Parse a JSON text (bytes: UTF-8, optionally with a byte order mark); ValueError if it is not JSON or too deep, or
    gives a key twice: which of both values is meant, nobody knows."""
    try:
        values = json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels") from None
    level = [values] if isinstance(values, dict | list) else []
    for _ in range(MAX_DEPTH + 1):
        if not level:
            return values
        inner = (value for each in level for value in (each.values() if isinstance(each, dict) else each))
        level = [value for value in inner if isinstance(value, dict | list)]
    raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"it gives {name[:60]!r} twice in one object")
        values[name] = value
    return values
