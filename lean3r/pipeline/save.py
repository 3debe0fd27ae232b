"""A model in, a file of weights out; what a compressed model needs to be loaded again travels in the file."""

from __future__ import annotations

from pathlib import Path

from lean3r.errors import UsageError
from lean3r.models.base import Backbone
from lean3r.models.checkpoint import save_model


def save(model: Backbone, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a model as .safetensors under official names, with its plan if it is compressed; returns the path.

    The file appears whole or not at all. UsageError where `path` exists and `overwrite` does not say so, or where
    it cannot be written.
    """
    path = Path(path)
    check_file(path, overwrite=overwrite)
    try:
        save_model(model, path, overwrite=overwrite)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}.") from error
    return path


def check_file(path: Path, *, overwrite: bool) -> None:
    """Raise UsageError unless a file of weights may be put at `path`."""
    if path.suffix != ".safetensors":
        raise UsageError(f"{path} would not be read as what it is; name a file that ends in .safetensors.")
    if path.is_dir() or (path.exists() and not overwrite):
        what = "is a folder" if path.is_dir() else "exists; use --overwrite (overwrite=True)"
        raise UsageError(f"{path} {what}, or name another file.")
    if not path.parent.is_dir():
        raise UsageError(f"cannot write {path}: there is no folder {path.parent}.")
