"""The scenes of a batch, each reconstructed in a process of its own: on this machine, or on those of a Ray cluster."""

from __future__ import annotations

import platform
import subprocess
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol

from lean3r.inputs.listing import printable
from lean3r.json_text import parse_json
from lean3r.pipeline.cluster import RETRIES, ClusterOptions, connect
from lean3r.processes import python_command, sharing
from lean3r.scratch import LOCK, held, part_name

LOGS, MANIFEST = "logs", "manifest.json"
SUMMED = ("views", "skipped", "points", "peak_memory_mb")  # of a summary: what the table repeats, or counts
STOPPING_S = 10.0  # that a scene has to remove what is unfinished
TICK = 0.05
_BORDERS = " " + "".join(map(chr, range(0x2500, 0x2580)))  # of the boxes that the parser draws


@dataclass(frozen=True)
class Scene:
    """A scene: what is reconstructed, and the name of its result."""

    path: Path
    name: str


@dataclass
class Outcome:
    """What became of a scene: `state` done, failed, or waiting (not yet run); the exit status of its run, seconds, and
    for a failed one the `reason`, for a done one `figures` of its summary."""

    name: str
    state: str = "waiting"
    status: int | None = None
    seconds: float | None = None
    reason: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Terms:
    """What all scenes have in common: the folder of their results, options of `lean3r reconstruct`, and the limit in
    minutes."""

    out: Path
    options: tuple[str, ...] = ()
    minutes: float | None = None


class Engine(Protocol):
    """What runs scenes."""

    def outcomes(self, scenes: Sequence[Scene]) -> Generator[Outcome, None, None]:
        """Run the scenes; each outcome as soon as it is known. Closing the iterator ends the scenes that run."""
        ...


class Here:
    """An Engine: this machine, `jobs` scenes at a time."""

    def __init__(self, terms: Terms, jobs: int) -> None:
        self.terms, self.jobs = terms, jobs
        self._running = Running()

    def outcomes(self, scenes: Sequence[Scene]) -> Generator[Outcome, None, None]:
        """See Engine."""
        with ThreadPoolExecutor(self.jobs) as pool:
            futures = [pool.submit(run_scene, s, self.terms, self._running, sharing(self.jobs)) for s in scenes]
            try:
                for future in as_completed(futures):
                    yield future.result()
            finally:
                for future in futures:
                    future.cancel()
                self._running.stop()  # the threads read to the end of what the scenes say


class OnCluster:
    """An Engine: the machines of a Ray cluster, which see the scenes and the results under the same paths; at most
    `jobs` scenes at a time. A scene whose worker or machine is lost runs again elsewhere."""

    def __init__(self, terms: Terms, jobs: int | None, cluster: ClusterOptions) -> None:
        self.terms, self.jobs, self.cluster = replace(terms, out=terms.out.absolute()), jobs, cluster

    def outcomes(self, scenes: Sequence[Scene]) -> Generator[Outcome, None, None]:
        """See Engine."""
        ray = connect(self.cluster)
        work = ray.remote(max_retries=RETRIES, **self.cluster.resources)(_run_there)
        waiting = [replace(scene, path=scene.path.absolute()) for scene in reversed(scenes)]
        running: dict[Any, Scene] = {}
        try:
            while waiting or running:
                while waiting and (self.jobs is None or len(running) < self.jobs):
                    scene = waiting.pop()
                    running[work.remote(scene, self.terms)] = scene
                ended, _ = ray.wait(list(running), timeout=1.0)
                for reference in ended:
                    yield self._outcome(ray, reference, running.pop(reference))
        finally:
            for reference in running:
                ray.cancel(reference, force=True)
            for scene in running.values():
                until_unwritten(self.terms.out / scene.name)

    def _outcome(self, ray: Any, reference: Any, scene: Scene) -> Outcome:
        try:
            return ray.get(reference)
        except ray.exceptions.RayError as error:
            first = next(iter(str(error).splitlines()), "")
            said = (
                f"the cluster could not run it, {RETRIES + 1} times ({type(error).__name__}: {printable(first)[:200]})"
            )
            return Outcome(scene.name, "failed", reason=said)


def _run_there(scene: Scene, terms: Terms) -> Outcome:
    """On a machine of a cluster: run a scene, in a process that ends with Ray's."""
    for path in (scene.path, terms.out / LOGS):
        if not path.exists():
            where = f"the machine {platform.node()} has no {path}"
            return Outcome(scene.name, "failed", reason=f"{where}; expected scenes and -o on a shared file system")
    return run_scene(scene, terms, Running())


class Running:
    """The processes of scenes that run here, to end them together."""

    def __init__(self) -> None:
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._lock, self._is_stopped = threading.Lock(), False

    def start(self, command: Sequence[str], log: Any, environment: Mapping[str, str] | None) -> subprocess.Popen | None:
        """A process with its own session: Ctrl-C is for this one, which ends the others. It ends when its standard
        input closes, that is with this process. None after `stop`."""
        with self._lock:
            if self._is_stopped:
                return None
            pipe = subprocess.PIPE
            process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=log, env=environment, start_new_session=True
            )
            self._processes.add(process)
            return process

    def ended(self, process: subprocess.Popen) -> None:
        """A process has ended."""
        self._processes.discard(process)

    def stop(self) -> None:
        """End all, so that they can clean up, or by force; none is started any more."""
        with self._lock:
            self._is_stopped = True
        running = list(self._processes)
        for process in running:
            process.terminate()
        until = time.monotonic() + STOPPING_S
        for process in running:
            while process.poll() is None and time.monotonic() < until:
                time.sleep(TICK)
            process.kill()


def run_scene(scene: Scene, terms: Terms, running: Running, environment: Mapping[str, str] | None = None) -> Outcome:
    """Run one scene to its end; it is waiting still if `running` was stopped before it began."""
    begun, result = time.perf_counter(), terms.out / scene.name
    until_unwritten(result)
    if (result / MANIFEST).is_file():  # a run whose batch, or whose machine, was lost came to its end
        return Outcome(scene.name, "done", 0)
    arguments = (_as_argument(scene.path), "-o", _as_argument(result), "--json", *terms.options)
    command = python_command("lean3r.cli.main", "reconstruct", *arguments, patience=STOPPING_S)
    log = terms.out / LOGS / f"{scene.name}.txt"
    with log.open("wb") as said:
        process = running.start(command, said, environment)
        if process is None:
            return Outcome(scene.name)
        lifeline, process.stdin = process.stdin, None  # which communicate() would close
        try:
            printed, _ = process.communicate(timeout=None if terms.minutes is None else 60 * terms.minutes)
            reason = "" if process.returncode == 0 else _last_words(log, process.returncode)
        except subprocess.TimeoutExpired:
            _end(process)
            printed, reason = b"", f"it took longer than {terms.minutes:g} minutes"
        finally:
            running.ended(process)
            if lifeline is not None:
                lifeline.close()
    seconds = round(time.perf_counter() - begun, 1)
    if reason:
        return Outcome(scene.name, "failed", process.returncode, seconds, reason)
    done = {key: parse_json(printed).get(key) for key in SUMMED}
    figures = {key: len(value) if isinstance(value, list) else value for key, value in done.items()}
    return Outcome(scene.name, "done", 0, seconds, figures=figures)


def until_unwritten(result: Path) -> None:
    """Wait while another run writes a result, not for ever: one whose batch was lost ends soon."""
    until = time.monotonic() + 2 * STOPPING_S
    while _is_written(result) and time.monotonic() < until:
        time.sleep(TICK)


def _is_written(result: Path) -> bool:
    with suppress(OSError):
        try:
            with held(result.parent / part_name(result) / LOCK):
                return False
        except BlockingIOError:
            return True
    return False


def _as_argument(path: Path) -> str:
    """A path that no parser takes for an option."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def _last_words(log: Path, status: int) -> str:
    """Why a scene failed: its last error, or else the message in a box of the parser, or the last line."""
    if status < 0:
        return f"it was ended by signal {-status}; perhaps memory was short"
    said = log.read_text(errors="replace")
    lines = [line for line in said.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    _, corner, box = said.rpartition("╮\n")
    first = takewhile(bool, (line.strip(_BORDERS) for line in box.splitlines()))
    message = [" ".join(first)] if corner else []
    return printable((errors or message or lines or [f"exit status {status}"])[-1])


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a scene so that it can clean up, or by force."""
    process.terminate()
    try:
        process.communicate(timeout=STOPPING_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
