"""Many scenes over night: each in a process of its own, so that none ends the others; resumed where it stopped.

OUT/NAME/ is the result of a scene, which appears by one rename; OUT/logs/NAME.txt what its last run said;
OUT/batch.json and batch.csv the table of all scenes.
"""

from __future__ import annotations

import csv
import io
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lean3r.errors import InputError, LeanError, UsageError
from lean3r.inputs.listing import VIDEO_SUFFIXES, claim_name, natural_key, printable
from lean3r.json_text import parse_json
from lean3r.processes import python_command, sharing
from lean3r.scratch import atomic_file, hold

TABLE, ROWS, LOGS, LOCK, MANIFEST = "batch.json", "batch.csv", "logs", ".lean3r-batch", "manifest.json"
TAKEN = {"-o", "--out", "--export-dir", "--overwrite", "--json", "--view", "-h", "--help"}
SUMMED = ("views", "skipped", "points", "peak_memory_mb")  # of a summary: what the table repeats, or counts
STOPPING_S = 10.0  # that a scene has to remove what is unfinished


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


def find_scenes(folder: Path, out: Path) -> list[Scene]:
    """The scenes of a folder, in natural order: each folder, zip and video directly in it, but for `out` and hidden
    ones. InputError if there are none.

    A result has the name of its scene, suffix included: one that depended on the other scenes would change when more
    come, and then a result would pass for that of another scene.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; expected one that holds a folder, zip or video for each scene.")
    found = []
    for path in sorted(folder.iterdir(), key=lambda path: natural_key(path.name)):
        is_file = path.suffix.lower() in (".zip", *VIDEO_SUFFIXES) and path.is_file()
        is_other = path.name.startswith(".") or path.resolve() == out.resolve()
        if not is_other and (is_file or path.is_dir()):
            found.append(Scene(path, claim_name(path.name, {TABLE, ROWS, LOGS})))
    if not found:
        raise InputError(
            f"{folder} holds no scenes: no folders, zips or videos. If it holds the pictures of one scene: "
            f"lean3r reconstruct {folder} -o OUT"
        )
    return found


class Batch:
    """The scenes of a folder and what has become of them. `options` are those of `lean3r reconstruct`, for all scenes;
    `minutes` is the limit of each.

    UsageError if another process works on `out`, or if it was begun with other options.
    """

    def __init__(
        self, scenes: Sequence[Scene], out: Path, options: Sequence[str] = (), minutes: float | None = None
    ) -> None:
        if wrong := sorted(TAKEN & {option.partition("=")[0] for option in options}):
            raise UsageError(
                f"{wrong[0]} cannot be an option of all scenes: the batch sets it, or it has no use there."
            )
        self.scenes, self.out, self.options, self.minutes = tuple(scenes), out, tuple(options), minutes
        self.outcomes = {scene.name: Outcome(scene.name) for scene in scenes}
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock, self._is_stopped = threading.Lock(), False
        (out / LOGS).mkdir(parents=True, exist_ok=True)

    def run(self, jobs: int = 1, ended: Callable[[Outcome], None] = lambda outcome: None) -> list[Outcome]:
        """Reconstruct the scenes that have no result yet, `jobs` at a time; `ended` hears of each. Scenes that failed
        before are tried again. KeyboardInterrupt ends those that run; done ones stay."""
        with self._held(), ThreadPoolExecutor(jobs) as pool:
            self._recall()
            self._write()
            waiting = [scene for scene in self.scenes if self.outcomes[scene.name].state != "done"]
            futures = [pool.submit(self._one, scene, jobs) for scene in waiting]
            try:
                for future in as_completed(futures):
                    outcome = future.result()
                    self.outcomes[outcome.name] = outcome
                    self._write()
                    ended(outcome)
            except BaseException:
                self._stop()
                for future in futures:
                    future.cancel()
                raise
        return list(self.outcomes.values())

    @contextmanager
    def _held(self) -> Iterator[None]:
        lock = hold(self.out / LOCK, must=False)
        if lock is None:
            raise UsageError(f"another batch works on {self.out}; wait for its end, or give another -o.")
        try:
            yield
        finally:
            lock.close()

    def _recall(self) -> None:
        """What earlier runs found. A scene is done if its result is there, whatever the table says."""
        known: dict[str, Any] = {}
        with suppress(OSError, ValueError, TypeError, KeyError):
            table = parse_json((self.out / TABLE).read_text(encoding="utf-8"))
            if table["options"] != list(self.options):
                raise UsageError(
                    f"{self.out} was begun with the options {' '.join(table['options']) or '(none)'}; expected the "
                    "same, so that its scenes are alike, or another -o."
                )
            known = {row["name"]: row for row in table["scenes"]}
        for name, outcome in self.outcomes.items():
            if (self.out / name / MANIFEST).is_file():
                outcome.state = "done"
                with suppress(TypeError):
                    before = Outcome(**known.get(name, {"name": name}))
                    self.outcomes[name] = before if before.state == "done" else outcome

    def _one(self, scene: Scene, jobs: int) -> Outcome:
        """Run one scene to its end."""
        begun = time.perf_counter()
        command = python_command(
            "lean3r.cli.main", "reconstruct", str(scene.path), "-o", str(self.out / scene.name), "--json", *self.options
        )
        log = self.out / LOGS / f"{scene.name}.txt"
        with log.open("wb") as said:
            with self._lock:
                if self._is_stopped:
                    return self.outcomes[scene.name]
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=said,
                    env=sharing(jobs),
                    start_new_session=True,  # Ctrl-C is for this process, which ends them in turn
                )
                self._running.add(process)
            try:
                printed, _ = process.communicate(timeout=None if self.minutes is None else 60 * self.minutes)
                reason = "" if process.returncode == 0 else _last_words(log, process.returncode)
            except subprocess.TimeoutExpired:
                _end(process)
                printed, reason = b"", f"it took longer than {self.minutes:g} minutes"
            finally:
                self._running.discard(process)
        seconds = round(time.perf_counter() - begun, 1)
        if reason:
            return Outcome(scene.name, "failed", process.returncode, seconds, reason)
        done = {key: parse_json(printed).get(key) for key in SUMMED}
        figures = {key: len(value) if isinstance(value, list) else value for key, value in done.items()}
        return Outcome(scene.name, "done", 0, seconds, figures=figures)

    def _stop(self) -> None:
        with self._lock:
            self._is_stopped = True
        running = list(self._running)  # their threads read to the end of what they say
        for process in running:
            process.terminate()
        until = time.monotonic() + STOPPING_S
        for process in running:
            while process.poll() is None and time.monotonic() < until:
                time.sleep(0.05)
            process.kill()

    def _write(self) -> None:
        """The table, as JSON and for spreadsheets."""
        rows = [asdict(outcome) for outcome in self.outcomes.values()]
        text = io.StringIO()
        table = csv.writer(text)
        table.writerow(["name", "state", "status", "seconds", "reason", *SUMMED])
        for row in rows:
            figures = [row["figures"].get(key) for key in SUMMED]
            table.writerow([_plain(row["name"]), row["state"], row["status"], row["seconds"], row["reason"], *figures])
        for name, content in (
            (TABLE, json.dumps({"options": self.options, "scenes": rows}, indent=1)),
            (ROWS, text.getvalue()),
        ):
            with atomic_file(self.out / name) as part:
                part.write_bytes(content.encode("utf-8", "surrogateescape"))


def check(jobs: int, minutes: float | None) -> None:
    """UsageError for limits that make no sense."""
    if jobs < 1:
        raise UsageError(f"--jobs is {jobs}; expected at least 1.")
    if minutes is not None and not minutes > 0:
        raise UsageError(f"--minutes is {minutes:g}; expected more than 0.")


def failure(outcomes: Sequence[Outcome], out: Path) -> LeanError | None:
    """What to raise at the end: the failed scenes, counted; None if all are done."""
    failed = [outcome for outcome in outcomes if outcome.state != "done"]
    if not failed:
        return None
    return InputError(
        f"{len(failed)} of {len(outcomes)} scenes failed: {', '.join(printable(o.name) for o in failed[:5])}"
        f"{', ...' if len(failed) > 5 else ''}. {out / ROWS} says why, and the same command tries them again."
    )


def _last_words(log: Path, status: int) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if status < 0:
        return f"it was ended by signal {-status}; perhaps memory was short"
    return printable((errors or lines or [f"exit status {status}"])[-1])


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a scene so that it can clean up, or by force."""
    process.terminate()
    try:
        process.communicate(timeout=STOPPING_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def _plain(name: str) -> str:
    """A name as a cell that no spreadsheet takes for a formula."""
    return f"'{name}" if name[:1] in "=+-@\t\r" else name
