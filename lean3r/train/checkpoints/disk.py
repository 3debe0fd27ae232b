"""Atomic file writes, and checks for free disk space before writing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from lean3r.errors import LeanError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary neighbour of `path`, flush it to the disk and put it in place in one move."""
    # With the process number, because other processes may write the same file at the same time.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(temporary)
        flush(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush(path.parent)


def flush(path: Path) -> None:
    """Wait until the contents of a file, or the entries of a folder, are on the disk; no effect on Windows folders."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def tensor_bytes(value: object) -> int:
    """Bytes of all tensors in nested dicts, lists and tuples."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(map(tensor_bytes, items))


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise LeanError if the disk of `folder` has less free space than `needed` bytes and a small reserve."""
    free = shutil.disk_usage(folder).free
    required = needed + needed // 20 + 1_000_000
    if free < required:
        raise LeanError(
            f"the disk of '{folder}' is nearly full: {what} takes {required / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are "
            "free. Nothing was overwritten. Free some space, then resume."
        )


def remove(path: Path) -> None:
    """Delete a file or a folder with everything in it, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
