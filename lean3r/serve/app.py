"""The routes of the service: a REST interface to jobs and results, and the pages that use it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import AsyncIterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse

from lean3r import __version__
from lean3r.errors import LeanError
from lean3r.scratch import temporary_folder
from lean3r.serve.checking import misfit, needs_check
from lean3r.serve.content import title_of
from lean3r.serve.dispatch import Dispatcher
from lean3r.serve.downloads import SEALED, Zip, asked_range, attachment, type_of
from lean3r.serve.given import ROLES, cameras_of
from lean3r.serve.guard import Gate, Guard
from lean3r.serve.jobs import ENDED, Job, QueueFullError, Store
from lean3r.serve.logs import log
from lean3r.serve.options import ServeOptions
from lean3r.serve.places import Places, Room, new_id
from lean3r.serve.request import Request as JobRequest
from lean3r.serve.request import describe, schema
from lean3r.serve.shown import STATES, ListedJob, Refusal, ShownJob, brief, events, metrics, show
from lean3r.serve.uploads import Receiver, RefusedError

UPLOADS = 32  # at once
READ = ["GET", "HEAD"]
MOST_LISTED = 200
DRAINED_BYTES, DRAINED_SECONDS = 1 << 26, 10.0  # of a refused upload: some clients read no answer before they have sent
PAGES = {
    "start.js": "text/javascript",
    "job.js": "text/javascript",
    "shared.js": "text/javascript",
    "style.css": "text/css",
}
VIEWED = "sandbox allow-scripts allow-downloads; frame-ancestors 'self'"  # besides the policy of the page itself
ABOUT = "Photos or a video in; cameras, depth and a point cloud out. Every answer that is an error has a text `error`."


class Routes:
    """The answers of one service; `app` is the whole application."""

    def __init__(self, dispatcher: Dispatcher, room: Room, gate: Gate) -> None:
        self.dispatcher, self.room = dispatcher, room
        self.store, self.places, self.options = dispatcher.store, dispatcher.places, dispatcher.options
        self.uploads, self.refused = 0, 0
        self.checking = asyncio.Semaphore(1)
        app = FastAPI(title="lean3r", version=__version__, description=ABOUT, docs_url=None, redoc_url=None)
        app.add_exception_handler(AnyHTTPException, _failed)
        app.add_exception_handler(RequestValidationError, _invalid)
        self._api(app)
        self._pages(app)
        self.api = app
        self.app = Guard(app, gate, _text("login.html"))
        app.add_api_route("/login", lambda: HTMLResponse(_text("login.html")), methods=READ, include_in_schema=False)

        async def log_in(request: Request) -> Response:
            return await gate.log_in(request, _text("login.html"))

        app.add_api_route("/login", log_in, methods=["POST"], include_in_schema=False)

    def _api(self, app: FastAPI) -> None:
        def route(path: str, answer: Any, method: str = "GET", **more: Any) -> None:
            if path.startswith("/api/"):
                more["responses"] = {key: {"model": Refusal} for key in ("4XX", "5XX")} | more.get("responses", {})
            app.add_api_route(path, answer, methods=[method], summary=_summary(answer), **more)
            if method == "GET" and answer != self.events:  # it has no end
                app.add_api_route(path, answer, methods=["HEAD"], include_in_schema=False, response_class=Response)

        job: dict[str, Any] = {"response_model": ShownJob}
        raw: dict[str, Any] = {"response_class": Response}

        def of_kind(kind: str) -> dict[str, Any]:
            return raw | {"responses": {200: {"content": {kind: {}}}}}

        route("/api/jobs", self.add, "POST", status_code=201, openapi_extra={"requestBody": self._body()}, **job)
        route("/api/jobs", self.listed, response_model=list[ListedJob])
        route("/api/jobs/{id}", self.one, **job)
        route("/api/jobs/{id}", self.removed, "DELETE", status_code=204, **raw)
        route("/api/jobs/{id}/cancel", self.cancelled, "POST", **job)
        route("/api/jobs/{id}/events", self.events, **of_kind("text/event-stream"))
        route("/api/jobs/{id}/files", self.files)
        route("/api/jobs/{id}/files/{path:path}", self.file, **of_kind("application/octet-stream"))
        route("/api/jobs/{id}/zip", self.zip, **of_kind("application/zip"))
        route("/api/jobs/{id}/view", self.view, **of_kind("text/html"))
        route("/api/jobs/{id}/report", self.report, **of_kind("text/html"))
        route("/api/options", self.described)
        route("/healthz", self.healthy, **of_kind("text/plain"))
        route("/readyz", self.ready, **of_kind("text/plain"))
        route("/metrics", self.metrics, **of_kind("text/plain"))

    def _pages(self, app: FastAPI) -> None:
        def page(path: str, name: str) -> None:
            app.add_api_route(path, lambda: HTMLResponse(_text(name)), methods=READ, include_in_schema=False)

        page("/", "start.html")
        page("/jobs/{id}", "job.html")

        def part(name: str) -> Response:
            if name not in PAGES:
                raise HTTPException(404, "there is no such page")
            return Response(_text(name), media_type=PAGES[name])

        app.add_api_route("/page/{name}", part, methods=READ, include_in_schema=False)

    def _body(self) -> dict[str, Any]:
        """The form of an upload, for OpenAPI."""
        options = schema(self.options.model_names)
        binary = {"type": "array", "items": {"type": "string", "format": "binary"}}
        form = {
            "files": binary,
            **dict.fromkeys(ROLES, binary),
            "options": {**options, "description": "A JSON object; or each option as a field."},
        }
        content = {"multipart/form-data": {"schema": {"type": "object", "required": ["files"], "properties": form}}}
        return {"required": True, "content": content}

    async def add(self, request: Request) -> Response:
        """Upload pictures, videos or zips, perhaps with cameras and masks, and queue a job for them."""
        if self.uploads >= UPLOADS:
            return _error(503, "too many uploads at once; try again soon.", {"retry-after": "5"})
        id, stream = new_id(), request.stream()
        receiver = Receiver(self.places.incoming(id), self.room, self.options)
        self.uploads += 1
        try:
            if self.store.counts()["queued"] >= self.options.queue:  # looked at again when everything has arrived
                raise RefusedError(503, self._too_many())
            length = request.headers.get("content-length", "")
            size = int(length) if length.isascii() and length.isdigit() else None
            upload = await receiver.receive(request.headers.get("content-type", ""), size, stream)
            given = upload.options()
            await self._check(given, receiver)
            job = await run_in_threadpool(self._queue, id, given, receiver)
            log("job queued", job=id, files=len(upload.files), bytes=upload.size)
            shown = show(self.store, job, self.options.keep_hours)
            return JSONResponse(shown, 201, {"location": f"jobs/{id}"})
        except RefusedError as error:
            self.refused += 1
            log("upload refused", status=error.status, reason=str(error))
            await _drain(stream)
            return _error(
                error.status, str(error), {"retry-after": "60"} if error.status in (503, 507) else None, error
            )
        finally:
            self.uploads -= 1
            await run_in_threadpool(receiver.give_up)

    async def _check(self, given: dict[str, Any], receiver: Receiver) -> None:
        """Refuse options that are wrong, and what would make the job fail as soon as it had read its pictures."""
        folder, models = receiver.folder, self.options.model_names
        try:
            request = await run_in_threadpool(JobRequest.of, given, models, cameras_of(folder))
        except LeanError as error:
            raise RefusedError(422, str(error)) from error
        if needs_check(request, folder):
            names = [file["stored"] for file in receiver.upload.inputs]
            async with self.checking:
                why = await run_in_threadpool(misfit, folder, names, given, models)
            if why:
                raise RefusedError(422, why)

    def _queue(self, id: str, given: dict[str, Any], receiver: Receiver) -> Job:
        """Make a job of a complete upload."""
        upload = receiver.upload
        title = title_of([file["name"] for file in upload.inputs])
        try:
            self.places.accept(id)
            return self.store.add(id, title, upload.all_files, given, upload.size, self.options.queue)
        except QueueFullError as error:
            self.places.remove(id)
            raise RefusedError(503, self._too_many()) from error
        except (sqlite3.Error, OSError) as error:
            self.places.remove(id)
            logging.getLogger("lean3r.serve").exception("a job cannot be stored")
            raise RefusedError(507, "the service cannot store the job; try again later.") from error

    def _too_many(self) -> str:
        return f"{self.options.queue} jobs are waiting already; try again later."

    async def listed(
        self, limit: int = Query(50, ge=1, le=MOST_LISTED), before: int | None = Query(None, ge=0, le=2**53)
    ) -> Response:
        """The jobs, the newest first; `before` a number for more."""
        jobs = self.store.latest(limit, before)
        return JSONResponse([brief(self.store, job, self.options.keep_hours) for job in jobs])

    async def one(self, id: str) -> Response:
        """One job."""
        return JSONResponse(show(self.store, self._job(id), self.options.keep_hours))

    def removed(self, id: str) -> Response:
        """Remove a job with everything of it; it is cancelled first if it waits or runs."""
        self._job(id)
        self._cancel(id)
        self.store.remove(id)
        self.places.remove(id)
        log("job removed", job=id)
        return Response(status_code=204)

    def cancelled(self, id: str) -> Response:
        """Cancel a job that waits or runs."""
        self._job(id)
        if not self._cancel(id):
            raise HTTPException(409, f"the job is {self._job(id).state}; it neither waits nor runs")
        log("job cancelled by its owner", job=id)
        return JSONResponse(show(self.store, self._job(id), self.options.keep_hours))

    async def events(self, id: str) -> Response:
        """Progress as server-sent events: `job` at every change, `end` at the end."""
        self._job(id)
        stream = events(self.store, id, self.options.keep_hours, self.dispatcher.stopping.is_set)
        return StreamingResponse(stream, media_type="text/event-stream", headers={"x-accel-buffering": "no"})

    def files(self, id: str) -> Response:
        """The files of a result."""
        found = self._result(id)
        rows = [{"path": path, "bytes": size, "type": type_of(path)} for path, size in found.items()]
        return JSONResponse({"files": rows})

    def file(self, id: str, path: str) -> Response:
        """One file of a result."""
        if path not in self._result(id):
            raise HTTPException(404, "the result has no such file")
        headers = {"content-disposition": attachment(path.split("/")[-1]), "content-security-policy": SEALED}
        return FileResponse(self.places.result(id) / path, media_type=type_of(path), headers=headers)

    def zip(self, id: str, request: Request) -> Response:
        """All files of a result as a zip, made while it is sent."""
        archive, tag = Zip(self.places.result(id), self._result(id)), f'"{id}"'
        headers = {"content-disposition": attachment(f"lean3r-{id}.zip"), "content-security-policy": SEALED}
        headers |= {"accept-ranges": "bytes", "etag": tag}
        part = asked_range(request.headers, archive.size, tag)
        start, stop = part or (0, archive.size)
        if part is not None:
            headers["content-range"] = f"bytes {f'{start}-{stop - 1}' if start < stop else '*'}/{archive.size}"
        if start == stop:
            return Response(status_code=416, headers=headers)
        headers["content-length"] = str(stop - start)
        status, pieces = 200 if part is None else 206, archive.pieces(start, stop) if request.method == "GET" else ()
        return StreamingResponse(pieces, status, headers, "application/zip")

    def view(self, id: str) -> Response:
        """The scene on a page to turn it round, which asks for nothing."""
        headers = {"content-security-policy": VIEWED, "x-frame-options": "SAMEORIGIN"}
        return FileResponse(self._page(id, "view.html"), media_type="text/html; charset=utf-8", headers=headers)

    def report(self, id: str) -> Response:
        """The quality report."""
        policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox; frame-ancestors 'none'"
        headers = {"content-security-policy": policy}
        return FileResponse(self._page(id, "report.html"), media_type="text/html; charset=utf-8", headers=headers)

    def described(self) -> Response:
        """The options of a job, its limits, and those of an upload."""
        options = self.options
        limits = {"bytes": int(1e9 * options.upload_gb), "files": options.upload_files}
        limits |= {"minutes": options.minutes, "keep_hours": options.keep_hours}
        return JSONResponse({"options": describe(self.options.model_names), "limits": limits})

    async def healthy(self) -> Response:
        """Whether the service answers."""
        return PlainTextResponse("ok\n")

    async def ready(self) -> Response:
        """Whether every worker is ready."""
        missing = [name for name in self.dispatcher.crew.names if name not in self.dispatcher.ready]
        if missing or self.dispatcher.stopping.is_set():
            return PlainTextResponse(f"not ready: {', '.join(missing) or 'stopping'}\n", 503)
        return PlainTextResponse("ready\n")

    def metrics(self) -> Response:
        """Figures in Prometheus' text form."""
        counts, working = self.store.counts(), self.dispatcher
        requests = self.app.requests.copy()
        text = metrics(
            {
                "lean3r_jobs": ("gauge", "Jobs by state.", {f'state="{s}"': counts[s] for s in STATES}),
                "lean3r_jobs_ended_total": (
                    "counter",
                    "Jobs that ended since the start.",
                    {f'state="{s}"': working.ended[s] for s in ENDED},
                ),
                "lean3r_job_seconds_total": ("counter", "Seconds spent on jobs that are done.", working.seconds),
                "lean3r_workers_ready": ("gauge", "Workers that are ready.", len(working.ready)),
                "lean3r_worker_starts_total": ("counter", "Workers that were started.", working.starts),
                "lean3r_stored_bytes": ("gauge", "Bytes kept of all jobs.", self.store.used_bytes()),
                "lean3r_uploads": ("gauge", "Uploads in progress.", self.uploads),
                "lean3r_uploads_refused_total": ("counter", "Uploads that were refused.", self.refused),
                "lean3r_http_requests_total": (
                    "counter",
                    "Answers by status.",
                    {f'status="{status}"': count for status, count in sorted(requests.items())},
                ),
            }
        )
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    def _cancel(self, id: str) -> bool:
        """Whether the job waited or ran until now."""
        before = self.store.cancel(id)
        if before == "queued":  # else its dispatcher does this, when its worker has ended
            self.dispatcher.ended["cancelled"] += 1
            self.places.tidy(id)
        return before is not None

    def _job(self, id: str) -> Job:
        job = self.store.get(id)
        if job is None:
            raise HTTPException(404, "there is no such job; perhaps it was removed")
        return job

    def _result(self, id: str) -> dict[str, int]:
        """The files of a done job."""
        job = self._job(id)
        if job.state == "expired":
            raise HTTPException(410, "the result has expired and was removed")
        if job.state != "done":
            raise HTTPException(409, f"the job is {job.state}; only a done one has files")
        if not (found := self.places.listing(id)):
            raise HTTPException(410, "the files of the result are gone")
        return found

    def _page(self, id: str, name: str) -> Path:
        if name not in self._result(id):
            raise HTTPException(404, "the result has no such page")
        return self.places.result(id) / name


def description(options: ServeOptions) -> dict[str, Any]:
    """The REST interface of a service with these options, as OpenAPI's JSON."""
    with temporary_folder("serve") as folder, contextlib.ExitStack() as stack:
        places = Places(folder)
        stack.callback(places.close)
        store = Store(places.base)
        stack.callback(store.close)
        room, gate = Room(places, store, options), Gate(options.host_names, None)
        return Routes(Dispatcher(store, places, options), room, gate).api.openapi()


async def _drain(stream: AsyncIterator[bytes]) -> None:
    """Take what still arrives of a refused upload, up to a limit."""
    end, taken = time.monotonic() + DRAINED_SECONDS, 0
    with contextlib.suppress(Exception):
        while taken < DRAINED_BYTES and time.monotonic() < end:
            taken += len(await asyncio.wait_for(anext(stream), 1.0))


def _error(
    status: int, text: str, headers: dict[str, str] | None = None, refused: RefusedError | None = None
) -> JSONResponse:
    more = {"skipped": refused.skipped} if refused is not None and refused.skipped else {}
    return JSONResponse({"error": text} | more, status, headers)


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, AnyHTTPException)
    return _error(error.status_code, str(error.detail))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return _error(422, f"{first['loc'][-1]}: {first['msg']}")


def _summary(answer: Any) -> str:
    return (answer.__doc__ or "").split("\n")[0].rstrip(".")


@cache
def _text(name: str) -> str:
    return (files("lean3r.serve") / "page" / name).read_text(encoding="utf-8")
