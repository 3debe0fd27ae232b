"""Checkpoints that survive anything: written beside and renamed, checked when read, never unpickled freely."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import re
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lean3r.errors import UsageError

KEEP = 2
_NAME = re.compile(r"step-(\d{9})\.pt")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary neighbour of `path`, flush it to the disk and put it in place in one move."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def lock_folder(folder: Path, patience_s: float = 60.0) -> Iterator[None]:
    """Make `folder` and keep other runs out of it within the block; the system unlocks it when a process dies.

    A run whose starter was killed still ends its step: wait that long before the UsageError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience_s
    with open(folder / ".lock", "w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UsageError(f"another run writes to '{folder}'; stop it or choose another folder") from None
                time.sleep(0.2)
        yield


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `state` (tensors and plain values) as the checkpoint after `step` steps; keep the last KEEP."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:09d}.pt"
    write_atomically(path, lambda temporary: torch.save(state, temporary))
    for old in checkpoints(folder)[KEEP:]:
        old.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint files, newest first; leftovers of interrupted writes are not among them."""
    return sorted((p for p in folder.glob("step-*.pt") if _NAME.fullmatch(p.name)), reverse=True)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that is whole, on the CPU; None if there is none.

    Damaged files (truncated, or failing the check sums of their archive) are passed over with a warning.
    """
    for path in checkpoints(folder):
        try:
            # Read once: the check and the load must see the same bytes.
            data = path.read_bytes()
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise zipfile.BadZipFile(f"check sum of {damaged} is wrong")
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except (zipfile.BadZipFile, OSError, RuntimeError, EOFError, ValueError) as error:
            print(f"warning: checkpoint {path} is damaged and is passed over ({error})", file=sys.stderr)
    return None


def save_weights(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors as float32 safetensors with a text header, atomically; integer buffers keep their type."""
    from safetensors.torch import save

    # Clones: safetensors refuses tensors that share memory.
    plain = {
        name: (value.float() if value.is_floating_point() else value).detach().cpu().contiguous().clone()
        for name, value in tensors.items()
    }
    write_atomically(path, lambda temporary: temporary.write_bytes(save(plain, metadata)))
