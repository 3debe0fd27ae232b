"""Write a model's weights to a file, which contains the plan of a compressed model."""

from __future__ import annotations

from pathlib import Path

from lean3r.errors import UsageError
from lean3r.models.base import Backbone
from lean3r.models.checkpoint import save_model


def save(model: Backbone, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a model as .safetensors under official names, with its plan if it is compressed; returns the path.

    The file is written completely or not at all. UsageError if `path` exists and `overwrite` is not set, or if it
    cannot be written.
    """
    path = Path(path)
    check_file(path, overwrite=overwrite)
    try:
        save_model(model, path, overwrite=overwrite)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}.") from error
    return path


def check_file(path: Path, *, overwrite: bool) -> None:
    """Raise UsageError unless a file of weights may be written to `path`."""
    if path.suffix != ".safetensors":
        raise UsageError(f"cannot write weights to {path}; expected a name that ends in .safetensors.")
    if path.is_dir() or (path.exists() and not overwrite):
        what = "is a folder" if path.is_dir() else "exists; use --overwrite (overwrite=True)"
        raise UsageError(f"{path} {what}, or name another file.")
    if not path.parent.is_dir():
        raise UsageError(f"cannot write {path}: the folder {path.parent} does not exist; create it first.")
