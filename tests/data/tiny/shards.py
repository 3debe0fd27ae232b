"""A tiny folder of shards: the tiny BlendedMVS, packed."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from data.tiny import Tiny, TinyScene, blendedmvs

from lean3r.data.sets.blendedmvs import BlendedMVS
from lean3r.data.sets.shards import pack

TINY = Tiny(depth_error=1e-4)


def write(root: Path, scenes: Sequence[TinyScene]) -> None:
    """Both scenes are alike in shape, so that they go into one shard."""
    with tempfile.TemporaryDirectory() as folder:
        blendedmvs.write(Path(folder), scenes)
        pack(BlendedMVS(folder), root)
