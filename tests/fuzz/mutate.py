"""Damage: bytes, words and JSON changed at random, by a generator that a case's number seeds."""

from __future__ import annotations

import json
import random
from typing import Any

WORDS = (
    b"0", b"-1", b"1", b"1e308", b"-1e-320", b"nan", b"inf", b"4294967295", b"18446744073709551615", b"9" * 400, b"abc",
    b"", b"1.5", b"\xff\xfe", b"../../x", b"/etc/hostname", b"7 7", b"\0", b"#", b"True",
)  # fmt: skip
INTEGERS = (
    b"\0" * 8,
    b"\xff" * 8,
    b"\xff" * 4,
    b"\xff\xff\xff\x7f",
    b"\0\0\0\0\1\0\0\0",
    b"\0\0\0\0\0\0\xf8\x7f",
    b"\x80",
)
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2**31, 2**63, 10**400, 1e308, 1e-320, float("nan"), float("inf"), "", "abc", "9" * 50,
    "../../x", "/etc/hostname", "x\0y", "\ud800", [], {}, [[]], [0], [None] * 3, {"a": 1}, "x" * 5000,
)  # fmt: skip


def damaged(content: bytes, name: str, rng: random.Random) -> bytes:
    """The content of a file of this name, with one to three changes of a kind that suits it."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        kind = rng.random()
        if name.endswith(".json") and kind < 0.7:
            content = changed_json(content, rng)
        elif name.endswith((".json", ".txt", ".csv", ".traj", ".pincam", "metadata")) and kind < 0.85:
            content = changed_words(content, rng)
        else:
            content = changed_bytes(content, rng)
    return content


def changed_bytes(content: bytes, rng: random.Random) -> bytes:
    """Cut, overwritten, doubled or shortened somewhere."""
    size = len(content)
    if not size:
        return rng.randbytes(rng.randrange(64))
    # Headers decide most: every second change falls into the first bytes.
    at = rng.randrange(size) if rng.random() < 0.5 else rng.randrange(min(size, 200))
    length = min(size - at, rng.choice((1, 2, 4, 16, 200, 4000)))
    what = rng.choice(("cut", "bit", "bit", "integer", "integer", "noise", "zeros", "remove", "repeat", "insert"))
    if what == "cut":
        return content[: rng.choice((0, at, rng.randrange(size)))]
    if what == "bit":
        return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
    if what == "integer":
        value = rng.choice(INTEGERS)
        return content[:at] + value[: size - at] + content[at + len(value) :]
    put = {
        "noise": rng.randbytes(length),
        "zeros": bytes(length),
        "remove": b"",
        "repeat": content[at : at + length] * 2,
        "insert": rng.randbytes(length) + content[at : at + length],
    }[what]
    return content[:at] + put + content[at + length :]


def changed_words(content: bytes, rng: random.Random) -> bytes:
    """A word of a line replaced, removed or added, or a line removed or doubled."""
    lines = content.split(b"\n")
    row = rng.randrange(len(lines))
    words = lines[row].split(b" ")
    at = rng.randrange(len(words))
    what = rng.choice(("replace", "replace", "replace", "remove", "add", "drop line", "repeat line"))
    if what == "replace":
        words[at] = rng.choice(WORDS)
    elif what == "remove":
        del words[at]
    elif what == "add":
        words.insert(at, rng.choice(WORDS))
    lines[row] = b" ".join(words)
    if what == "drop line":
        del lines[row]
    elif what == "repeat line":
        lines.insert(row, lines[row])
    return b"\n".join(lines)


def changed_json(content: bytes, rng: random.Random) -> bytes:
    """A value somewhere in a JSON text replaced, removed, or nested thousands of levels deep."""
    try:
        root = json.loads(content)
    except (ValueError, RecursionError):
        return changed_bytes(content, rng)
    if rng.random() < 0.05:
        opening, closing = rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
        depth = rng.choice((100, 900, 100_000))
        return opening * depth + b"1" + closing * depth
    value = root
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
        if not keys:
            return json.dumps(rng.choice(VALUES)).encode()
        key = rng.choice(keys)
        inner = value[key]
        if not isinstance(inner, dict | list) or not inner or rng.random() < 0.15:
            if rng.random() < 0.25:
                del value[key]
            else:
                value[key] = rng.choice(VALUES)
            return json.dumps(root).encode()
        value = inner
