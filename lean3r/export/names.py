"""File names that every file system and tool accepts, from the names of the pictures."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

MAX_BYTES = 120  # common file systems allow 255; this leaves room for suffixes and temporary names
# Device names of Windows, which are reserved with any suffix.
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]) *(\..*)?", re.IGNORECASE)
_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*\u2028\u2029]+')


def encodable(text: str) -> str:
    """`text` with bytes that are not UTF-8 (lone surrogates) written as escapes, so that any tool can store it."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def safe_stems(names: Iterable[str]) -> list[str]:
    """One file stem per name.

    Stems have no separators or control characters, have 1 to MAX_BYTES bytes of UTF-8, are no device names of Windows
    (CON, NUL), and are unique even if case is ignored.
    """
    taken: set[str] = set()
    stems = []
    for index, name in enumerate(names):
        # A leading dot hides the file, and some systems drop dots and spaces at the end.
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
    """The same names, with `_2`, `_3`, ... before the suffix of repeated ones."""
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
    """Cut a text to at most `limit` bytes of UTF-8, between characters."""
    return text.encode("utf-8")[:limit].decode("utf-8", "ignore").rstrip(" .")
