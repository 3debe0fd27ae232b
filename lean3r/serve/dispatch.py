"""Gives jobs to workers, one thread for each device, and ends workers: on cancel, at a limit, and with the service."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import Any

from lean3r.errors import LeanError, UsageError
from lean3r.pipeline.cluster import ClusterOptions
from lean3r.serve.actors import Actors
from lean3r.serve.jobs import Job, Store
from lean3r.serve.logs import Scrubber, explain, is_disk_full, log
from lean3r.serve.options import GIGABYTE, ServeOptions
from lean3r.serve.places import SUMMARY, Places, size_of
from lean3r.serve.uploads import inputs_of
from lean3r.serve.worker import Crew, Hand, Processes, Task

RUNNER = "lean3r.serve.reconstructing:Reconstructions"
TICK = 0.2  # seconds between two looks at a worker that is silent
START_SECONDS = 300.0  # a model may have to be downloaded
PAUSE = 5.0  # seconds before a worker that cannot start is tried again
NOTES = 20  # messages of the library that a job keeps


class Dispatcher:
    """Works on the jobs of a store until it is stopped. `ended` counts jobs by their outcome and `starts` workers;
    `trouble` says why a device has no worker."""

    def __init__(
        self,
        store: Store,
        places: Places,
        options: ServeOptions,
        offline: bool = False,
        runner: str = RUNNER,
        cluster: ClusterOptions | None = None,
    ) -> None:
        self.store, self.places, self.options = store, places, options
        self.crew = _crew(options, {"models": list(options.model_names), "offline": offline}, runner, cluster)
        self.scrub = Scrubber([places.folder])
        self.stopping = threading.Event()
        self.ended: Counter[str] = Counter()
        self.seconds, self.starts = 0.0, 0
        self.ready: dict[str, str] = {}
        self.trouble: dict[str, tuple[str, int]] = {}
        given = options.memory_gb
        self.memory_mb = self.crew.share_mb if given is None else given * GIGABYTE / 1e6
        self._threads = [threading.Thread(target=self._serve, args=(name,), daemon=True) for name in self.crew.names]

    def start(self) -> None:
        """Start the workers; after a while each is in `ready`, or has a `trouble`."""
        for thread in self._threads:
            thread.start()

    def wait_ready(self) -> None:
        """Wait until every worker is ready, or it is stopped; UsageError or another LeanError, as the command line has
        it, if one cannot start."""
        end = time.monotonic() + START_SECONDS
        while len(self.ready) < len(self.crew.names) and not self.stopping.is_set():
            if self.trouble:
                text, code = next(iter(self.trouble.values()))
                kind = next((kind for kind in LeanError.__subclasses__() if kind.exit_code == code), LeanError)
                raise kind(text)
            if time.monotonic() > end:
                raise UsageError("the workers did not start in time; see the log.")
            self.store.wait(TICK)

    def stop(self) -> None:
        """End the workers; running jobs wait again, as if they had not been started."""
        self.stopping.set()
        with self.store.changed:
            self.store.changed.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(30)

    def _serve(self, device: str) -> None:
        worker: Hand | None = None
        try:
            while not self.stopping.is_set():
                try:
                    if worker is None or not worker.is_alive:
                        self.ready.pop(device, None)
                        worker = self._start(device, worker)
                    elif (job := self.store.claim()) is not None:
                        self._settle(worker, job)
                    else:
                        self.store.wait(1.0)
                except Exception:
                    self._complain(device)
        finally:
            if worker is not None:
                worker.end()

    def _settle(self, worker: Hand, job: Job) -> None:
        """Work on a job; if its end cannot be noted, because the disk is full under the database for example, try
        until it can: a job must not seem to run for ever."""
        try:
            self._work(worker, job)
            return
        except Exception:
            worker.end()
            self._complain(job.id)
        while not self.stopping.is_set():
            try:
                self.store.give_back(job, self.options.attempts)
                return
            except Exception:
                self._complain(job.id)

    def _complain(self, about: str) -> None:
        logging.getLogger("lean3r.serve").exception("the dispatcher failed: %s", about)
        self.stopping.wait(PAUSE)

    def _start(self, device: str, before: Hand | None) -> Hand | None:
        """A worker that is ready; None if it did not start, after a pause."""
        if before is not None:
            before.end()
        worker = self.crew.start(device)
        self.starts += 1
        end = time.monotonic() + START_SECONDS
        problem: tuple[str, int] = ("the worker did not start in time", LeanError.exit_code)
        try:
            while time.monotonic() < end and not self.stopping.is_set():
                message = worker.receive(TICK)
                kind, value = ("", "") if message is None else message
                if kind == "ready":
                    self.ready[device] = value
                    self.trouble.pop(device, None)
                    log("worker ready", device=value, pid=worker.pid)
                    return worker
                if kind == "broken":
                    problem = (str(value[0]), int(value[1]))
                    break
        except (EOFError, OSError):
            problem = (f"the worker ended while it started ({worker.exit_code})", LeanError.exit_code)
        worker.end()
        if not self.stopping.is_set():
            self.trouble[device] = problem
            log("worker broken", logging.ERROR, device=device, reason=problem[0])
            self.stopping.wait(PAUSE)
        return None

    def _work(self, worker: Hand, job: Job) -> None:
        """One start of a job, to its end or to that of its worker."""
        attempt, begun = self.places.attempt(job), time.monotonic()
        log("job started", job=job.id, attempt=job.attempt)
        try:
            shutil.rmtree(attempt, ignore_errors=True)
            attempt.mkdir(mode=0o700)
            names = tuple(str(file["stored"]) for file in inputs_of(job.files))
            worker.send(Task(job.id, self.places.input(job.id), names, job.options, attempt / "files"))
            self._follow(worker, job, begun)
        except FileNotFoundError:  # the input is gone
            self._fail(job, "its files are gone")
        except (EOFError, OSError) as error:
            if is_disk_full(error):
                self._fail(job, explain(error))
                return
            worker.end()
            state = self.store.give_back(job, None if self.stopping.is_set() else self.options.attempts)
            log("worker lost", logging.WARNING, job=job.id, exit_code=worker.exit_code, error=str(error), state=state)
            if state is None:
                self._note_cancelled(job)
            elif state == "failed":
                self.ended["failed"] += 1
        finally:
            shutil.rmtree(attempt, ignore_errors=True)
            now = self.store.get(job.id)
            if now is None:
                self.places.remove(job.id)
            elif now.state not in ("queued", "running"):
                self.places.tidy(job.id)

    def _follow(self, worker: Hand, job: Job, begun: float) -> None:
        """Until the job ends; EOFError or OSError if its worker does."""
        notes: deque[str] = deque(maxlen=NOTES)
        is_noted, looked = True, begun
        while True:
            message = worker.receive(TICK)
            if message is not None:
                kind, value = message
                if kind == "done":
                    self._finish(job, value, time.monotonic() - begun)
                    return
                if kind == "failed":
                    self._fail(job, self.scrub(value))
                    return
                if kind == "progress":
                    self.store.note(job.id, **value, **({} if is_noted else self._told(notes)))
                    is_noted = True
                elif kind == "log":
                    level, text = value
                    number = logging.getLevelNamesMapping().get(level.upper(), logging.INFO)
                    log("message", number, job=job.id, text=text)
                    if level != "error":
                        notes.append(text)
                        is_noted = False
                if time.monotonic() - looked < TICK:  # of thousands of messages each would cost a transaction
                    continue
            looked = time.monotonic()
            if not is_noted:
                self.store.note(job.id, **self._told(notes))
                is_noted = True
            if self.stopping.is_set():
                worker.end()
                log("job given back", job=job.id, state=self.store.give_back(job, None))
                return
            if not self.store.is_running(job):
                worker.end()
                self._note_cancelled(job)
                return
            if reason := self._beyond(worker, begun):
                worker.end()
                self._fail(job, reason)
                return

    def _told(self, notes: Iterable[str]) -> dict[str, Any]:
        """The last messages of a job, as its owner sees them."""
        return {"notes": [self.scrub(text) for text in notes]}

    def _beyond(self, worker: Hand, begun: float) -> str:
        """Which limit the job passes; empty if none."""
        if time.monotonic() - begun > 60 * self.options.minutes:
            return f"it took more than {self.options.minutes:g} minutes, the limit of this service; use fewer pictures."
        memory = worker.memory_mb() if self.memory_mb is not None else None
        if memory is not None and self.memory_mb is not None and memory > self.memory_mb:
            return (
                f"it took more than {self.memory_mb:,.0f} MB of memory, the limit of this service; use fewer pictures "
                "or a smaller size (max_views, resolution)."
            )
        return ""

    def _finish(self, job: Job, summary: Mapping[str, Any], seconds: float) -> None:
        attempt, done, said = self.places.attempt(job), self.places.done(job.id), self._scrubbed(summary)
        try:
            (attempt / SUMMARY).write_text(json.dumps(said), encoding="utf-8")
            size = size_of(attempt)
            is_placed = self.store.finish(job, said, size, lambda: os.rename(attempt, done))
        except (OSError, sqlite3.Error) as error:
            shutil.rmtree(done, ignore_errors=True)  # it was placed, perhaps, but that could not be noted
            reason = f"its result could not be stored: {getattr(error, 'strerror', error)}"
            self._fail(job, explain(error) if is_disk_full(error) else reason)
            return
        if is_placed:
            self.ended["done"] += 1
            self.seconds += seconds
            log("job done", job=job.id, seconds=round(seconds, 3), bytes=size)
        else:
            self._note_cancelled(job)

    def _scrubbed(self, value: Any) -> Any:
        """JSON-ready values, whose texts name no paths of the machine."""
        if isinstance(value, Mapping):
            return {key: self._scrubbed(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self._scrubbed(one) for one in value]
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return self.scrub(value) if isinstance(value, str) else value

    def _fail(self, job: Job, reason: str) -> None:
        # What it has written goes first: if that fills the disk, nothing can be noted as long as it is there.
        shutil.rmtree(self.places.attempt(job), ignore_errors=True)
        if self.store.fail(job, reason):
            self.ended["failed"] += 1
            log("job failed", logging.WARNING, job=job.id, reason=reason)
        else:
            self._note_cancelled(job)

    def _note_cancelled(self, job: Job) -> None:
        """Its owner cancelled it while it ran, at the last moment perhaps."""
        self.ended["cancelled"] += 1
        log("job cancelled", job=job.id)


def _crew(options: ServeOptions, settings: Mapping[str, Any], runner: str, cluster: ClusterOptions | None) -> Crew:
    if cluster is None or cluster.engine == "local":
        if options.workers != ServeOptions.workers:
            raise UsageError("--workers is for a Ray cluster; give --engine ray, too. Here --devices says how many.")
        return Processes(runner, settings, options.device_names)
    return Actors(runner, settings, options.workers, options.device_names, cluster)
