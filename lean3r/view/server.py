"""The page of results from a small server on this machine only: the program of the standard library, read-only.

It answers GET for three things: the page, what there is to show now (state), and bytes of results (parts), below a path
that only those know who are told the address: other users of the machine are not. Requests that name another host are
refused, so that no page of the web can ask through a name of its own.
"""

from __future__ import annotations

import errno
import json
import re
import secrets
import threading
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from lean3r.errors import UsageError
from lean3r.view.packing import Package
from lean3r.view.page import live_page

HERE = "127.0.0.1"
USUAL_PORT, TRIED = 8300, 50
KEPT = 3  # versions whose parts can be asked for: a page may still load an older one
_HERE = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?", re.IGNORECASE)
_PART = re.compile(r"/parts/(\d{1,9})/(\d)/([a-z0-9-]{1,40})")


@dataclass
class Shown:
    """What a server shows: packages, how they are aligned, and what happens (`stage`); a new version whenever the
    packages change. Any thread may change it."""

    version: int = 0
    packages: Sequence[Package] = ()
    aligned: str = ""
    stage: str = ""
    is_done: bool = False
    _older: dict[int, Sequence[Package]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, packages: Sequence[Package], aligned: str = "", *, is_done: bool) -> None:
        """Show other packages from now on. Their headers are made here, not while a page waits."""
        for package in packages:
            _ = package.header
        with self._lock:
            self.version += 1
            self.packages, self.aligned, self.is_done = packages, aligned, is_done
            self._older[self.version] = packages
            self._older.pop(self.version - KEPT, None)

    def of(self, version: int) -> Sequence[Package]:
        """The packages of a version; none if it is gone."""
        with self._lock:
            return self._older.get(version, ())

    def state(self, known: int) -> dict[str, Any]:
        """What a page asks for; without the headers if it knows this version."""
        with self._lock:
            version, packages = self.version, self.packages
            about = {"version": version, "aligned": self.aligned, "stage": self.stage, "isDone": self.is_done}
        return about if version == known else about | {"results": [package.header for package in packages]}


class Server:
    """Serves what is shown, in a thread of its own, until it is closed. `refresh` is called before each answer about
    the state, for results that grow."""

    def __init__(self, shown: Shown, port: int | None = None, refresh: Callable[[], None] | None = None) -> None:
        self.shown, self._secret = shown, secrets.token_urlsafe(9)
        self._server = _listen(port, _handler(shown, refresh, f"/{self._secret}"))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """Where browsers on this machine find the page."""
        return f"http://{HERE}:{self._server.server_address[1]}/{self._secret}/"

    def wait(self) -> None:
        """Wait until it is closed, or Ctrl-C."""
        while self._thread.is_alive():
            self._thread.join(0.5)

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle of an answer is nothing to report."""


def _listen(port: int | None, handler: type[BaseHTTPRequestHandler]) -> _Quiet:
    """A server on the port, or on a free one near the usual one; UsageError if there is none."""
    if port is not None and not 0 < port < 65536:
        raise UsageError(f"--port is {port}; expected 1 to 65535.")
    for number in [port] if port is not None else [*range(USUAL_PORT, USUAL_PORT + TRIED), 0]:
        try:
            return _Quiet((HERE, number), handler)
        except OSError as error:
            if port is not None or error.errno not in (errno.EADDRINUSE, errno.EACCES):
                in_use = error.errno == errno.EADDRINUSE
                reason = "is in use" if in_use else f"cannot be used ({error.strerror or error})"
                advice = "Choose another --port, or leave it out."
                raise UsageError(f"port {number} of this machine {reason}. {advice}") from error
    raise AssertionError("the system always has a free port")


def _handler(shown: Shown, refresh: Callable[[], None] | None, below: str) -> type[BaseHTTPRequestHandler]:
    page, refreshing = live_page(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version, protocol_version = "lean3r", "", "HTTP/1.1"
        timeout = 60

        def do_GET(self) -> None:
            if not is_here(self.headers.get("Host", "")):
                self._answer(b"wrong host\n", "text/plain", HTTPStatus.MISDIRECTED_REQUEST)
                return
            place = urllib.parse.urlsplit(self.path)
            path = place.path.removeprefix(below) if place.path.startswith(below) else ""
            if path == "/":
                self._answer(page, "text/html; charset=utf-8")
            elif path == "/state":
                if refresh is not None:
                    with refreshing:
                        refresh()
                known = int(place.query) if place.query.isascii() and place.query.isdigit() else -1
                self._answer(json.dumps(shown.state(known), allow_nan=False).encode(), "application/json")
            elif (found := _PART.fullmatch(path)) and (content := self._part(*found.groups())) is not None:
                self._answer(content, "application/octet-stream")
            else:
                self._answer(b"nothing here\n", "text/plain", HTTPStatus.NOT_FOUND)

        def _part(self, version: str, number: str, name: str) -> bytes | None:
            packages = shown.of(int(version))
            try:
                return packages[int(number)].part(name)
            except (IndexError, KeyError):
                return None

        def _answer(self, content: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
            self.send_response(status)
            for name, value in (
                ("Content-Type", kind),
                ("Content-Length", str(len(content))),
                ("Cache-Control", "no-store"),
                ("X-Content-Type-Options", "nosniff"),
                ("X-Frame-Options", "SAMEORIGIN"),
                ("Referrer-Policy", "no-referrer"),
                ("Cross-Origin-Resource-Policy", "same-origin"),
            ):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing: the program has its own output."""

    return Handler


def is_here(host: str) -> bool:
    """Whether a Host header names this machine, at any port: it may be forwarded."""
    return _HERE.fullmatch(host.strip()) is not None
