"""JSON from elsewhere -> plain values; ValueError if the text is not JSON, or is nested too deeply."""

from __future__ import annotations

import json
from typing import Any

MAX_DEPTH = 64  # far beyond any format read here, far below what Python's own stack takes


def parse_json(text: str | bytes) -> Any:
    """The values of a JSON text (bytes: UTF-8, perhaps with a byte order mark). ValueError says what is wrong."""
    try:
        values = json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels") from None
    level = [values] if isinstance(values, dict | list) else []
    for _ in range(MAX_DEPTH + 1):
        if not level:
            return values
        inner = (value for each in level for value in (each.values() if isinstance(each, dict) else each))
        level = [value for value in inner if isinstance(value, dict | list)]
    raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
