"""A folder that appears complete or not at all, and never removes the user's own files."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import logging
import os
import shutil
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from lean3r.errors import UsageError
from lean3r.export import placing
from lean3r.scratch import DISK_FULL, LOCK, find_parts, held, hold, is_part, part_name, release, remove_leftover

logger = logging.getLogger("lean3r")

MANIFEST = "manifest.json"
SHOWN = 3  # names in a warning
_LARGEST = 1 << 28  # bytes of a manifest
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_SYSTEM = "lost+found"  # a folder in every new ext4 file system


@contextlib.contextmanager
def atomic_folder(out: str | Path, *, overwrite: bool = False, inputs: Iterable[str | Path] = ()) -> Iterator[Path]:
    """Yield a new folder that becomes `out` if the block succeeds.

    After any exception, including Ctrl-C and a full disk, the new folder is removed and an older result stays. With
    `overwrite`, the new folder replaces an older result (recognised by its manifest) once it is complete: the files in
    `out` that the old manifest lists are removed, and all others stay. `inputs` are the paths and globs that the block
    reads.

    Raises UsageError before the block runs if `out` cannot be used, another run is writing it, or an input is inside a
    result that would be replaced. Raises UsageError after the block if the disk is full, or if another program has
    created a conflicting file in `out` in the meantime. In the latter case the result is kept beside `out`, in the
    folder that the message names.
    """
    shown = str(out)
    try:
        target = Path(out).expanduser().resolve()
    except (OSError, RuntimeError) as error:
        raise UsageError(f"{shown} cannot be a folder: {error}. Use another folder (-o).") from error
    if os.path.lexists(target) and not target.is_dir():
        raise UsageError(f"{shown} is a file; expected a folder. Use another folder (-o).")
    try:
        with _workspace(target, shown) as work:
            check_target(target, shown=shown, overwrite=overwrite)
            check_inputs(target, inputs)
            (work / placing.NEW).mkdir()
            yield work / placing.NEW
            _place(work, target, shown, overwrite)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise UsageError(
            f"the disk is full: {shown} was not written, and an older result is unchanged. "
            "Free some space or choose another folder (-o)."
        ) from error


def settle(target: Path) -> None:
    """Complete or undo what a killed run left beside or in a folder, so that it is whole again. UsageError if a run is
    writing to it, or nothing can be written there."""
    target = target.resolve()
    if find_parts(target.parent) or find_parts(target):
        with _workspace(target, str(target)):
            pass


def check_target(target: Path, *, shown: str, overwrite: bool) -> None:
    """Raise UsageError unless a result may be written to `target`; messages show the user's spelling `shown`."""
    if not target.exists() or not _entries(target):
        return
    if not overwrite:
        raise UsageError(
            f"{shown.rstrip('/')}/ exists and is not empty. Use --overwrite (overwrite=True), or another folder (-o)."
        )
    if result_files(target) is None:
        # --overwrite replaces results. It must never delete photographs because of a mistyped folder.
        raise UsageError(
            f"{shown.rstrip('/')}/ has no {MANIFEST} of lean3r, so it is not an earlier result and is not overwritten. "
            "Empty it, or use another folder (-o)."
        )


def result_files(folder: Path) -> frozenset[str] | None:
    """The files in the manifest of a result, relative to `folder`; None if the folder is not a result of lean3r."""
    try:
        path = folder / MANIFEST
        content = json.loads(path.read_bytes()) if path.stat().st_size <= _LARGEST else None
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or not isinstance(content.get("lean3r"), str) or "layout_version" not in content:
        return None
    files = content.get("files")
    if not isinstance(files, list) or MANIFEST not in files or not all(isinstance(name, str) for name in files):
        return None
    paths = {name: PurePosixPath(name) for name in files}
    return frozenset(n for n, p in paths.items() if p.parts and not p.is_absolute() and ".." not in p.parts)


def _entries(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if not is_part(name) and name not in (_SYSTEM, LOCK)]


def check_inputs(target: Path, inputs: Iterable[str | Path]) -> None:
    """Raise UsageError if an input is inside `target`."""
    for given in map(str, inputs if target.exists() else ()):
        name = os.path.expanduser(given)
        for path in [name] if os.path.exists(name) else glob.glob(name, recursive=True):
            links: list[str] = []
            with contextlib.suppress(OSError):
                links = [entry.path for entry in os.scandir(path) if entry.is_symlink()]
            if any(Path(os.path.realpath(real)).is_relative_to(target) for real in (path, *links)):
                raise UsageError(
                    f"the input {given} is in {target}, which --overwrite would replace. Use another folder (-o)."
                )


@contextlib.contextmanager
def _workspace(target: Path, shown: str) -> Iterator[Path]:
    """Yield a locked folder for the unfinished result; leftovers of killed runs nearby are settled first.

    It is beside the target, or inside it if the target is a mount point or its parent is not writable.
    """
    work, lock = _claim_beside(target, shown)
    with lock:
        for left in (*find_parts(target.parent), *find_parts(target)):
            if left != work:
                remove_leftover(left)
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
    """Create and lock the workspace of a target; return both."""
    homes = [target] if os.path.ismount(target) else [target.parent, *([target] if target.is_dir() else [])]
    while True:
        home = homes.pop(0)
        work = home / part_name(target)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            return work, _claim(work, "" if home == target else target.name, shown)
        except OSError as error:
            if error.errno not in _CLOSED or not homes:
                message = f"cannot write beside {shown}: {error.strerror or error}. Choose another folder (-o)."
                raise UsageError(message) from error


def _claim(work: Path, name: str, shown: str) -> BinaryIO:
    """Create a workspace, or take over that of a killed run, and lock it; UsageError if another run holds it."""
    for _ in range(20):
        is_new = not work.exists()
        work.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # another run has just removed it
            lock = hold(work / LOCK, must=not is_new)
            if lock is not None:
                lock.truncate(0)
                lock.write(f"{os.getpid()}\n{name}".encode("utf-8", "surrogateescape"))
                lock.flush()
                return lock
        time.sleep(0.05)  # another run may hold the lock briefly, to check for leftovers
    owner = (work / LOCK).read_text(errors="replace").partition("\n")[0]
    raise UsageError(
        f"another run (process {owner}) is writing to {shown}. Wait until it has ended, or use another folder (-o)."
    )


def _settle_left(left: Path) -> None:
    """Settle and remove the workspace of another run, unless that run is alive or belongs to another user."""
    with contextlib.suppress(OSError):
        left.rmdir()  # succeeds if the run ended before it locked the folder
    with contextlib.suppress(OSError), held(left / LOCK) as lock:
        lock.seek(0)
        name = lock.read().decode("utf-8", "surrogateescape").partition("\n")[2]
        placing.settle(left, left.parent / name if name else left.parent)
        release(lock)
        (left / LOCK).unlink()
        left.rmdir()


def _place(work: Path, target: Path, shown: str, overwrite: bool) -> None:
    """Move the new folder to the target, after another check of the target."""
    new = work / placing.NEW
    if not work.is_relative_to(target):
        try:
            if target.is_dir() and not _is_here(target):
                shutil.copystat(target, new)
            if not _is_here(target):
                os.rename(new, target)  # succeeds if there is nothing or an empty folder
                return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EBUSY, errno.EXDEV, *_CLOSED):
                raise
    old = result_files(target) if target.is_dir() else None
    if old is not None and not overwrite:
        _place_beside(work, target, shown, MANIFEST)
    listed = old or frozenset()
    if conflict := placing.find_conflict(new, target, listed):
        _place_beside(work, target, shown, conflict)
    if old is not None:
        _warn_of_strangers(new, target, old, shown)
    may_swap = not work.is_relative_to(target) and not _is_here(target)
    placing.commit(work, target, listed, swap=may_swap)


def _warn_of_strangers(new: Path, target: Path, listed: Collection[str], shown: str) -> None:
    """Log which files of others stay in or beside the folders of a result that is replaced: trainers store copies there
    (sparse/0/points3D.ply, images_4_png/), and would take those of the older result for those of the new one."""
    ours = tuple({f"{name.partition('/')[0]}_" for name in (*listed, *placing.files_of(new)) if "/" in name})
    folders = [path for path in target.glob("*") if f"{path.name}_".startswith(ours)]
    folders = [path for path in folders if path.is_dir() and not path.is_symlink()]
    others = sorted(f"{folder.name}/{name}" for folder in folders for name in placing.files_of(folder))
    stay = [name for name in others if name not in listed and "/." not in name]
    if stay:
        more = f" and {len(stay) - SHOWN:,} more" if len(stay) > SHOWN else ""
        logger.warning(
            "%s keeps files that are no part of the result: %s%s. If another program made them of the older result, it "
            "would take them for those of the new one: remove them first",
            shown,
            ", ".join(stay[:SHOWN]),
            more,
        )


def _is_here(target: Path) -> bool:
    """Whether the working directory is in the target: then the target must stay the same folder."""
    with contextlib.suppress(OSError):
        return Path.cwd().resolve().is_relative_to(target)
    return False


def _place_beside(work: Path, target: Path, shown: str, name: str) -> None:
    """Move the finished result beside the target and raise a UsageError that names both."""
    stem = target / "result" if work.is_relative_to(target) else target
    number = 2
    while os.path.lexists(beside := stem.with_name(f"{stem.name}-{number}")):
        number += 1
    os.rename(work / placing.NEW, beside)
    raise UsageError(
        f"another program created {name} in {shown} during this run; it was not replaced. "
        f"The result is in {beside} instead."
    )
