"""The service as a process: its address, its workers, its threads, and its orderly end."""

from __future__ import annotations

import errno
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from lean3r.errors import MissingExtraError, UsageError
from lean3r.pipeline.cluster import ClusterOptions
from lean3r.serve.dispatch import RUNNER, Dispatcher
from lean3r.serve.guard import Gate, read_token
from lean3r.serve.jobs import Store
from lean3r.serve.logs import log, start_logs
from lean3r.serve.options import AUTO, ServeOptions
from lean3r.serve.places import Places, Room

CLEANING_SECONDS = 30.0
LAST_SECONDS = 5  # for answers that are on their way when the service is told to end
CONNECTIONS = 1000
ANYWHERE = ("0.0.0.0", "::")


def check_extra() -> None:
    """Raise MissingExtraError unless the web framework is installed."""
    try:
        import fastapi  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingExtraError.of("serving", "serve") from error


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address; UsageError if the port is in use or the address is not this machine's."""
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(f"--host {host} is no address of this machine: {error.strerror or error}.") from error
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind(place)
        made.listen(1024)
    except OSError as error:
        made.close()
        if error.errno == errno.EADDRINUSE:
            raise UsageError(f"port {port} of {host} is in use. Choose another --port, or 0 for a free one.") from error
        raise UsageError(f"port {port} of {host} cannot be used ({error.strerror or error}).") from error
    return made


def address_of(listening: socket.socket, host: str) -> str:
    """Where browsers find the service."""
    port = listening.getsockname()[1]
    shown = "127.0.0.1" if host in ANYWHERE else host
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/"


def serve(
    options: ServeOptions,
    data: Path,
    announce: Callable[[str, str | None], None],
    *,
    offline: bool = False,
    level: int = logging.INFO,
    runner: str = RUNNER,
    cluster: ClusterOptions | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C. `announce` is told the address, and the token if it was made here, once everything
    is ready. `runner` ("module:name") is what workers do (worker.py); a `cluster` has them on other machines.
    UsageError if the port or the folder is in use, and the errors of a worker that cannot start."""
    check_extra()
    import uvicorn

    from lean3r.serve.app import Routes

    class Server(uvicorn.Server):
        """uvicorn, whose signals are answered here."""

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    start_logs(level)
    token = read_token(options)
    with ExitStack() as stack:
        listening = stack.enter_context(listen(options.host, options.port))
        places = Places(data)
        stack.callback(places.close)
        store = Store(places.base)
        stack.callback(store.close)
        for id, state in store.recover(places.placed, options.attempts):
            log("job found after the end of the service", logging.WARNING, job=id, state=state)
        places.settle(store)
        dispatcher = Dispatcher(store, places, options, offline, runner, cluster)
        room = Room(places, store, options)
        gate = Gate(options.host_names, token, options.host in ANYWHERE)
        config = uvicorn.Config(
            Routes(dispatcher, room, gate).app,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            lifespan="off",
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=LAST_SECONDS,
        )
        server = Server(config)
        stack.callback(dispatcher.stop)
        with _ending(server, dispatcher):
            dispatcher.start()
            dispatcher.wait_ready()
            if dispatcher.stopping.is_set():
                return
            threading.Thread(target=_clean, args=(room, dispatcher.stopping), daemon=True).start()
            announce(address_of(listening, options.host), token if options.token == AUTO else None)
            log("service started", host=options.host, port=listening.getsockname()[1])
            server.run(sockets=[listening])
            log("service stopped")


@contextmanager
def _ending(server: Any, dispatcher: Dispatcher) -> Iterator[None]:
    """Inside, SIGTERM and Ctrl-C end uvicorn's server and the workers in good order; a second one does not wait for
    answers."""
    numbers = (signal.SIGTERM, signal.SIGINT)

    def end(number: int, frame: FrameType | None) -> None:
        server.force_exit = server.should_exit
        server.should_exit = True
        dispatcher.stopping.set()

    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _clean(room: Room, stopping: threading.Event) -> None:
    while not stopping.wait(CLEANING_SECONDS):
        try:
            for id in room.clean(time.time()):
                log("job expired", job=id)
        except Exception:
            logging.getLogger("lean3r.serve").exception("cleaning failed")
