"""Replace an older folder by a finished one, in steps that survive an interruption at any moment.

A workspace holds NEW, the unfinished folder. Once NEW is complete, the workspace also holds a JOURNAL, which records
how NEW is put in place and which files of the older result it replaces. Usually both folders are exchanged in one move.
If the target cannot be moved, files move one by one. `settle` completes either after an interruption.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shutil
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

NEW, OLD, JOURNAL = "new", "old", "journal.json"
_MANIFEST = "manifest.json"
_EXCHANGE, _HERE = 2, -100  # RENAME_EXCHANGE and AT_FDCWD of Linux; RENAME_SWAP of macOS is 2, too
_CANNOT_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_CANNOT_MOVE = (errno.EXDEV, errno.EBUSY, errno.EPERM, errno.EACCES)


def commit(work: Path, target: Path, listed: Collection[str], *, swap: bool) -> None:
    """Record that NEW replaces the `listed` files of the target, and exchange the folders; `settle` does the rest.

    `swap` says whether the target may be exchanged as a whole.
    """
    new = work / NEW
    journal = {"inode": new.stat().st_ino, "listed": sorted(listed), "files": list(files_of(new))}
    swap = swap and _link_other_files(new, target, listed)
    _write_journal(work, journal | {"swap": swap})
    if not swap:
        return
    try:
        if not _exchange(new, target):
            os.rename(target, work / OLD)
            os.rename(new, target)
    except OSError as error:
        if error.errno not in _CANNOT_MOVE:
            raise
        _write_journal(work, journal | {"swap": False})


def settle(work: Path, target: Path) -> None:
    """Complete a committed replacement, or undo an uncommitted one, and empty the workspace except for its lock.

    May be called at any time, and again.
    """
    new, old, journal = work / NEW, work / OLD, _read_journal(work)
    if old.exists() and not os.path.lexists(target):
        os.rename(old, target)  # interrupted between two moves: restore the older folder
        journal = None
    if journal is not None and not journal["swap"]:
        _merge(new, target, journal)
    if new.exists() and (journal is None or not journal["swap"] or new.stat().st_ino == journal["inode"]):
        shutil.rmtree(new, ignore_errors=True)
    for rest in (old, new):
        while rest.exists():
            _remove_old(rest, target, journal["listed"] if journal else ())
    (work / JOURNAL).unlink(missing_ok=True)


def find_conflict(new: Path, target: Path, listed: Collection[str]) -> str | None:
    """The name of a file in the target that must stay but conflicts with a new file; None if there is none."""
    if not target.is_dir():
        return target.name if os.path.lexists(target) else None
    for name in files_of(new):
        parents = [parent for parent in Path(name).parents if parent.name]
        for folder in reversed(parents):
            place = target / folder
            if os.path.lexists(place) and (place.is_symlink() or not place.is_dir()):
                return folder.as_posix()
        place = target / name
        if os.path.lexists(place) and (name not in listed or (place.is_dir() and not place.is_symlink())):
            return name
    return None


def _link_other_files(new: Path, target: Path, listed: Collection[str]) -> bool:
    """Make hard links in NEW to the files of the target that stay, so that they are never missing.

    False if a folder in the target is a mount point: the target then cannot be exchanged. Files that cannot be linked
    are moved later, by `settle`.
    """
    for folder, folders, _ in os.walk(target):
        if any(os.path.ismount(os.path.join(folder, name)) for name in folders):
            return False
    for name in files_of(target):
        if name not in listed:
            place = new / name
            place.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError, NotImplementedError):
                os.link(target / name, place, follow_symlinks=False)
    shutil.copystat(target, new)
    with contextlib.suppress(OSError, AttributeError):  # Windows has no chown
        os.chown(new, target.stat().st_uid, target.stat().st_gid)
    return True


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one move; False if the system cannot."""
    if sys.platform == "win32":
        return False
    library = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        failed = library.renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE)
    elif hasattr(library, "renamex_np"):
        failed = library.renamex_np(os.fsencode(one), os.fsencode(other), _EXCHANGE)
    else:
        return False
    code = ctypes.get_errno()
    if failed and code not in _CANNOT_EXCHANGE:
        raise OSError(code, os.strerror(code), str(other))
    return not failed


def _merge(new: Path, target: Path, journal: dict) -> None:
    """Move the files of NEW into the target in place of the listed ones, the manifest last."""
    if (new / _MANIFEST).exists():  # without a manifest, the target is not a result until the new one arrives
        (target / _MANIFEST).unlink(missing_ok=True)
        for name in set(journal["listed"]) - set(journal["files"]):
            _unlink(target, name)
    for name in sorted(journal["files"], key=lambda name: name == _MANIFEST):
        if os.path.lexists(new / name):  # otherwise it was moved before an interruption
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            _move(new / name, target / name)


def _remove_old(old: Path, target: Path, listed: Collection[str]) -> None:
    """Remove an older result; move files that are not listed, even very new ones, to the target."""
    for folder, _, _ in os.walk(old):
        here = Path(folder).relative_to(old)
        is_listed = any(here in Path(name).parents for name in listed)
        if not is_listed and not os.path.lexists(target / here):
            (target / here).mkdir(parents=True)
    for name in files_of(old):
        place = target / name
        if name in listed or (os.path.lexists(place) and os.path.samestat(place.lstat(), (old / name).lstat())):
            (old / name).unlink()
            continue
        number, free = 2, place
        while os.path.lexists(free):
            free, number = place.with_name(f"{place.stem}-{number}{place.suffix}"), number + 1
        free.parent.mkdir(parents=True, exist_ok=True)
        _move(old / name, free)
    for folder, _, _ in os.walk(old, topdown=False):
        with contextlib.suppress(OSError):  # another program has just created a file in it
            os.rmdir(folder)


def _unlink(target: Path, name: str) -> None:
    """Remove a file of the target and the folders that this leaves empty; never through a symbolic link."""
    place = target / name
    if place.parent.resolve() != place.parent or (place.is_dir() and not place.is_symlink()):
        return
    place.unlink(missing_ok=True)
    for folder in place.parents:
        if folder == target:
            return
        try:
            folder.rmdir()
        except OSError:
            return


def _move(source: Path, place: Path) -> None:
    try:
        os.replace(source, place)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        beside = place.with_name(f".{place.name}.moving")
        shutil.copy2(source, beside, follow_symlinks=False)
        os.replace(beside, place)
        source.unlink()


def files_of(folder: Path) -> Iterator[str]:
    """The sorted relative names of everything in `folder` except folders; links to folders are included."""
    names = []
    for here, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(here, name))]
        names += [Path(here, name).relative_to(folder).as_posix() for name in (*files, *links)]
    return iter(sorted(names))


def _write_journal(work: Path, content: dict) -> None:
    beside = work / f"{JOURNAL}.new"
    beside.write_text(json.dumps(content))
    os.replace(beside, work / JOURNAL)


def _read_journal(work: Path) -> dict | None:
    try:
        return json.loads((work / JOURNAL).read_text())
    except FileNotFoundError:
        return None
