"""The page: the files of page/ in one text, with results in it or without, under a policy that allows nothing else.

Nothing from a file of the user becomes markup: results are JSON and base64 in elements that are not run, and the
script sets them as text.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from lean3r.view.packing import Package

VIEW = "lean3r.view"
_IMPORT = re.compile(r'^import\s.*?from "\./([\w-]+\.js)";\n', re.DOTALL | re.MULTILINE)
_EXPORT = re.compile(r"^export (?=const|function|class|async)", re.MULTILINE)


def one_file(packages: Sequence[Package], aligned: str = "") -> Iterator[bytes]:
    """The pieces of a page that holds everything and asks for nothing."""
    given = {"results": [package.header for package in packages], "aligned": aligned}
    before, after = _page(given, "connect-src 'none'")
    yield before.encode()
    for number, package in enumerate(packages):
        for name in package.names():
            if content := package.part(name):
                head = f'<script type="text/plain" id="part-{number}-{name}">'
                yield head.encode() + base64.b64encode(content) + b"</script>\n"
    yield after.encode()


def live_page() -> bytes:
    """The page of a server, which asks it for results."""
    return "".join(_page({"live": True}, "connect-src 'self'")).encode()


def own_page(given: Mapping[str, Any], room: str, script_may: str) -> bytes:
    """The viewer on a page of another room: its `page/` adds own.js, where the scripts begin, own.css, and own.html.
    It may ask its server only, and run workers of its own; `script_may` is what its scripts may do besides."""
    extra = _text("own.html", room)
    before, after = _page(given, "connect-src 'self'; worker-src blob:", f" {script_may}", room)
    return (before + extra + after).encode()


def _page(given: Mapping[str, Any], allowed: str, script_may: str = "", room: str | None = None) -> tuple[str, str]:
    """The page up to the place of the parts, and from there on."""
    style = _text("style.css")
    script, style = (
        (script_text(), style) if room is None else (script_text("own.js", room), style + _text("own.css", room))
    )
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'{script_may}; style-src '{_hash(style)}'; img-src data:; "
        f"{allowed}; base-uri 'none'; form-action 'none'"
    )
    text = _text("index.html")
    text = text.replace("<!-- policy -->", f'<meta http-equiv="Content-Security-Policy" content="{policy}">')
    text = text.replace("<!-- style -->", f"<style>{style}</style>")
    before, _, after = text.partition("<!-- data -->")
    after = after.replace("<!-- script -->", f'<script type="module">{script}</script>')
    # "<" could end the element, or begin a comment in it.
    about = json.dumps(given, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'{before}<script type="application/json" id="given">{about}</script>\n', after.lstrip("\n")


@cache
def script_text(first: str = "main.js", room: str = VIEW) -> str:
    """A script and all that it imports, from the page/ of its room or from the viewer's, as one module: each stands
    behind those that it imports, and names are unique."""
    parts: dict[str, str] = {}

    def take(name: str) -> None:
        if name not in parts:
            text = _text(name, room if (_folder(room) / name).is_file() else VIEW)
            for needed in _IMPORT.findall(text):
                take(needed)
            parts[name] = _EXPORT.sub("", _IMPORT.sub("", text))

    take(first)
    return "\n".join(parts.values())


def _folder(room: str) -> Traversable:
    return files(room) / "page"


@cache
def _text(name: str, room: str = VIEW) -> str:
    return (_folder(room) / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
