"""Services as processes of their own, mostly with a runner that needs no network (stub.py), and those who ask them."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
SECONDS = 120.0  # until something must have happened: these machines are busy
STUB = "from serve.stub import main; main()"
COMMAND = "import sys; from lean3r.cli.main import main; sys.exit(main(sys.argv[1:]))"


def picture(side: int = 48, seed: int = 0) -> bytes:
    """A small JPEG."""
    out = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((side * 4 // 3, side), Image.Resampling.BICUBIC).save(out, "JPEG")
    return out.getvalue()


class Service:
    """A service in a folder, which can be started again after any end."""

    def __init__(self, data: Path, *arguments: str, **options: Any) -> None:
        self.data, self.arguments, self.options = data, arguments, options
        self.process: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        """Start it and wait until it is ready."""
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        given = [STUB, str(self.data), json.dumps(self.options)]
        if self.arguments:
            given = [COMMAND, "serve", "--data", str(self.data), "--port", "0", "--json", *self.arguments]
        self.log = self.data.parent / f"{self.data.name}.log"
        with self.log.open("a") as log:
            command = [sys.executable, "-P", "-c", *given]
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, cwd=self.data.parent
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log.read_text()[-3000:]
        about = json.loads(line)
        self.address, self.token = about["address"], about["token"]
        self.client = httpx.Client(base_url=self.address, timeout=60, trust_env=False)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, and wait for the end; the exit code."""
        assert self.process is not None and self.process.stdout is not None
        self.client.close()
        self.process.send_signal(number)
        code = self.process.wait(60)
        self.process.stdout.close()
        return code

    def upload(self, *names: str, **options: Any) -> dict[str, Any]:
        """Queue a job of pictures with these names; the answer."""
        files = [("files", (name, picture(seed=n))) for n, name in enumerate(names)]
        answer = self.client.post("/api/jobs", files=files, data={"options": json.dumps(options)})
        assert answer.status_code == 201, answer.text
        return answer.json()

    def job(self, id: str) -> dict[str, Any]:
        """As it is now."""
        return self.client.get(f"/api/jobs/{id}").json()

    def until(self, id: str, *states: str) -> dict[str, Any]:
        """Wait until a job is in one of these states, by default until it has ended."""
        wanted = states or ("done", "failed", "cancelled", "expired")
        return wait_for(lambda: (now := self.job(id))["state"] in wanted and now, self.log)

    def starts(self) -> list[str]:
        """The jobs that the stub began, in order."""
        path = self.data / "starts.log"
        return path.read_text().split() if path.exists() else []

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The lines of the log about an event."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]


def wait_for(happens: Callable[[], Any], log: Path | None = None) -> Any:
    """What a function returns as soon as it is true."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if found := happens():
            return found
        time.sleep(0.05)
    raise AssertionError(f"it never happened; {log.read_text()[-3000:] if log else ''}")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Start services that end with the test."""
    yield from _services(tmp_path)


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Service]]:
    """Start services that end with the file of tests."""
    yield from _services(tmp_path_factory.mktemp("services"))


def _services(folder: Path) -> Iterator[Callable[..., Service]]:
    made: list[Service] = []

    def start(*arguments: str, **options: Any) -> Service:
        made.append(Service(folder / f"data-{len(made)}", *arguments, **options))
        return made[-1]

    yield start
    for one in made:
        if one.process is not None and one.process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                one.end(signal.SIGKILL)
