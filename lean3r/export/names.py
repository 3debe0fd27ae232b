"""File names: from whatever a picture is called to names that every file system and tool accepts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

MAX_BYTES = 120  # far below the 255 of common file systems: suffixes and temporary names still fit
# Devices of Windows, whatever follows the first dot.
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]) *(\..*)?", re.IGNORECASE)
_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*\u2028\u2029]+')


def encodable(text: str) -> str:
    """`text` with bytes that are not UTF-8 (lone surrogates) spelt out, so that any tool can store it."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def safe_stems(names: Iterable[str]) -> list[str]:
    """One file stem per name: no separators or control characters, at most MAX_BYTES bytes of UTF-8, never
    empty, no device of Windows (CON, NUL), and unique even where upper and lower case are the same."""
    taken: set[str] = set()
    stems = []
    for index, name in enumerate(names):
        # Dots at the ends would hide the file, or vanish on some systems, blanks as well.
        stem = _UNSAFE.sub("_", encodable(PurePosixPath(name.replace("\\", "/")).stem)).strip(" .")
        stem = f"_{stem}" if _RESERVED.fullmatch(stem) else stem
        stem = _shorten(stem, MAX_BYTES) or f"view_{index:04d}"
        unique, count = stem, 2
        while unique.casefold() in taken:
            tail = f"_{count}"
            unique, count = _shorten(stem, MAX_BYTES - len(tail)) + tail, count + 1
        taken.add(unique.casefold())
        stems.append(unique)
    return stems


def unique_names(names: Iterable[str]) -> list[str]:
    """The names as they are, except that a repeated one gets `_2`, `_3`, ... before its suffix."""
    taken: set[str] = set()
    result = []
    for name in map(encodable, names):
        path = PurePosixPath(name)
        unique, count = name, 2
        while unique in taken:
            unique, count = name.removesuffix(path.suffix) + f"_{count}{path.suffix}", count + 1
        taken.add(unique)
        result.append(unique)
    return result


def _shorten(text: str, limit: int) -> str:
    """At most `limit` bytes of UTF-8, cut between characters."""
    return text.encode("utf-8")[:limit].decode("utf-8", "ignore").rstrip(" .")
