"""Where the service keeps what: one folder for each job, in which a result appears by one rename.

- DATA/lock: held by the service; its process id
- DATA/jobs.sqlite3: the jobs
- DATA/incoming/ID/: an upload that is not complete
- DATA/jobs/ID/input/: the files of a job, until it ends
- DATA/jobs/ID/attempt-N/: what its N-th start has written so far: files/ and summary.json
- DATA/jobs/ID/done/: the attempt that succeeded
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from lean3r.errors import UsageError
from lean3r.scratch import hold
from lean3r.serve.jobs import Job, Store
from lean3r.serve.options import GIGABYTE, ServeOptions

BASE, LOCK, SUMMARY = "jobs.sqlite3", "lock", "summary.json"
_ID_BYTES = 8


class NoRoomError(Exception):
    """The quota or the disk has no room for an upload; the message says which."""


def new_id() -> str:
    """An id that cannot be guessed."""
    return secrets.token_hex(_ID_BYTES)


class Places:
    """The folder of a service, which it holds alone until it is closed. UsageError if another service holds it, or it
    cannot be written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().absolute()
        try:
            for name in ("", "incoming", "jobs"):
                (self.folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = hold(self.folder / LOCK, must=False)
        except OSError as error:
            raise UsageError(f"{folder} cannot be used: {error.strerror}. Name another folder with --data.") from error
        if lock is None:
            raise UsageError(f"another service uses {folder}. End it, or name another folder with --data.")
        self._lock: BinaryIO = lock
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n".encode())
        lock.flush()

    def close(self) -> None:
        """Let another service have the folder."""
        self._lock.close()

    @property
    def base(self) -> Path:
        """The database."""
        return self.folder / BASE

    def incoming(self, id: str) -> Path:
        """Where an upload grows."""
        return self.folder / "incoming" / id

    def job(self, id: str) -> Path:
        """Everything of a job."""
        return self.folder / "jobs" / id

    def input(self, id: str) -> Path:
        """The uploaded files."""
        return self.job(id) / "input"

    def attempt(self, job: Job) -> Path:
        """What this start writes."""
        return self.job(job.id) / f"attempt-{job.attempt}"

    def done(self, id: str) -> Path:
        """The result and its summary."""
        return self.job(id) / "done"

    def result(self, id: str) -> Path:
        """The files of the result."""
        return self.done(id) / "files"

    def accept(self, id: str) -> None:
        """A complete upload becomes a job's input."""
        self.job(id).mkdir()
        os.rename(self.incoming(id), self.input(id))

    def placed(self, id: str) -> tuple[Mapping[str, Any], int] | None:
        """The summary and the size of a result in its place; None if there is none."""
        try:
            return json.loads((self.done(id) / SUMMARY).read_bytes()), size_of(self.result(id))
        except (OSError, ValueError):
            return None

    def listing(self, id: str) -> dict[str, int]:
        """The bytes of each file of a result, by its path in the folder; empty if there is none."""
        found: dict[str, int] = {}
        result = self.result(id)
        for parent, _, names in os.walk(result):
            for name in sorted(names):
                path = Path(parent) / name
                with contextlib.suppress(OSError):
                    if path.is_file() and not path.is_symlink():
                        found[path.relative_to(result).as_posix()] = path.stat().st_size
        return dict(sorted(found.items()))

    def tidy(self, id: str) -> None:
        """Remove everything of an ended job but its result."""
        with contextlib.suppress(OSError):
            for entry in os.scandir(self.job(id)):
                if entry.name != "done":
                    shutil.rmtree(entry.path, ignore_errors=True)

    def remove(self, id: str) -> None:
        """Remove everything of a job."""
        shutil.rmtree(self.job(id), ignore_errors=True)

    def settle(self, store: Store) -> None:
        """After a start: remove uploads that were not complete, and folders that belong to no job or to one that has
        ended without a result."""
        known = store.ids()
        for entry in list(os.scandir(self.folder / "incoming")):
            shutil.rmtree(entry.path, ignore_errors=True)
        for entry in list(os.scandir(self.folder / "jobs")):
            job = store.get(entry.name) if entry.name in known else None
            if job is None or job.state in ("failed", "cancelled", "expired"):
                shutil.rmtree(entry.path, ignore_errors=True)
            elif job.state == "done":
                self.tidy(job.id)
            else:
                for left in Path(entry.path).glob("attempt-*"):
                    shutil.rmtree(left, ignore_errors=True)


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


class Room:
    """Counts what is kept and what arrives against the quota and the disk; removes the oldest results where an upload
    needs their place, and those that are too old."""

    def __init__(self, places: Places, store: Store, options: ServeOptions) -> None:
        self.places, self.store, self.options = places, store, options
        self._lock, self._arriving = threading.Lock(), 0

    def take(self, size: int) -> None:
        """So many bytes more arrive; NoRoomError if there is no room for them."""
        with self._lock:
            free = shutil.disk_usage(self.places.folder).free
            if free - size < self.options.reserve_gb * GIGABYTE:
                raise NoRoomError("the disk of the service is full; try again later.")
            quota = int(self.options.quota_gb * GIGABYTE)
            while (wanted := self.store.used_bytes() + self._arriving + size) > quota:
                if not self._remove_oldest():
                    raise NoRoomError(
                        f"the quota of the service is full: {wanted / 1e6:,.0f} of {quota / 1e6:,.0f} MB; try again "
                        "when jobs have ended."
                    )
            self._arriving += size

    def give(self, size: int) -> None:
        """So many bytes that arrived are counted as a job's now, or gone."""
        with self._lock:
            self._arriving -= size

    def _remove_oldest(self) -> bool:
        """Whether there was a result to remove."""
        with_files = [job for job in self.store.ended_first() if job.bytes]
        if not with_files or not self.store.expire(with_files[0].id):
            return False
        self.places.remove(with_files[0].id)
        return True

    def clean(self, now: float) -> list[str]:
        """Remove the results that are too old at a time in seconds since 1970, and forget them when they are ten times
        as old; the ids of those that were removed."""
        keep = 3600 * self.options.keep_hours
        removed = []
        for job in self.store.ended_first():
            if job.ended is not None and now - job.ended > keep and self.store.expire(job.id):
                self.places.remove(job.id)
                removed.append(job.id)
        for job in self.store.expired():
            if job.ended is not None and now - job.ended > 10 * keep:
                self.store.remove(job.id)
        return removed
