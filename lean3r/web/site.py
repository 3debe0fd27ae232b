"""The folder of the page: everything that it needs, to be served by any static file server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any

from lean3r.export.depth import PALETTE
from lean3r.export.manifest import write_short
from lean3r.options import PointOptions
from lean3r.view.content import REGISTRATIONS
from lean3r.view.page import own_page, script_text
from lean3r.web.runtime import SCRIPT, WASM, integrity

ROOM = "lean3r.web"
MOST_PHOTOS = 16
SCRIPT_MAY = "blob: 'wasm-unsafe-eval'"


@dataclass(frozen=True)
class Network:
    """A network as ONNX: its name, the bytes of its file, the side of a patch and its usual resolution in pixels."""

    name: str
    onnx: bytes
    patch: int
    resolution: int


def write_site(network: Network, runtime: Mapping[str, bytes], folder: Path) -> None:
    """Write the page into a new folder: index.html, the network, what runs it (`runtime_files`), about.txt."""
    name = f"{network.name}.onnx"
    contents = {SCRIPT: runtime[SCRIPT], WASM: runtime[WASM], name: network.onnx}
    roles = {"runtime": SCRIPT, "wasm": WASM, "network": name}
    needed = {
        role: {"file": file, "bytes": len(contents[file]), "integrity": integrity(contents[file])}
        for role, file in roles.items()
    }
    for file, content in contents.items():
        (folder / file).write_bytes(content)
    (folder / "index.html").write_bytes(own_page(_given(network, needed), ROOM, SCRIPT_MAY))
    (folder / "about.txt").write_bytes((files(ROOM) / "about.txt").read_bytes())
    write_short(folder)


def _given(network: Network, needed: Mapping[str, Any]) -> dict[str, Any]:
    """What the page is told."""
    return {
        "model": network.name,
        "version": metadata.version("lean3r"),
        "patch": network.patch,
        "resolution": network.resolution,
        "most": MOST_PHOTOS,
        "percentile": PointOptions.conf_percentile,
        "palette": PALETTE[::8].ravel().tolist(),
        "registrations": REGISTRATIONS,
        "files": needed,
        "worker": script_text("worker.js", ROOM),
    }
