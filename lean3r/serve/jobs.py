"""The jobs, in SQLite: every change of a state is one transaction, which happens only from the states that allow it.

queued -> running -> done | failed | cancelled, and later expired. A running job is queued again if its worker or the
service was lost. Progress within a job is not stored.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lean3r.errors import UsageError

State = Literal["queued", "running", "done", "failed", "cancelled", "expired"]
LIVE, ENDED = ("queued", "running"), ("done", "failed", "cancelled")
VERSION = 1  # of the schema
_WAIT = 30.0  # seconds for a lock of the file
_SCHEMA = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,
    title TEXT NOT NULL,
    files TEXT NOT NULL,
    options TEXT NOT NULL,
    created REAL NOT NULL,
    started REAL,
    ended REAL,
    attempt INTEGER NOT NULL DEFAULT 0,
    lost INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    summary TEXT NOT NULL DEFAULT '{}'
);
CREATE INDEX by_state ON jobs (state, number);
"""


@dataclass(frozen=True)
class Job:
    """A row: times in seconds since 1970; `attempt` counts its starts, `lost` those that its worker or the service did
    not outlive, `bytes` what is kept of it; `files` are the uploaded ones, `options` as they were given."""

    number: int
    id: str
    state: State
    title: str
    files: Sequence[Mapping[str, Any]]
    options: Mapping[str, Any]
    created: float
    started: float | None
    ended: float | None
    attempt: int
    lost: int
    bytes: int
    reason: str
    summary: Mapping[str, Any]


@dataclass
class Progress:
    """What a running job does now, and what it said before."""

    stage: str = ""
    done: int = 0
    total: int = 0
    views: int | None = None
    skipped: int = 0
    notes: list[str] = field(default_factory=list)


class QueueFullError(Exception):
    """As many jobs wait as may wait."""


class Store:
    """The jobs of one file, which only one service uses at a time; any of its threads may call it. Reading does not
    wait for changes that are being written. UsageError if the file is of another version, or no database."""

    def __init__(self, path: Path) -> None:
        self._lock, self._reading = threading.RLock(), threading.Lock()
        self.changed = threading.Condition(self._lock)
        self.version = 0
        self._progress: dict[str, Progress] = {}
        try:
            self._base, self._reader = _connect(path), _connect(path)
            self._base.execute("PRAGMA journal_mode = WAL")
            self._base.execute("PRAGMA synchronous = FULL")
            found = self._base.execute("PRAGMA user_version").fetchone()[0]
            if found == 0:
                self._base.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
            elif found != VERSION:
                raise UsageError(
                    f"{path.name} was written by another version of lean3r (form {found}; expected {VERSION}). "
                    "Name another folder with --data."
                )
        except sqlite3.DatabaseError as error:
            raise UsageError(f"{path} cannot be used as a database: {error}. Name another folder.") from error

    def close(self) -> None:
        """Close the file."""
        with self._lock, self._reading:
            self._base.close()
            self._reader.close()

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """One transaction; whoever waits for changes is told, if it changed anything."""
        with self._lock:
            before = self._base.total_changes
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield self._base
                self._base.execute("COMMIT")
            except BaseException:
                if self._base.in_transaction:  # when there is no room, SQLite rolls back by itself
                    self._base.execute("ROLLBACK")
                raise
            if self._base.total_changes > before:  # workers that look for a job and find none would wake each other
                self.version += 1
                self.changed.notify_all()

    def _all(self, query: str, *values: Any) -> list[sqlite3.Row]:
        with self._reading, closing(self._reader.execute(query, values)) as found:
            return found.fetchall()

    def add(
        self, id: str, title: str, files: Sequence[Mapping[str, Any]], options: Mapping[str, Any], size: int, most: int
    ) -> Job:
        """Queue a job; QueueFullError if `most` are waiting."""
        with self._change() as base:
            if base.execute("SELECT COUNT(*) FROM jobs WHERE state = 'queued'").fetchone()[0] >= most:
                raise QueueFullError
            base.execute(
                "INSERT INTO jobs (id, state, title, files, options, created, bytes) "
                "VALUES (?, 'queued', ?, ?, ?, ?, ?)",
                (id, title, json.dumps(list(files)), json.dumps(dict(options)), time.time(), size),
            )
            return _job(base.execute("SELECT * FROM jobs WHERE id = ?", (id,)).fetchone())

    def claim(self) -> Job | None:
        """Take the next job: it runs from now on, and nobody else can take it."""
        with self._change() as base:
            row = base.execute(
                "UPDATE jobs SET state = 'running', started = ?, attempt = attempt + 1 WHERE number = "
                "(SELECT number FROM jobs WHERE state = 'queued' ORDER BY number LIMIT 1) RETURNING *",
                (time.time(),),
            ).fetchone()
            if row is not None:
                self._progress[row["id"]] = Progress(stage="starting")
            return None if row is None else _job(row)

    def finish(self, job: Job, summary: Mapping[str, Any], size: int, place: Callable[[], None]) -> bool:
        """`place` the result and end the job, unless it was cancelled or taken by another attempt; whether it was
        placed."""
        with self._change() as base:
            if not self._is_running(job):
                return False
            place()
            self._end(base, job.id, "done", "", summary, size)
            return True

    def fail(self, job: Job, reason: str) -> bool:
        """End the job with a reason, unless it has ended or is another attempt."""
        with self._change() as base:
            if not self._is_running(job):
                return False
            self._end(base, job.id, "failed", reason, {}, 0)
            return True

    def give_back(self, job: Job, attempts: int | None) -> State | None:
        """Queue a running job again. With `attempts` it counts as lost, and fails if it was lost so often. Returns its
        new state; None if it does not run any more."""
        with self._change() as base:
            return self._give_back(base, job, attempts) if self._is_running(job) else None

    def _give_back(self, base: sqlite3.Connection, job: Job, attempts: int | None) -> State:
        lost = job.lost + (attempts is not None)
        if attempts is not None and lost >= attempts:
            reason = f"its worker or the service ended {lost} times while it ran, so it is not started again"
            self._end(base, job.id, "failed", reason, {}, 0)
            return "failed"
        base.execute("UPDATE jobs SET state = 'queued', started = NULL, lost = ? WHERE id = ?", (lost, job.id))
        self._progress.pop(job.id, None)
        return "queued"

    def cancel(self, id: str) -> State | None:
        """Cancel a job that waits or runs; which of them it did, None for neither."""
        with self._change() as base:
            row = base.execute("SELECT state FROM jobs WHERE id = ?", (id,)).fetchone()
            if row is None or row["state"] not in LIVE:
                return None
            self._end(base, id, "cancelled", "", {}, 0)
            return row["state"]

    def expire(self, id: str) -> bool:
        """The files of an ended job are gone."""
        with self._change() as base:
            done = base.execute(
                f"UPDATE jobs SET state = 'expired', bytes = 0 WHERE id = ? AND state IN {ENDED}", (id,)
            )
            return done.rowcount == 1

    def remove(self, id: str) -> bool:
        """Forget a job that does not wait or run."""
        with self._change() as base:
            return base.execute(f"DELETE FROM jobs WHERE id = ? AND state NOT IN {LIVE}", (id,)).rowcount == 1

    def recover(
        self, placed: Callable[[str], tuple[Mapping[str, Any], int] | None], attempts: int
    ) -> list[tuple[str, State]]:
        """After a start: what ran when the service ended is queued again, unless its result is in its place, of which
        `placed` tells the summary and the size. Returns (id, new state)."""
        found: list[tuple[str, State]] = []
        with self._change() as base:
            for row in base.execute("SELECT * FROM jobs WHERE state = 'running'").fetchall():
                job = _job(row)
                if (result := placed(job.id)) is not None:
                    self._end(base, job.id, "done", "", *result)
                    found.append((job.id, "done"))
                else:
                    found.append((job.id, self._give_back(base, job, attempts)))
        return found

    def _is_running(self, job: Job) -> bool:
        """Within a change."""
        row = self._base.execute("SELECT state, attempt FROM jobs WHERE id = ?", (job.id,)).fetchone()
        return row is not None and (row["state"], row["attempt"]) == ("running", job.attempt)

    def is_running(self, job: Job) -> bool:
        """Whether this attempt still runs: it was neither cancelled nor removed."""
        now = self.get(job.id)
        return now is not None and (now.state, now.attempt) == ("running", job.attempt)

    def _end(
        self, base: sqlite3.Connection, id: str, state: State, reason: str, summary: Mapping[str, Any], size: int
    ) -> None:
        base.execute(
            "UPDATE jobs SET state = ?, ended = ?, reason = ?, summary = ?, bytes = ? WHERE id = ?",
            (state, time.time(), reason, json.dumps(dict(summary)), size, id),
        )
        self._progress.pop(id, None)

    def get(self, id: str) -> Job | None:
        """The job with an id."""
        rows = self._all("SELECT * FROM jobs WHERE id = ?", id)
        return _job(rows[0]) if rows else None

    def latest(self, count: int, before: int | None = None) -> list[Job]:
        """The newest jobs first; `before`: only those with a smaller number."""
        largest = 2**62 if before is None else before
        query = "SELECT * FROM jobs WHERE number < ? ORDER BY number DESC LIMIT ?"
        return [_job(row) for row in self._all(query, largest, count)]

    def ended_first(self) -> list[Job]:
        """The ended jobs whose files are kept, the one that ended first first."""
        return [_job(row) for row in self._all(f"SELECT * FROM jobs WHERE state IN {ENDED} ORDER BY ended, number")]

    def expired(self) -> list[Job]:
        """The jobs without files."""
        return [_job(row) for row in self._all("SELECT * FROM jobs WHERE state = 'expired' ORDER BY number")]

    def place(self, job: Job) -> int:
        """Of a waiting job: 1 if it is the next."""
        return self._all("SELECT COUNT(*) FROM jobs WHERE state = 'queued' AND number <= ?", job.number)[0][0]

    def counts(self) -> Counter[str]:
        """How many jobs are in each state."""
        return Counter({row[0]: row[1] for row in self._all("SELECT state, COUNT(*) FROM jobs GROUP BY state")})

    def used_bytes(self) -> int:
        """What is kept of all jobs."""
        return self._all("SELECT COALESCE(SUM(bytes), 0) FROM jobs")[0][0]

    def ids(self) -> set[str]:
        """Of all jobs."""
        return {row[0] for row in self._all("SELECT id FROM jobs")}

    def note(self, id: str, **changes: Any) -> None:
        """Change what is known of the progress of a running job."""
        if (progress := self._progress.get(id)) is not None:
            for name, value in changes.items():
                setattr(progress, name, value)
            self.version += 1

    def progress(self, id: str) -> Progress | None:
        """The progress of a running job."""
        return self._progress.get(id)

    def wait(self, seconds: float) -> None:
        """Until a state changes, or so many seconds."""
        with self.changed:
            self.changed.wait(seconds)


def _connect(path: Path) -> sqlite3.Connection:
    base = sqlite3.connect(path, timeout=_WAIT, isolation_level=None, check_same_thread=False)
    base.row_factory = sqlite3.Row
    return base


def _job(row: sqlite3.Row) -> Job:
    values = {name: row[name] for name in row.keys()}  # noqa: SIM118 - a Row iterates over its values
    for name in ("files", "options", "summary"):
        values[name] = json.loads(values[name])
    return Job(**values)
