"""Checkpoints that survive anything: written beside and renamed, checked when read, never unpickled freely.

A checkpoint is a file, step-NNNNNNNNN.pt, or of a sharded run a folder, step-NNNNNNNNN (see shards.py).
"""

from __future__ import annotations

import contextlib
import errno
import io
import re
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lean3r.errors import LeanError, UsageError
from lean3r.scratch import try_lock
from lean3r.train.checkpoints.disk import remove, require_space, tensor_bytes, write_atomically
from lean3r.train.checkpoints.shards import RunState, damage, read_shards

KEEP = 2
_NAME = re.compile(r"step-(\d{9})(\.pt)?")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def lock_folder(folder: Path, patience_s: float = 60.0) -> Iterator[None]:
    """Make `folder` and keep other runs out of it within the block; the system unlocks it when a process dies.

    A run whose starter was killed still ends its step: wait that long before the UsageError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience_s
    with open(folder / ".lock", "w") as file:
        while try_lock(file) is False:
            if time.monotonic() > deadline:
                raise UsageError(f"another run writes to '{folder}'; stop it or choose another folder")
            time.sleep(0.2)
        yield


@contextlib.contextmanager
def full_disk_explained(out_dir: Path) -> Iterator[None]:
    """Turn the system's refusal to write for lack of space into a LeanError that says where the run stands."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        last = checkpoints(out_dir / "checkpoints")
        stands = f"the last whole checkpoint is {last[0]}" if last else "there is no checkpoint yet"
        raise LeanError(f"the disk is full ({error}); {stands}. Make room, then resume.") from error


def save_checkpoint(folder: Path, step: int, state: Mapping[str, object], keep: int = KEEP) -> Path:
    """Write `state` (tensors and plain values) as the checkpoint after `step` steps; keep the last `keep`.

    LeanError where the disk does not hold it, before or while it is written: the older ones stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    require_space(folder, tensor_bytes(state), "a checkpoint")
    path = folder / f"step-{step:09d}.pt"
    try:
        write_atomically(path, lambda temporary: torch.save(dict(state), temporary))
    except (OSError, RuntimeError) as error:  # torch's writer reports a full disk as RuntimeError
        last = next(iter(checkpoints(folder)), None)
        stands = "there is none before it" if last is None else f"the one before it is whole: {last}"
        raise LeanError(f"could not write checkpoint {path} ({error}); {stands}. Make room, then resume.") from error
    prune(folder, keep)
    return path


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and what interrupted writes and removals left."""
    for old in checkpoints(folder)[keep:]:
        if old.is_dir():  # out of sight first: removing a folder takes time
            old = old.rename(old.with_name(f".{old.name}.partial"))
        remove(old)
    remove_interrupted(folder)


def remove_interrupted(folder: Path) -> None:
    """Remove what interrupted writes and removals of checkpoints left."""
    for leftover in folder.glob(".step-*.partial"):
        remove(leftover)


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint files and folders, newest first; leftovers of interrupted writes are not among them."""
    return sorted((p for p in folder.glob("step-*") if _NAME.fullmatch(p.name)), key=lambda p: p.stem, reverse=True)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole, None if there is none; damaged ones are passed over with a warning."""
    for path in checkpoints(folder):
        try:
            problem = damage(path) if path.is_dir() else _damaged_file(path.read_bytes())
        except OSError as error:
            problem = f"it cannot be read: {error.strerror}"
        if not problem:
            return path
        print(f"warning: checkpoint {path} is damaged and is passed over ({problem})", file=sys.stderr)
    return None


def read_checkpoint(path: Path) -> RunState:
    """A whole checkpoint, file or folder, on the CPU."""
    return read_shards(path) if path.is_dir() else torch.load(path, map_location="cpu", weights_only=True)


def load_checkpoint(folder: Path) -> RunState | None:
    """The newest checkpoint that is whole, on the CPU; None if there is none.

    Damaged ones (truncated, or failing a check sum) are passed over with a warning.
    """
    path = newest_checkpoint(folder)
    return None if path is None else read_checkpoint(path)


def _damaged_file(data: bytes) -> str:
    """What is wrong with the bytes of a checkpoint file; "" if nothing."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            bad = archive.testzip()
        if bad is not None:
            return f"check sum of {bad} is wrong"
        found = torch.load(io.BytesIO(data), map_location="meta", weights_only=True)
    except Exception as error:  # a damaged pickle can ask for anything
        return next(iter(str(error).splitlines()), type(error).__name__)
    return "" if isinstance(found, dict) else "it holds no state of a run"


def save_weights(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors as float32 safetensors with a text header, atomically; integer buffers keep their type.

    LeanError before anything is written if the disk does not hold them.
    """
    from safetensors.torch import save

    # Clones: safetensors refuses tensors that share memory.
    plain = {
        name: (value.float() if value.is_floating_point() else value).detach().cpu().contiguous().clone()
        for name, value in tensors.items()
    }
    require_space(path.parent, tensor_bytes(plain), f"'{path.name}'")
    write_atomically(path, lambda temporary: temporary.write_bytes(save(plain, metadata)))
