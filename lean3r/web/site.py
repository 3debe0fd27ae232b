"""The folder of the page: everything that it needs, to be served by any static file server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any

from lean3r.errors import InputError
from lean3r.export.depth import PALETTE
from lean3r.export.manifest import write_short
from lean3r.models import CARDS
from lean3r.options import PointOptions
from lean3r.view.content import REGISTRATIONS
from lean3r.view.page import own_page, script_text
from lean3r.web.runtime import SCRIPT, WASM, integrity

ROOM, MODEL = "lean3r.web", "nano"
MOST_PHOTOS = 32  # 64 do not fit into the 4 GB that WebAssembly can have
FACTS = re.compile(rb'\{"model": "([\w.-]+)", .{0,400}?"fewest_views": (\d+)')
MAKE = f"lean3r export-model {MODEL} {MODEL}.onnx"
SCRIPT_MAY = "blob: 'wasm-unsafe-eval'"


def check_network(network: bytes, name: str) -> None:
    """InputError unless a file holds nano for few views, as `lean3r export-model` writes it among its properties."""
    found = FACTS.search(network)
    if found is None:
        raise InputError(f"{name} is no network of `lean3r export-model`. Make one: {MAKE}.")
    model, fewest = (part.decode() for part in found.groups())
    if (model, fewest) != (MODEL, "1"):
        raise InputError(f"{name} is not nano for few views: it is {model} for {fewest} views and more. Use {MAKE}.")


def write_site(network: bytes, runtime: Mapping[str, bytes], folder: Path) -> None:
    """Write the page into a new folder: index.html, nano as ONNX, what runs it (`runtime_files`), about.txt."""
    roles = {"runtime": (SCRIPT, runtime[SCRIPT]), "wasm": (WASM, runtime[WASM]), "network": (f"{MODEL}.onnx", network)}
    for file, content in roles.values():
        (folder / file).write_bytes(content)
    needed = {
        role: {"file": file, "bytes": len(content), "integrity": integrity(content)}
        for role, (file, content) in roles.items()
    }
    (folder / "index.html").write_bytes(own_page(_given(needed), ROOM, SCRIPT_MAY))
    (folder / "about.txt").write_bytes((files(ROOM) / "about.txt").read_bytes())
    write_short(folder)


def _given(needed: Mapping[str, Any]) -> dict[str, Any]:
    """What the page is told."""
    return {
        "model": MODEL,
        "version": metadata.version("lean3r"),
        "patch": CARDS[MODEL].patch,
        "resolution": CARDS[MODEL].resolution,
        "most": MOST_PHOTOS,
        "percentile": PointOptions.conf_percentile,
        "palette": PALETTE[::8].ravel().tolist(),
        "registrations": REGISTRATIONS,
        "files": needed,
        "worker": script_text("worker.js", ROOM),
    }
