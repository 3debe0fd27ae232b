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
from typing import Any

from lean3r.view.packing import Package

_IMPORT = re.compile(r'^import\s.*?from "\./([\w-]+\.js)";\n', re.DOTALL | re.MULTILINE)
_EXPORT = re.compile(r"^export (?=const|function|class|async)", re.MULTILINE)


def one_file(packages: Sequence[Package], aligned: str = "") -> Iterator[bytes]:
    """The pieces of a page that holds everything and asks for nothing."""
    given = {"results": [package.header for package in packages], "aligned": aligned}
    before, after = _page(given, "'none'")
    yield before.encode()
    for number, package in enumerate(packages):
        for name in package.names():
            if content := package.part(name):
                head = f'<script type="text/plain" id="part-{number}-{name}">'
                yield head.encode() + base64.b64encode(content) + b"</script>\n"
    yield after.encode()


def live_page() -> bytes:
    """The page of a server, which asks it for results."""
    return "".join(_page({"live": True}, "'self'")).encode()


def _page(given: Mapping[str, Any], may_ask: str) -> tuple[str, str]:
    """The page up to the place of the parts, and from there on."""
    script, style = script_text(), _text("style.css")
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        f"connect-src {may_ask}; base-uri 'none'; form-action 'none'"
    )
    # "<" could end the element, or begin a comment in it.
    about = json.dumps(given, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    text = _text("index.html")
    text = text.replace("<!-- policy -->", f'<meta http-equiv="Content-Security-Policy" content="{policy}">')
    text = text.replace("<!-- style -->", f"<style>{style}</style>")
    before, _, after = text.partition("<!-- data -->")
    after = after.replace("<!-- script -->", f'<script type="module">{script}</script>')
    return f'{before}<script type="application/json" id="given">{about}</script>\n', after.lstrip("\n")


@cache
def script_text() -> str:
    """All scripts as one module: each stands behind those that it imports, and names are unique."""
    parts: dict[str, str] = {}

    def take(name: str) -> None:
        if name not in parts:
            text = _text(name)
            for needed in _IMPORT.findall(text):
                take(needed)
            parts[name] = _EXPORT.sub("", _IMPORT.sub("", text))

    take("main.js")
    return "\n".join(parts.values())


@cache
def _text(name: str) -> str:
    return (files("lean3r.view") / "page" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
