"""Logs of a run: files that survive resuming, loss curves, progress on stderr."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from lean3r.errors import MissingExtraError
from lean3r.json_text import parse_json
from lean3r.train.checkpoints.disk import write_atomically

if TYPE_CHECKING:
    from rich.progress import Progress as Bar


class CsvLog:
    """Rows keyed by `step` in a CSV file; new columns may appear at any time.

    The constructor drops rows of steps later than `after_step`, which a resumed run writes again.
    """

    def __init__(self, path: Path, after_step: int = 0):
        self.path = path
        rows = read_csv(path)
        self._columns = list(rows[0]) if rows else ["step"]
        earlier = [row for row in rows if float(row["step"]) <= after_step]
        if rows:
            self._rewrite(earlier)

    def append(self, row: Mapping[str, float]) -> None:
        """Append one row, which has a `step`, to the file."""
        new = [name for name in row if name not in self._columns]
        if new or not self.path.exists():
            self._columns += new
            self._rewrite(read_csv(self.path))
        with open(self.path, "a", newline="") as file:
            csv.DictWriter(file, self._columns, restval="").writerow({k: _short(v) for k, v in row.items()})

    def _rewrite(self, rows: Iterable[Mapping[str, str]]) -> None:
        def write(temporary: Path) -> None:
            with open(temporary, "w", newline="") as file:
                writer = csv.DictWriter(file, self._columns, restval="")
                writer.writeheader()
                writer.writerows(rows)

        write_atomically(self.path, write)


def read_csv(path: Path) -> list[dict[str, str]]:
    """The complete rows of a log as text, without a last line that a crash truncated; [] without a file."""
    if not path.exists():
        return []
    text = path.read_text()
    complete = text[: text.rfind("\n") + 1]
    return list(csv.DictReader(complete.splitlines()))


OF_THE_RUN = ("resumed", "stopped")


class Event(TypedDict):
    """The fields of every event; each kind of event has more. `step` is the number of the step, from 0; of events
    OF_THE_RUN, how many steps are done."""

    step: int
    event: str


class EventLog:
    """A log of unusual events: one JSON object per line, with its `step` and `event`.

    The constructor keeps the events of the first `after_step` steps: a resumed run does the others again. It drops a
    last line that a crash truncated.
    """

    def __init__(self, path: Path, after_step: int = 0):
        self.path = path
        kept = [e for e in read_events(path) if e["step"] < after_step + (e["event"] in OF_THE_RUN)]
        lines = [json.dumps(event) + "\n" for event in kept]
        write_atomically(path, lambda temporary: temporary.write_text("".join(lines)))

    def append(self, step: int, event: str, **facts: object) -> None:
        """Append one event to the file."""
        with open(self.path, "a") as file:
            file.write(json.dumps({"step": step, "event": event, **facts}) + "\n")


def read_events(path: Path) -> list[Event]:
    """The events in the complete lines of a log; [] without a file."""
    if not path.exists():
        return []
    text = path.read_text()
    return [parse_json(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def draw_curves(train_csv: Path, validation_csv: Path, picture: Path) -> None:
    """Plot every column of the two logs over the steps, each in its own panel; needs the extra "train"."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError.of("drawing loss curves", "train")
    from matplotlib.figure import Figure

    panels: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for label, path in (("training", train_csv), ("validation", validation_csv)):
        for row in read_csv(path):
            for name, text in row.items():
                if name in ("step", "seconds") or not text:
                    continue
                steps, values = panels.setdefault(name, {}).setdefault(label, ([], []))
                steps.append(float(row["step"]))
                values.append(float(text))
    if not panels:
        return
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    wide, high = 3.6 * columns, 2.4 * rows
    figure = Figure(figsize=(wide, high))
    # Margins in inches: matplotlib's automatic layout takes longer than everything else here.
    figure.subplots_adjust(0.6 / wide, 0.3 / high, 1 - 0.1 / wide, 1 - 0.3 / high, wspace=0.25, hspace=0.3)
    for place, (name, curves) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        for label, (steps, values) in curves.items():
            points = label == "validation" or len(steps) == 1
            axes.plot(steps, values, label=label, linewidth=1.2, marker="." if points else "")
        if len(curves) > 1:
            axes.legend(fontsize=7)
        axes.set_title(name, fontsize=9, y=1)
        axes.locator_params(nbins=4)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    write_atomically(picture, lambda temporary: figure.savefig(temporary, format="png", dpi=100))


class Progress:
    """Progress of a run on stderr: a line at every report, and on a terminal also a bar."""

    def __init__(self, step: int, total_steps: int):
        self._total = total_steps
        self._bar: Bar | None = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("", total=total_steps, completed=step)
            self._bar.start()

    def step(self, step: int, loss: float, views_per_s: float, data_wait: float, memory_mb: float) -> None:
        """Update the bar, if there is one, after a step."""
        if self._bar is not None:
            text = f"loss {loss:.4g}  {views_per_s:.3g} views/s  data {data_wait:.0%}  {memory_mb:,.0f} MB"
            self._bar.update(self._task, completed=step, description=text)

    def line(self, step: int, row: Mapping[str, float], seconds_left: float | None = None) -> None:
        """Print one line: step, the figures of `row`, and the time left if known."""
        line = f"step {step}/{self._total}" + "".join(
            f"  {name} {value:.4g}" for name, value in row.items() if name not in ("step", "seconds")
        )
        if seconds_left is not None:
            minutes, seconds = divmod(round(seconds_left), 60)
            line += f"  left {minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
        print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Remove the bar from the terminal."""
        if self._bar is not None:
            self._bar.stop()
