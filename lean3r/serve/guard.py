"""Who is let in: names of this service only, no pages of others, and those who know the token."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import re
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request, cookie_parser
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lean3r.errors import UsageError
from lean3r.serve.logs import log
from lean3r.serve.options import AUTO, ServeOptions, check_token

OPEN = ("/healthz", "/readyz", "/login", "/page/style.css")  # without a token
READING = ("GET", "HEAD", "OPTIONS")
LOGIN_BYTES = 4096
WRONG = "That is not the token of this service. With --token auto every start makes and prints a new one."
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9.-]+)(?::\d{1,5})?", re.IGNORECASE)
_JOB = re.compile(r"/jobs/([0-9a-f]{16})\b")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # with no-referrer, browsers say "Origin: null" of the form of the login page
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}


def read_token(options: ServeOptions) -> str | None:
    """The secret of the service, made if that is asked for; UsageError if its file cannot be read or is too short."""
    if options.token == AUTO:
        return secrets.token_urlsafe(24)
    if options.token_file is not None:
        try:
            token = options.token_file.expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--token-file {options.token_file} cannot be read: {error}.") from error
        check_token(token, f"--token-file {options.token_file}")
        return token
    return options.token


class Gate:
    """Whether a request may come in: by its Host, by where it comes from, and by its token."""

    def __init__(self, names: Sequence[str], token: str | None, any_address: bool = False) -> None:
        self.names, self.token, self.any_address = frozenset(names), token, any_address
        self._key = b"" if token is None else hashlib.sha256(token.encode()).digest()
        self.cookie = f"lean3r_{hashlib.sha256(b'name' + self._key).hexdigest()[:8]}"
        self.session = hmac.new(self._key, b"session", hashlib.sha256).hexdigest()

    def knows_host(self, host: str) -> bool:
        """Whether a Host header names this service, at any port: it may be forwarded. Where the service listens to all
        addresses of the machine, every address is one of its names, but no other name is: those can be made to lead
        here (DNS rebinding)."""
        found = _HOST.fullmatch(host.strip())
        if found is None:
            return False
        name = found[1].lower().strip("[]").rstrip(".")
        return name in self.names or (self.any_address and _is_address(name))

    def is_own(self, headers: Headers) -> bool:
        """Whether a request that changes something comes from a page of this service, or from no page."""
        origin = headers.get("origin")
        if origin is not None:
            parts = urlsplit(origin)
            return parts.scheme in ("http", "https") and parts.netloc.lower() == headers.get("host", "").lower()
        return headers.get("sec-fetch-site", "none") in ("none", "same-origin")

    def is_token(self, token: str) -> bool:
        """Whether a token is the right one; as long for each wrong one."""
        given = hashlib.sha256(token.encode("utf-8", "replace")).digest()
        return self.token is not None and hmac.compare_digest(given, self._key)

    def is_known(self, headers: Headers) -> bool:
        """Whether a request has the token, or the cookie of somebody who had it."""
        if self.token is None:
            return True
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self.is_token(token.strip()):
            return True
        # Not http.cookies, which reads none of them if another program's is odd: cookies are those of all ports.
        held = cookie_parser(headers.get("cookie", "")).get(self.cookie)
        return held is not None and hmac.compare_digest(held.encode("utf-8", "replace"), self.session.encode())

    def greet(self, request: Request) -> Response:
        """Somebody who gave the right token gets the cookie, and the start page."""
        answer = RedirectResponse("./", 303)  # from / or /login; a proxy may put both under a path of its own
        is_sealed = request.headers.get("origin", "").startswith("https:")  # a proxy has the certificate
        answer.set_cookie(self.cookie, self.session, httponly=True, samesite="strict", secure=is_sealed)
        return answer

    async def log_in(self, request: Request, page: str) -> Response:
        """The answer to the form of the login page."""
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > LOGIN_BYTES:
                return JSONResponse({"error": "the form is too long"}, 413)
        token = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0]
        return self.greet(request) if self.is_token(token.strip()) else HTMLResponse(_with_refusal(page), 401)


class Guard:
    """Stands before the application: refuses, adds headers, counts and logs. `requests` counts answers by status."""

    def __init__(self, app: ASGIApp, gate: Gate, login_page: str) -> None:
        self.app, self.gate, self.login_page = app, gate, login_page
        self.requests: Counter[int] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # no web sockets here
        begun, status = time.monotonic(), 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            answer = self._refusal(scope, Request(scope, receive))
            await (self.app if answer is None else answer)(scope, receive, sending)
        finally:
            self.requests[status] += 1
            self._note(scope, status, time.monotonic() - begun)

    def _refusal(self, scope: Scope, request: Request) -> Response | None:
        """The answer to somebody who is not let in."""
        headers, path = request.headers, scope["path"]
        if len(headers.getlist("host")) != 1 or not self.gate.knows_host(headers["host"]):
            return JSONResponse({"error": "wrong host: this service is not known by this name (--names)"}, 421)
        if scope["method"] not in READING and not self.gate.is_own(headers):
            return JSONResponse({"error": "this comes from a page of another site"}, 403)
        if self.gate.is_known(headers) or path in OPEN:
            return None
        if path == "/" and (token := request.query_params.get("token")) is not None and self.gate.is_token(token):
            return self.gate.greet(request)
        if path == "/" or "text/html" in headers.get("accept", ""):
            home = "../" * (path.count("/") - 1)
            page = self.login_page.replace('href="page', f'href="{home}page').replace('action="', f'action="{home}')
            page = _with_refusal(page) if "token" in request.query_params else page
            return HTMLResponse(page, 401)
        return JSONResponse(
            {"error": "a token is needed: Authorization: Bearer TOKEN"}, 401, {"www-authenticate": "Bearer"}
        )

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        """One line for each request; those that only look are of interest to few."""
        is_quiet = scope["method"] in READING and status < 400
        about = {"method": scope["method"], "path": scope["path"][:200], "status": status}
        if found := _JOB.search(scope["path"]):
            about["job"] = found[1]
        log("request", logging.DEBUG if is_quiet else logging.INFO, **about, ms=round(1000 * seconds, 1))


def _with_refusal(page: str) -> str:
    """The login page for somebody who gave a wrong token."""
    return page.replace('role="alert">', f'role="alert">{WRONG}')


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
