"""Point clouds in PLY files."""

from __future__ import annotations

from pathlib import Path

from lean3r.data.sets.formats.ply import read_ply
from lean3r.eval.predicted.base import Predicted


def read(path: Path) -> Predicted:
    """The vertices of a cloud or a mesh; InputError if it cannot be read, MissingExtraError without trimesh."""
    return Predicted(path=path, cloud=read_ply(path)[0])
