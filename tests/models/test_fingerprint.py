"""Fingerprints say how they were found, tell files apart, and do not read large ones."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lean3r.models.fingerprint import PIECE_BYTES, PIECES, WHOLE_BYTES, fingerprint
from lean3r.pipeline.load import embedded_weights, load

SIZE = 1 << 36  # as a file with holes, so that it takes no room


def large(path: Path, size: int = SIZE, **marks: int) -> Path:
    """A file of `size` bytes with a 1 at each of the offsets."""
    with path.open("wb") as file:
        file.truncate(size)
        for offset in marks.values():
            file.seek(offset)
            file.write(b"1")
    return path


def test_small_files_have_a_full_hash(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(b"weights")
    assert fingerprint(path) == f"sha256:{hashlib.sha256(b'weights').hexdigest()}"


def test_large_files_are_sampled_and_labelled(tmp_path: Path) -> None:
    empty = fingerprint(large(tmp_path / "a.pt"))
    assert empty.startswith("sampled-sha256:") and empty == fingerprint(large(tmp_path / "b.pt"))
    changed = [
        large(tmp_path / "c.pt", size=SIZE - 1),
        large(tmp_path / "d.pt", first=0),
        large(tmp_path / "e.pt", last=SIZE - 1),
        large(tmp_path / "f.pt", middle=(SIZE - PIECE_BYTES) * 7 // (PIECES - 1)),
    ]
    assert len({empty, *map(fingerprint, changed)}) == 1 + len(changed)
    # What the name promises not to see.
    assert fingerprint(large(tmp_path / "g.pt", between=2 * PIECE_BYTES)) == empty


def test_the_limit_between_the_two(tmp_path: Path) -> None:
    assert fingerprint(large(tmp_path / "a.pt", size=WHOLE_BYTES)).startswith("sha256:")
    assert fingerprint(large(tmp_path / "b.pt", size=WHOLE_BYTES + 1)).startswith("sampled-sha256:")


@pytest.mark.parametrize("changed", ["a", "b"])
def test_shards(changed: str, tmp_path: Path) -> None:
    table = {name: f"{name}.safetensors" for name in "ab"}
    for name, file in table.items():
        save_file({name: torch.zeros(2)}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": table}))
    before = fingerprint(index)
    assert before.startswith("shards-sha256:") and before == fingerprint(index)
    save_file({changed: torch.ones(2)}, tmp_path / table[changed])
    assert fingerprint(index) != before


def test_a_loaded_model_knows_its_weights() -> None:
    path = embedded_weights("nano")
    origin = load("nano", device="cpu").origin
    assert origin.hash == fingerprint(path) and origin.hash.startswith("sha256:") and origin.weights == path.name
