"""What the service says of itself and its jobs: JSON, events, and figures in Prometheus' form."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, NotRequired

from typing_extensions import TypedDict  # pydantic takes typing.TypedDict from Python 3.12 on

from lean3r import __version__
from lean3r.serve.given import LEFT_OUT
from lean3r.serve.jobs import Job, Store

LOOK, HEARTBEAT = 0.2, 15.0  # seconds between two looks, and between two signs of life
STATES = ("queued", "running", "done", "failed", "cancelled", "expired")


class Refusal(TypedDict):
    """Every answer that is an error; of an upload without a usable file also what was `skipped`, with reasons."""

    error: str
    skipped: NotRequired[list[dict[str, str]]]


class ListedJob(TypedDict):
    """What a list says of a job, and every event before the end. Times are seconds since 1970; `place` is 1 for the
    next of the waiting jobs; `progress` is what a running job does now (`stage`, `done` of `total` steps, `views`)."""

    id: str
    number: int
    state: str
    title: str
    created: float
    started: float | None
    ended: float | None
    place: int | None
    attempt: int
    options: dict[str, Any]
    progress: dict[str, Any] | None
    reason: str
    bytes: int
    expires: float | None


class ShownJob(ListedJob):
    """A whole job. There may be thousands of uploaded `files`, and of those that were not kept, which are `skipped`,
    with reasons; `summary` says what a done job found."""

    files: list[dict[str, Any]]
    skipped: list[dict[str, Any]]
    summary: dict[str, Any]


def brief(store: Store, job: Job, keep_hours: float) -> ListedJob:
    """A job in a list."""
    progress = store.progress(job.id) if job.state == "running" else None
    return {
        "id": job.id,
        "number": job.number,
        "state": job.state,
        "title": job.title,
        "created": job.created,
        "started": job.started,
        "ended": job.ended,
        "place": max(1, store.place(job)) if job.state == "queued" else None,
        "attempt": job.attempt,
        "options": dict(job.options),
        "progress": None if progress is None else dict(vars(progress)),
        "reason": job.reason,
        "bytes": job.bytes,
        "expires": None if job.ended is None else job.ended + 3600 * keep_hours,
    }


def show(store: Store, job: Job, keep_hours: float) -> ShownJob:
    """A job for its owner."""
    return {
        **brief(store, job, keep_hours),
        "files": [dict(file) for file in job.files if file.get("kind") != LEFT_OUT],
        "skipped": [
            {"name": file["name"], "reason": file["reason"]} for file in job.files if file.get("kind") == LEFT_OUT
        ],
        "summary": dict(job.summary),
    }


async def events(store: Store, id: str, keep_hours: float, is_over: Callable[[], bool]) -> AsyncIterator[str]:
    """Server-sent events of a job: `job` whenever it changes, `end`, with the whole job, when it has ended, `gone` if
    it is not known any more. They stop without one of the last two when the service stops; browsers then ask again."""
    seen, version, silent = "", -1, 0.0
    yield "retry: 2000\n\n"
    while not is_over():
        if store.version != version:
            version = store.version
            job = store.get(id)
            if job is None:
                yield "event: gone\ndata: {}\n\n"
                return
            if job.state not in ("queued", "running"):
                yield f"event: end\ndata: {json.dumps(show(store, job, keep_hours))}\n\n"
                return
            now = json.dumps(brief(store, job, keep_hours))
            if now != seen:
                seen, silent = now, 0.0
                yield f"event: job\ndata: {now}\n\n"
        await asyncio.sleep(LOOK)
        silent += LOOK
        if silent > HEARTBEAT:
            silent = 0.0
            yield ": still here\n\n"


def metrics(figures: dict[str, tuple[str, str, dict[str, float] | float]]) -> str:
    """Figures in Prometheus' text form; each name has a kind, a help and a value, or values by label
    (`state="done"`)."""
    lines = []
    for name, (kind, text, values) in figures.items():
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        rows = values.items() if isinstance(values, dict) else [("", values)]
        lines += [f"{name}{{{label}}} {value:g}" if label else f"{name} {value:g}" for label, value in rows]
    return "\n".join([*lines, f'lean3r_info{{version="{__version__}"}} 1', ""])
