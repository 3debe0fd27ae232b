"""Files and folders in the making: each is locked by the process that makes it, so that others know it is alive.

The system unlocks when a process ends, however it ends. What is there without a lock was left by a killed run.
"""

from __future__ import annotations

import contextlib
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
except ImportError:  # Windows, which locks otherwise, and lets nobody move or remove a file that is open
    fcntl = None

LOCK = ".lean3r-lock"
_FAR = 1 << 30
_PART = re.compile(r"\.lean3r-[0-9a-f]{12}\.part")
_TEMPORARY = re.compile(r"lean3r-[a-z]+-[a-z0-9_]{8}")


def hold(path: Path, *, must: bool = True) -> BinaryIO | None:
    """Open a file, made where it is absent, and lock it until it is closed; None where a living process has it.

    On a disk without locks None, too, unless it need not (`must`) be locked. FileNotFoundError where its folder is
    gone, another OSError where it cannot be opened.
    """
    while True:
        file = path.open("a+b")
        is_locked = locked(file)
        with contextlib.suppress(FileNotFoundError):
            if not must and is_locked is None:
                return file
            if not is_locked:
                file.close()
                return None
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # who had it has removed it: there is a new one to make


def locked(file: IO[Any]) -> bool | None:
    """Lock an open file; False where another process has it, None where nobody can tell."""
    if fcntl is None:
        return _locked_on_windows(file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _locked_on_windows(file: IO[Any]) -> bool:
    """A lock on one byte, which nobody can read or write meanwhile: far behind the end."""
    msvcrt: Any = importlib.import_module("msvcrt")
    file.seek(_FAR)
    try:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError:
        return False
    return True


def release(lock: IO[Any]) -> None:
    """Called before the locked file, or its folder, is moved or removed: gives the lock up where that must be."""
    if fcntl is None:
        lock.close()


@contextlib.contextmanager
def held(path: Path) -> Iterator[BinaryIO]:
    """Inside, the lock file of something that was left is this process's; OSError where there is none, or it is
    another's."""
    if not path.is_file():
        raise FileNotFoundError(path)
    lock = hold(path)
    if lock is None:
        raise BlockingIOError(f"{path} belongs to a living process")
    with lock:
        yield lock


def part_name(path: Path) -> str:
    """The hidden name, always the same one, under which a file or folder of this name is made."""
    return f".lean3r-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12]}.part"


def parts_in(folder: Path) -> list[Path]:
    """All that is in the making in a folder, or was left there."""
    with contextlib.suppress(OSError):
        return [Path(entry.path) for entry in os.scandir(folder) if is_part(entry.name)]
    return []


def is_part(name: str) -> bool:
    """Whether a name is one of `part_name`'s."""
    return _PART.fullmatch(name) is not None


def remove_left_file(path: Path) -> None:
    """Remove a file in the making whose process is dead; anything else stays."""
    with contextlib.suppress(OSError), held(path) as lock:
        release(lock)
        path.unlink()


@contextlib.contextmanager
def atomic_file(path: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a path beside `path` to write to, which becomes `path` when the block ends well, and else is removed.

    UsageError where another run is making `path`, or where, without `overwrite`, something has appeared there.
    """
    path = Path(os.path.realpath(path))
    part = path.parent / part_name(path)
    for left in parts_in(path.parent):
        if left != part:
            remove_left_file(left)
    lock = hold(part, must=part.exists())
    if lock is None:
        raise UsageError(f"another run is writing {path}. Wait until it has ended, or name another file.")
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
                _put(part, path)
        finally:
            if not is_placed:  # else the name may be another run's by now
                release(lock)
                part.unlink(missing_ok=True)


def _put(part: Path, path: Path) -> None:
    try:
        os.link(part, path)
    except FileExistsError as error:
        raise UsageError(
            f"{path} has appeared while it was made, and stays as it is. Use --overwrite (overwrite=True), "
            "or name another file."
        ) from error
    except OSError:  # a disk without links: as near as it comes
        if path.exists():
            raise UsageError(f"{path} has appeared while it was made, and stays as it is.") from None
        os.replace(part, path)


@contextlib.contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """A new folder among the system's temporary ones, removed at the end; first goes what killed runs left there."""
    base = Path(tempfile.gettempdir())
    for left in base.glob("lean3r-*"):
        if _TEMPORARY.fullmatch(left.name) and _is_ours(left):
            with contextlib.suppress(OSError), held(left / LOCK) as lock:
                release(lock)
                shutil.rmtree(left)
    with contextlib.ExitStack() as stack:
        while True:
            folder = Path(tempfile.mkdtemp(prefix=f"lean3r-{purpose}-"))
            with contextlib.suppress(FileNotFoundError):  # taken for a leftover in the moment before it was locked
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
    """Whether a folder is one of this user's with a lock of ours: nobody can make us follow a link elsewhere."""
    with contextlib.suppress(OSError):
        about = folder.lstat()
        ours = os.getuid() if hasattr(os, "getuid") else about.st_uid  # Windows has such folders for each user
        return stat.S_ISDIR(about.st_mode) and about.st_uid == ours
    return False
