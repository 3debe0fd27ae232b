"""Many scenes over night: each in a process of its own, so that none ends the others; resumed where it stopped.

OUT/NAME/ is the result of a scene, which appears by one rename; OUT/logs/NAME.txt what its last run said;
OUT/batch.json and batch.csv the table of all scenes.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lean3r.errors import InputError, LeanError, UsageError
from lean3r.inputs.listing import VIDEO_SUFFIXES, claim_name, natural_key, printable
from lean3r.json_text import parse_json
from lean3r.pipeline.cluster import ClusterOptions
from lean3r.pipeline.scene_runs import LOGS, MANIFEST, SUMMED, Engine, Here, OnCluster, Outcome, Scene, Terms
from lean3r.scratch import atomic_file, hold

TABLE, ROWS, LOCK = "batch.json", "batch.csv", ".lean3r-batch"
MOST_MINUTES = 30_000.0  # three weeks: soon after ends what a process can wait for, 2^31 milliseconds
TAKEN = {"-o", "--out", "--export-dir", "--overwrite", "--json", "--view", "-h", "--help"}


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
    `minutes` is the limit of each; a `cluster` runs them on other machines.

    UsageError if another process works on `out`, or if it has results with other options, or of other scenes of the
    same names.
    """

    def __init__(
        self,
        scenes: Sequence[Scene],
        out: Path,
        options: Sequence[str] = (),
        minutes: float | None = None,
        cluster: ClusterOptions | None = None,
    ) -> None:
        check_options(options)
        self.scenes, self.cluster = tuple(scenes), cluster or ClusterOptions()
        self.terms = Terms(out, tuple(options), minutes)
        self.outcomes = {scene.name: Outcome(scene.name) for scene in scenes}
        self._places = {scene.name: os.path.abspath(scene.path) for scene in scenes}
        try:
            (out / LOGS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{out} cannot be the folder of the results: {error.strerror}. Use another -o.") from error

    def run(self, jobs: int | None = None, ended: Callable[[Outcome], None] = lambda outcome: None) -> list[Outcome]:
        """Reconstruct the scenes that have no result yet, `jobs` at a time (None: one, or on a cluster as many as it
        has room for); `ended` hears of each. Scenes that failed before are tried again. KeyboardInterrupt ends those
        that run; done ones stay."""
        with self._held():
            self._recall()
            self._write()
            waiting = [scene for scene in self.scenes if self.outcomes[scene.name].state != "done"]
            with closing(self._engine(jobs).outcomes(waiting)) as outcomes:
                for outcome in outcomes:
                    self.outcomes[outcome.name] = outcome
                    self._write()
                    ended(outcome)
        return list(self.outcomes.values())

    def _engine(self, jobs: int | None) -> Engine:
        if self.cluster.engine == "local":
            return Here(self.terms, jobs or 1)
        return OnCluster(self.terms, jobs, self.cluster)

    @contextmanager
    def _held(self) -> Iterator[None]:
        lock = hold(self.terms.out / LOCK, must=False)
        if lock is None:
            raise UsageError(f"another batch works on {self.terms.out}; wait for its end, or give another -o.")
        try:
            yield
        finally:
            lock.close()

    def _recall(self) -> None:
        """What earlier runs found. A scene is done if its result is there, whatever the table says."""
        known: dict[str, Any] = {}
        with suppress(OSError, ValueError, TypeError, KeyError):
            table = parse_json((self.terms.out / TABLE).read_text(encoding="utf-8"))
            known = {row["name"]: row for row in table["scenes"]}
            if table["options"] != list(self.terms.options) and any(map(self._has_result, known)):
                raise UsageError(
                    f"{self.terms.out} was begun with the options {' '.join(table['options']) or '(none)'}; expected "
                    "the same, so that its scenes are alike, or another -o."
                )
            places = table.get("places", {})
            other = [n for n, place in self._places.items() if self._has_result(n) and places.get(n, place) != place]
            if other:
                raise UsageError(
                    f"{self.terms.out} has the result of another {other[0]}, that of {places[other[0]]}; expected "
                    f"another -o for these scenes. If they are the same and have moved, remove {TABLE} there."
                )
        for name, outcome in self.outcomes.items():
            if self._has_result(name):
                outcome.state = "done"
                with suppress(TypeError):
                    before = Outcome(**known.get(name, {"name": name}))
                    self.outcomes[name] = before if before.state == "done" else outcome

    def _has_result(self, name: str) -> bool:
        return (self.terms.out / name / MANIFEST).is_file()

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
            (TABLE, json.dumps({"options": self.terms.options, "scenes": rows, "places": self._places}, indent=1)),
            (ROWS, text.getvalue()),
        ):
            with atomic_file(self.terms.out / name) as part:
                part.write_bytes(content.encode("utf-8", "surrogateescape"))


def check(jobs: int | None, minutes: float | None) -> None:
    """UsageError for limits that make no sense."""
    if jobs is not None and jobs < 1:
        raise UsageError(f"--jobs is {jobs}; expected at least 1.")
    if minutes is not None and not 0 < minutes <= MOST_MINUTES:
        raise UsageError(
            f"--minutes is {minutes:g}; expected more than 0 and at most {MOST_MINUTES:,.0f}. Without it there is no "
            "limit."
        )


def check_options(options: Sequence[str]) -> None:
    """UsageError for an option that scenes cannot have in common."""
    if wrong := sorted(TAKEN & {option.partition("=")[0] for option in options}):
        raise UsageError(f"{wrong[0]} cannot be an option of all scenes: the batch sets it, or it has no use there.")


def failure(outcomes: Sequence[Outcome], out: Path) -> LeanError | None:
    """What to raise at the end: the failed scenes, counted; None if all are done."""
    failed = [outcome for outcome in outcomes if outcome.state != "done"]
    if not failed:
        return None
    return InputError(
        f"{len(failed)} of {len(outcomes)} scenes failed: {', '.join(printable(o.name) for o in failed[:5])}"
        f"{', ...' if len(failed) > 5 else ''}. {out / ROWS} says why, and the same command tries them again."
    )


def _plain(name: str) -> str:
    """A name as a cell that no spreadsheet takes for a formula."""
    return f"'{name}" if name[:1] in "=+-@\t\r" else name
