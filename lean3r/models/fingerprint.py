"""A fingerprint of a weights file that says how it was computed; large files are not read whole."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from lean3r.models.weight_files import INDEX_SUFFIX, open_weights

WHOLE_BYTES = 1 << 26  # smaller files are read whole: a twentieth of a second
PIECES, PIECE_BYTES = 64, 1 << 18


def fingerprint(path: str | Path) -> str:
    """A short name of the weights in a local file; the part before the colon says how it was computed.

    `hub:COMMIT/ETAG` for a file in the Hub's cache: the Hub's own name for it; the content is not read again.
    `sha256:HEX` for a file of at most WHOLE_BYTES. `sampled-sha256:HEX` for a larger one: the hash of its size and of
    PIECES evenly spaced pieces, including the first and the last bytes; a change between two pieces goes unnoticed.
    `shards-sha256:HEX` for an index: the hash of its bytes and of the fingerprints of its shards.
    """
    path = Path(path)
    cached = _hub_name(path)
    if cached is not None:
        return f"hub:{cached}"
    if path.name.endswith(INDEX_SUFFIX):
        shards = sorted(set(open_weights(path).files.values()))
        lines = [f"{shard.name} {fingerprint(shard)}" for shard in shards]
        return f"shards-sha256:{hashlib.sha256(path.read_bytes() + chr(10).join(lines).encode()).hexdigest()}"
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= WHOLE_BYTES:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        digest = hashlib.sha256(str(size).encode())
        for piece in range(PIECES):
            file.seek((size - PIECE_BYTES) * piece // (PIECES - 1))
            digest.update(file.read(PIECE_BYTES))
    return f"sampled-sha256:{digest.hexdigest()}"


def _hub_name(path: Path) -> str | None:
    """COMMIT/ETAG of a link `snapshots/COMMIT/...` to `blobs/ETAG` in the Hub's cache; None for other files."""
    if not path.is_symlink():
        return None
    blob = path.resolve()
    commit = re.search(r"/snapshots/([0-9a-f]{40})/", path.absolute().as_posix())
    return f"{commit[1]}/{blob.name}" if commit and blob.parent.name == "blobs" else None
