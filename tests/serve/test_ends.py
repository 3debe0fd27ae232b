"""The end of a job, and what stands in its way: a full disk, or its owner at the last moment."""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lean3r.serve.dispatch import Dispatcher
from lean3r.serve.jobs import Job, Store
from lean3r.serve.logs import explain
from lean3r.serve.options import ServeOptions
from lean3r.serve.places import Places
from lean3r.serve.worker import Task
from serve.conftest import wait_for


class Last:
    """A worker that says one thing more."""

    pid = exit_code = None
    is_alive = True

    def send(self, task: Task) -> None: ...

    def receive(self, seconds: float) -> tuple[str, object]:
        raise EOFError

    def memory_mb(self) -> None: ...

    def end(self) -> None: ...


def with_a_job(tmp_path: Path) -> tuple[Places, Store, Dispatcher]:
    """Job "a" waits; nothing runs it yet."""
    places = Places(tmp_path / "data")
    store = Store(places.base)
    places.incoming("a").mkdir()
    places.accept("a")
    store.add("a", "a", [], {}, 1, 9)
    return places, store, Dispatcher(store, places, ServeOptions(devices="cpu"), runner="serve.stub:Stub")


def test_a_job_whose_end_cannot_be_noted_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk under the database: nothing seems to run for ever."""
    monkeypatch.setattr("lean3r.serve.dispatch.PAUSE", 0.1)
    places = Places(tmp_path / "data")
    store = Store(places.base)
    places.incoming("a").mkdir()
    (places.incoming("a") / "a.jpg").touch()
    places.accept("a")
    store.add("a", "a", [{"stored": "a.jpg"}], {}, 1, 9)
    full = [True, True, True]
    finish, fail, give_back = store.finish, store.fail, store.give_back

    def refuse(way: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            if full:
                full.pop()
                raise sqlite3.OperationalError("database or disk is full")
            return way(*arguments)

        return call

    monkeypatch.setattr(store, "finish", refuse(finish))
    monkeypatch.setattr(store, "fail", refuse(fail))
    monkeypatch.setattr(store, "give_back", refuse(give_back))
    dispatcher = Dispatcher(store, places, ServeOptions(devices="cpu"), runner="serve.stub:Stub")
    dispatcher.start()
    try:
        wait_for(lambda: store.get("a").state == "done")  # type: ignore[union-attr]
        assert full == [] and store.get("a").attempt == 2  # type: ignore[union-attr]
    finally:
        dispatcher.stop()


@pytest.mark.parametrize("when", ["within the job", "at the summary", "at the end", "at the start"])
def test_a_disk_that_a_job_fills_costs_one_attempt(when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as what the job has written is there, nothing can be noted."""
    places, store, dispatcher = with_a_job(tmp_path)
    job = store.claim()
    assert job is not None
    attempt, full = places.attempt(job), OSError(28, "No space left on device")
    fail = store.fail

    def fail_if_there_is_room(job: Job, reason: str) -> bool:
        if attempt.exists() or places.done(job.id).exists():
            raise sqlite3.OperationalError("database or disk is full")
        return fail(job, reason)

    summary = {"warnings": ["x" * 1000] * 100}

    class Filling(Last):
        """A worker whose results need more than there is."""

        def send(self, task: Task) -> None:
            if when == "at the start":
                raise full
            task.out.mkdir()
            (task.out / "depth.npz").write_bytes(b"much")

        def receive(self, seconds: float) -> tuple[str, object]:
            return ("failed", explain(full)) if when == "within the job" else ("done", summary)

    def write_text(path: Path, *arguments: object, **more: object) -> int:
        raise full

    monkeypatch.setattr(store, "fail", fail_if_there_is_room)
    (pages,) = store._base.execute("PRAGMA page_count").fetchone()
    store._base.execute(f"PRAGMA max_page_count = {pages}")  # for a reason there is room, for a summary there is none
    if when == "at the summary":
        monkeypatch.setattr(Path, "write_text", write_text)
    dispatcher._work(Filling(), job)
    ended = store.get("a")
    assert ended is not None and (ended.state, ended.attempt, ended.lost) == ("failed", 1, 0)
    assert ended.reason == "the disk of the service is full; try again later."
    assert dispatcher.ended == {"failed": 1} and list(places.job("a").iterdir()) == []


@pytest.mark.parametrize("end", ["done", "failed", "lost"])
def test_jobs_that_are_cancelled_at_the_last_moment_are_counted(tmp_path: Path, end: str) -> None:
    """Between two looks at the job, its worker says what became of it, or is gone."""
    places, store, dispatcher = with_a_job(tmp_path)

    class Late(Last):
        """A worker that is told to end a moment too late."""

        def send(self, task: Task) -> None:
            store.cancel("a")

        def receive(self, seconds: float) -> tuple[str, object]:
            return super().receive(seconds) if end == "lost" else (end, {} if end == "done" else "no")

    job = store.claim()
    assert job is not None
    dispatcher._work(Late(), job)
    assert dispatcher.ended == {"cancelled": 1} and [path.name for path in places.job("a").iterdir()] == []


def test_thousands_of_messages_cost_few_transactions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker says of each picture that is left out why; the owner sees the last reasons."""
    _, store, dispatcher = with_a_job(tmp_path)
    job = store.claim()
    assert job is not None
    said = deque([("log", ("warning", f"skipped {number}.jpg")) for number in range(3000)])
    said.append(("progress", {"stage": "network", "done": 0, "total": 0}))
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(store, "note", lambda _, **about: told.append(about))

    class Talking(Last):
        """A worker that says all of this, and no more."""

        def receive(self, seconds: float) -> tuple[str, object]:
            return said.popleft() if said else super().receive(seconds)

    dispatcher._work(Talking(), job)
    assert 1 <= len(told) < 300 and told[-1]["stage"] == "network"
    notes = [about["notes"] for about in told if "notes" in about]
    assert len(notes[-1]) == 20 and notes[-1][-1] == "skipped 2999.jpg"
