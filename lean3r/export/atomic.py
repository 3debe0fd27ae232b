"""A folder that appears whole or not at all, and takes nothing of the user's away."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from lean3r.errors import UsageError
from lean3r.export import placing
from lean3r.scratch import LOCK, held, hold, is_part, part_name, parts_in, release, remove_left_file

MANIFEST = "manifest.json"
_LARGEST = 1 << 28  # bytes of a manifest
_FULL = (errno.ENOSPC, errno.EDQUOT)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_SYSTEM = "lost+found"  # lies in every new disk


@contextlib.contextmanager
def atomic_folder(out: str | Path, *, overwrite: bool = False, inputs: Iterable[str | Path] = ()) -> Iterator[Path]:
    """Yield a new folder that becomes `out` when the block ends well.

    On any exception, Ctrl-C and a full disk included, the new folder is removed and an older result stays. With
    `overwrite` an older result (told by its manifest) gives way once the new one is complete: of the files in `out`
    those go that its manifest lists, all others stay. `inputs` are what the block reads, paths and globs.
    Raises UsageError where `out` cannot be used, another run is writing it, or an input lies in a result that would
    give way, all before any work is done; where the disk runs full; and where something in the way has appeared in
    `out` in the meantime: the finished result is then put beside it, under the name that the error gives.
    """
    shown = str(out)
    try:
        target = Path(out).expanduser().resolve()
    except (OSError, RuntimeError) as error:
        raise UsageError(f"{shown} cannot be a folder: {error}. Use another -o.") from error
    if os.path.lexists(target) and not target.is_dir():
        raise UsageError(f"{shown} is a file; expected a folder. Use another -o.")
    try:
        with _workspace(target, shown) as work:
            check_target(target, shown=shown, overwrite=overwrite)
            _check_inputs(target, inputs)
            (work / placing.NEW).mkdir()
            yield work / placing.NEW
            _place(work, target, shown, overwrite)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise UsageError(
            f"the disk is full: {shown} was not written and an older result was left as it is. "
            "Free some space or choose another -o."
        ) from error


def check_target(target: Path, *, shown: str, overwrite: bool) -> None:
    """Raise UsageError unless a result may be put at `target`; `shown` is how the user wrote it."""
    if not target.exists() or not _entries(target):
        return
    if not overwrite:
        raise UsageError(f"{shown.rstrip('/')}/ exists and is not empty. Use --overwrite, or another -o.")
    if result_files(target) is None:
        # --overwrite replaces results. It must never delete photographs because of a mistyped folder.
        raise UsageError(
            f"{shown.rstrip('/')}/ has no {MANIFEST} of lean3r, so it is not an earlier result and is not overwritten. "
            "Empty it, or use another -o."
        )


def result_files(folder: Path) -> frozenset[str] | None:
    """The files that the manifest of a result lists, relative to it; None where the folder is no result of lean3r."""
    try:
        path = folder / MANIFEST
        said = json.loads(path.read_bytes()) if path.stat().st_size <= _LARGEST else None
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(said, dict) or not isinstance(said.get("lean3r"), str) or "layout_version" not in said:
        return None
    files = said.get("files")
    if not isinstance(files, list) or MANIFEST not in files or not all(isinstance(name, str) for name in files):
        return None
    paths = {name: PurePosixPath(name) for name in files}
    return frozenset(n for n, p in paths.items() if p.parts and not p.is_absolute() and ".." not in p.parts)


def _entries(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if not is_part(name) and name != _SYSTEM]


def _check_inputs(target: Path, inputs: Iterable[str | Path]) -> None:
    """Raise UsageError where something that is read lies in an older result."""
    for given in map(str, inputs if target.exists() else ()):
        name = os.path.expanduser(given)
        for path in [name] if os.path.exists(name) else glob.glob(name, recursive=True):
            links: list[str] = []
            with contextlib.suppress(OSError):
                links = [entry.path for entry in os.scandir(path) if entry.is_symlink()]
            if any(Path(os.path.realpath(real)).is_relative_to(target) for real in (path, *links)):
                raise UsageError(
                    f"the input {given} lies in {target}, which --overwrite would replace. Use another -o."
                )


@contextlib.contextmanager
def _workspace(target: Path, shown: str) -> Iterator[Path]:
    """A locked folder for what is in the making: beside the target, or inside where it is a mount point or nothing can
    be written beside it. What killed runs left, of this target or others here, is settled first."""
    work, lock = _claim_beside(target, shown)
    with lock:
        for left in (*parts_in(target.parent), *parts_in(target)):
            if left != work:
                remove_left_file(left)
                _settle_left(left)
        try:
            placing.settle(work, target)
            yield work
        finally:
            placing.settle(work, target)
            release(lock)
            (work / LOCK).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                work.rmdir()


def _claim_beside(target: Path, shown: str) -> tuple[Path, BinaryIO]:
    """The workspace of a target, and its lock."""
    homes = [target] if os.path.ismount(target) else [target.parent, *([target] if target.is_dir() else [])]
    while True:
        home = homes.pop(0)
        work = home / part_name(target)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            return work, _claim(work, "" if home == target else target.name, shown)
        except OSError as error:
            if error.errno not in _CLOSED or not homes:
                said = f"cannot write beside {shown}: {error.strerror or error}. Choose another -o."
                raise UsageError(said) from error


def _claim(work: Path, name: str, shown: str) -> BinaryIO:
    """Make a workspace, or take over what a killed run left, and lock it; UsageError where a living run has it."""
    for _ in range(20):
        is_new = not work.exists()
        work.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # another run has just ended
            lock = hold(work / LOCK, must=not is_new)
            if lock is not None:
                lock.truncate(0)
                lock.write(f"{os.getpid()}\n{name}".encode("utf-8", "surrogateescape"))
                lock.flush()
                return lock
        time.sleep(0.05)  # perhaps a run that only looks whether this one is alive
    owner = (work / LOCK).read_text(errors="replace").partition("\n")[0]
    raise UsageError(
        f"another run (process {owner}) is writing to {shown}. Wait until it has ended, or use another -o."
    )


def _settle_left(left: Path) -> None:
    """Settle what another target's run left, unless it is alive or somebody else's."""
    with contextlib.suppress(OSError):
        left.rmdir()  # ended before it was locked
    with contextlib.suppress(OSError), held(left / LOCK) as lock:
        lock.seek(0)
        name = lock.read().decode("utf-8", "surrogateescape").partition("\n")[2]
        placing.settle(left, left.parent / name if name else left.parent)
        release(lock)
        (left / LOCK).unlink()
        left.rmdir()


def _place(work: Path, target: Path, shown: str, overwrite: bool) -> None:
    """Put the new folder at the target, which is looked at once more."""
    new = work / placing.NEW
    if not work.is_relative_to(target):
        try:
            if target.is_dir() and not _is_here(target):
                shutil.copystat(target, new)
            if not _is_here(target):
                os.rename(new, target)  # fits where nothing, or an empty folder, is there
                return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EBUSY, errno.EXDEV, *_CLOSED):
                raise
    old = result_files(target) if target.is_dir() else None
    if old is not None and not overwrite:
        _aside(work, target, shown, MANIFEST)
    listed = old or frozenset()
    if clash := placing.clash(new, target, listed):
        _aside(work, target, shown, clash)
    may_swap = not work.is_relative_to(target) and not _is_here(target)
    placing.commit(work, target, listed, swap=may_swap)


def _is_here(target: Path) -> bool:
    """Whether this process, and so the user's shell, stands in the target: it must stay the same folder."""
    with contextlib.suppress(OSError):
        return Path.cwd().resolve().is_relative_to(target)
    return False


def _aside(work: Path, target: Path, shown: str, name: str) -> None:
    """Put the finished result beside what has appeared, and say so."""
    stem = target / "result" if work.is_relative_to(target) else target
    number = 2
    while os.path.lexists(aside := stem.with_name(f"{stem.name}-{number}")):
        number += 1
    os.rename(work / placing.NEW, aside)
    raise UsageError(
        f"{name} has appeared in {shown} during this run, and was not replaced. The result is in {aside} instead."
    )
