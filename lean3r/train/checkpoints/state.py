"""Checkpoints: written atomically, checked when read, and never unpickled without restrictions.

A checkpoint is a file, step-NNNNNNNNN.pt; of a sharded run, it is a folder, step-NNNNNNNNN (see shards.py).
"""

from __future__ import annotations

import contextlib
import errno
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
    """Create `folder` and lock it against other runs within the block; the system unlocks it when the process ends.

    If another run holds the lock, wait up to `patience_s` seconds before the UsageError: a run whose parent process was
    killed still completes its step.
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
def explain_full_disk(out_dir: Path) -> Iterator[None]:
    """Convert the system's error for a full disk into a LeanError that names the last checkpoint."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        last = checkpoints(out_dir / "checkpoints")
        state = f"the last complete checkpoint is {last[0]}" if last else "there is no checkpoint yet"
        raise LeanError(f"the disk is full ({error}); {state}. Free some space, then resume.") from error


def save_checkpoint(folder: Path, step: int, state: Mapping[str, object], keep: int = KEEP) -> Path:
    """Write `state` (tensors and plain values) as the checkpoint after `step` steps; keep the last `keep`.

    LeanError if the disk has too little space, detected before or during the write; older checkpoints stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    require_space(folder, tensor_bytes(state), "a checkpoint")
    path = folder / f"step-{step:09d}.pt"
    try:
        write_atomically(path, lambda temporary: torch.save(dict(state), temporary))
    except (OSError, RuntimeError) as error:  # torch's writer reports a full disk as RuntimeError
        last = next(iter(checkpoints(folder)), None)
        rest = "there is no earlier one" if last is None else f"the previous one is intact: {last}"
        raise LeanError(f"cannot write checkpoint {path} ({error}); {rest}. Free some space, then resume.") from error
    prune(folder, keep, path)
    return path


def prune(folder: Path, keep: int, last: Path) -> None:
    """Remove all but the newest `keep` checkpoints, and the leftovers of interrupted writes and removals. The `last`
    one stays; damaged ones of later steps do not count, as of a run that had to go on from an earlier step."""
    found = checkpoints(folder)
    sound = [path for path in found if path.stem > last.stem and not _problem(path)]
    for old in [path for path in found if path.stem <= last.stem][max(keep - len(sound), 1) :]:
        if old.is_dir():  # rename it first, because the removal of a folder can be interrupted
            old = old.rename(old.with_name(f".{old.name}.partial"))
        remove(old)
    remove_interrupted(folder)


def remove_interrupted(folder: Path) -> None:
    """Remove the leftovers of interrupted writes and removals of checkpoints."""
    for leftover in folder.glob(".step-*.partial"):
        remove(leftover)


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint files and folders, newest first, without leftovers of interrupted writes."""
    return sorted((p for p in folder.glob("step-*") if _NAME.fullmatch(p.name)), key=lambda p: p.stem, reverse=True)


def _problem(path: Path) -> str | None:
    return damage(path) if path.is_dir() else _file_damage(path)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest undamaged checkpoint, None if there is none; damaged ones are skipped with a warning."""
    for path in checkpoints(folder):
        problem = _problem(path)
        if not problem:
            return path
        print(f"warning: checkpoint {path} is damaged and is skipped ({problem})", file=sys.stderr)
    return None


def read_checkpoint(path: Path) -> RunState:
    """Read a whole checkpoint, file or folder, to the CPU."""
    return read_shards(path) if path.is_dir() else torch.load(path, map_location="cpu", weights_only=True)


def load_checkpoint(folder: Path) -> RunState | None:
    """Read the newest undamaged checkpoint to the CPU; None if there is none.

    Damaged ones (truncated, or with a wrong check sum) are skipped with a warning.
    """
    path = newest_checkpoint(folder)
    return None if path is None else read_checkpoint(path)


def _file_damage(path: Path) -> str:
    """Describe the damage of a checkpoint file; "" if there is none."""
    try:
        with zipfile.ZipFile(path) as archive:  # piece by piece: a checkpoint may take much of the memory
            bad = archive.testzip()
        if bad is not None:
            return f"check sum of {bad} is wrong"
        content = torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        return next(iter(str(error).splitlines()), type(error).__name__)
    return "" if isinstance(content, dict) else "it holds no state of a run"


def save_weights(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors as float32 safetensors with a text header, atomically; integer buffers keep their type.

    LeanError before anything is written if the disk has too little space.
    """
    from safetensors.torch import save

    # Clones: safetensors refuses tensors that share memory.
    plain = {
        name: (value.float() if value.is_floating_point() else value).detach().cpu().contiguous().clone()
        for name, value in tensors.items()
    }
    require_space(path.parent, tensor_bytes(plain), f"'{path.name}'")
    write_atomically(path, lambda temporary: temporary.write_bytes(save(plain, metadata)))
