"""Results on their way out: one file, or all as a zip that is made while it is sent."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

PIECE = 1 << 20
TYPES = {
    ".json": "application/json",
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".txt": "text/plain; charset=utf-8",
    ".toml": "text/plain; charset=utf-8",
    ".csv": "text/csv; charset=utf-8",
    ".glb": "model/gltf-binary",
}
BINARY = "application/octet-stream"
SEALED = "default-src 'none'; sandbox; frame-ancestors 'none'"  # of a file that a browser might show


def type_of(path: str) -> str:
    """The content type of a file, from a short list; anything that could run in a browser is only bytes."""
    return TYPES.get(Path(path).suffix.lower(), BINARY)


def attachment(name: str) -> str:
    """The Content-Disposition of a file that is saved, never shown; safe for any name (RFC 6266)."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in name)[-100:] or "file"
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def zipped(folder: Path, names: Iterable[str]) -> Iterator[bytes]:
    """The pieces of a zip of files in a folder, stored as they are. OSError if one has gone."""
    out = _Outlet()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[arg-type]
        for name in names:
            about = zipfile.ZipInfo.from_file(folder / name, name)
            about.compress_type = zipfile.ZIP_STORED
            with (folder / name).open("rb") as file, archive.open(about, "w", force_zip64=True) as member:
                while piece := file.read(PIECE):
                    member.write(piece)
                    yield out.take()
            yield out.take()
    yield out.take()


class _Outlet(io.RawIOBase):
    """A file without an end and a beginning: what is written is taken away."""

    def __init__(self) -> None:
        super().__init__()
        self._held: list[bytes] = []

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._held.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        """What was written since the last time."""
        taken, self._held = b"".join(self._held), []
        return taken
