"""Unfinished files and folders: the process that writes one holds a lock on it while it runs.

The system releases a lock when its process ends for any reason. An unlocked file is left over from a killed run.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from lean3r.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows has other locks, and open files there cannot be moved or removed
    fcntl = None

LOCK = ".lean3r-lock"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)  # of an OSError
_FAR = 1 << 30
_PART = re.compile(r"\.lean3r-[0-9a-f]{12}\.part")
_TEMPORARY = re.compile(r"lean3r-[a-z]+-[a-z0-9_]{8}")


def hold(path: Path, *, must: bool = True) -> BinaryIO | None:
    """Open a file, creating it if needed, and lock it until it is closed; None if a running process holds it.

    On a disk without locks: None if the file `must` be locked, else the open file. Raises FileNotFoundError if its
    folder is gone, another OSError if it cannot be opened.
    """
    while True:
        file = path.open("a+b")
        is_locked = try_lock(file)
        with contextlib.suppress(FileNotFoundError):
            if not must and is_locked is None:
                return file
            if not is_locked:
                file.close()
                return None
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # its owner removed it in the meantime: create it again


def try_lock(file: IO[Any]) -> bool | None:
    """Lock an open file; False if another process holds it, None if the disk has no locks."""
    if fcntl is None:
        return _try_lock_on_windows(file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _try_lock_on_windows(file: IO[Any]) -> bool:
    """Lock one byte far beyond the end of the file, because a locked byte cannot be read or written."""
    msvcrt: Any = importlib.import_module("msvcrt")
    file.seek(_FAR)
    try:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError:
        return False
    return True


def release(lock: IO[Any]) -> None:
    """Release a lock on Windows, before the locked file or its folder is moved or removed; elsewhere keep it."""
    if fcntl is None:
        lock.close()


@contextlib.contextmanager
def held(path: Path) -> Iterator[BinaryIO]:
    """Inside, this process holds an existing lock file; OSError if it is missing, or if another process holds it."""
    if not path.is_file():
        raise FileNotFoundError(path)
    lock = hold(path)
    if lock is None:
        raise BlockingIOError(f"{path} belongs to a running process")
    with lock:
        yield lock


def part_name(path: Path) -> str:
    """The hidden name under which a file or folder is written; it depends on the name only."""
    return f".lean3r-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12]}.part"


def find_parts(folder: Path) -> list[Path]:
    """All unfinished files and folders in a folder, in progress or left over."""
    with contextlib.suppress(OSError):
        return [Path(entry.path) for entry in os.scandir(folder) if is_part(entry.name)]
    return []


def is_part(name: str) -> bool:
    """Whether a name has the form that `part_name` gives."""
    return _PART.fullmatch(name) is not None


def remove_leftover(path: Path) -> None:
    """Remove an unfinished file if its process has ended."""
    with contextlib.suppress(OSError), held(path) as lock:
        release(lock)
        path.unlink()


@contextlib.contextmanager
def atomic_file(path: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it becomes `path` if the block succeeds, and is removed otherwise.

    UsageError if another run is writing `path`, or if, without `overwrite`, something has appeared there.
    """
    path = Path(os.path.realpath(path))
    part = path.parent / part_name(path)
    for left in find_parts(path.parent):
        if left != part:
            remove_leftover(left)
    lock = hold(part, must=part.exists())
    if lock is None:
        raise UsageError(f"another run is writing {path}. Wait until it ends, or name another file.")
    with lock:
        is_placed = False
        try:
            lock.truncate(0)
            yield part
            release(lock)
            if overwrite:
                os.replace(part, path)
                is_placed = True
            else:
                _move_to_new(part, path)
        finally:
            if not is_placed:  # otherwise another run may use the name by now
                release(lock)
                part.unlink(missing_ok=True)


def _move_to_new(part: Path, path: Path) -> None:
    """Move a file to a path; UsageError if something exists there."""
    try:
        os.link(part, path)
    except FileExistsError as error:
        raise UsageError(
            f"{path} was created by another program in the meantime; it was not replaced. "
            "Use --overwrite (overwrite=True), or name another file."
        ) from error
    except OSError:  # a disk without hard links: check, then move
        if path.exists():
            raise UsageError(
                f"{path} was created by another program in the meantime; it was not replaced. Name another file."
            ) from None
        os.replace(part, path)


@contextlib.contextmanager
def temporary_folder(purpose: str, base: Path | None = None) -> Iterator[Path]:
    """A new temporary folder, where the system has them or in `base`, removed at the end; leftovers of killed runs are
    removed first."""
    base = base or Path(tempfile.gettempdir())
    for left in base.glob("lean3r-*"):
        if _TEMPORARY.fullmatch(left.name) and _is_ours(left):
            with contextlib.suppress(OSError), held(left / LOCK) as lock:
                release(lock)
                shutil.rmtree(left)
    with contextlib.ExitStack() as stack:
        while True:
            folder = Path(tempfile.mkdtemp(prefix=f"lean3r-{purpose}-", dir=base))
            with contextlib.suppress(FileNotFoundError):  # another run removed it as a leftover before it was locked
                lock = hold(folder / LOCK, must=False)
                if lock is not None:
                    stack.enter_context(lock)
                    break
        try:
            yield folder
        finally:
            release(lock)
            shutil.rmtree(folder, ignore_errors=True)


def _is_ours(folder: Path) -> bool:
    """Whether a path is a folder of this user and not a link that could point elsewhere."""
    with contextlib.suppress(OSError):
        about = folder.lstat()
        ours = (
            os.getuid() if hasattr(os, "getuid") else about.st_uid
        )  # on Windows each user has an own temporary folder
        return stat.S_ISDIR(about.st_mode) and about.st_uid == ours
    return False
