"""Progress of a run on standard error: plain lines, and progress bars on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from lean3r.pipeline.observer import Observer

if TYPE_CHECKING:
    from rich.progress import Progress

    from lean3r.types import Reconstruction
    from lean3r.view.live import Live

_LABEL = 10
_PLAIN_SECONDS = 5.0
_SAME_REASON = 3


class Console(Observer):
    """Shows a run on standard error: bars on a terminal, plain lines on a pipe, nothing when `quiet`."""

    def __init__(self, quiet: bool = False, stream: TextIO | None = None) -> None:
        super().__init__()
        self.quiet = quiet
        self.stream = sys.stderr if stream is None else stream
        self.live: Live | None = None
        self._bar: Progress | None = None
        self._shown: dict[str, tuple[float, int, int]] = {}

    def line(self, label: str, text: str) -> None:
        """Print one line: a label in the first column, then the text."""
        if not self.quiet:
            print(f"{label:<{_LABEL}} {text}".rstrip(), file=self.stream, flush=True)

    def warn(self, text: str) -> None:
        """Print a warning, above the bar if there is one."""
        if not self.quiet:
            out = self.stream if self._bar is None else self._bar.console.file
            print(f"warning: {text}", file=out, flush=True)

    def read(self, used: Sequence[str], skipped: Sequence[tuple[str, str]]) -> None:
        """Print how many views are used, and the reason for each skipped file."""
        for text in group_skips(skipped):
            self.warn(f"skipped {text}")
        self.line("views", f"{len(used):,} used" + (f", {len(skipped):,} skipped" if skipped else ""))

    def fitted(self, text: str) -> None:
        """Print how the run was fitted into its memory budget."""
        self.line("memory", text)

    def advanced(self, name: str, done: int, total: int) -> None:
        """Advance the bar of a stage; on a pipe, print a line from time to time during long stages."""
        if self.live is not None:
            self.live.says(f"{name} {done:,}/{total:,}" if total else name)
        now = time.monotonic()
        last_time, last_done, _ = self._shown.get(name, (now, 0, 0))
        if self.quiet:
            return
        if self.stream.isatty():
            self._advance_bar(name, done, total)
        elif last_done != done < total and now - last_time >= _PLAIN_SECONDS:
            self.line(name, f"{done:,}/{total:,}")
            last_time = now
        self._shown[name] = (last_time, done, total)

    def has_scene(self, scene: Reconstruction) -> None:
        """Show the scene in the browser, if that is asked for."""
        if self.live is not None:
            self.live.show(scene)

    def finished(self, name: str) -> None:
        """Replace the bar of a stage by a line with its amount and its seconds."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        _, done, total = self._shown.get(name, (0.0, 0, 0))
        self._shown.clear()  # the steps of the stage as well
        if sys.exc_info()[0] is None:
            amount = f"{done:,}/{total:,}" if total else ""
            self.line(name, f"{amount:<12} {self.seconds[name]:6.1f} s")

    def _advance_bar(self, name: str, done: int, total: int) -> None:
        bar = self._bar = self._bar or self._new_bar(name)
        # A step of a stage shows its own name.
        bar.update(bar.task_ids[0], description=name, completed=done, total=total or None)

    def _new_bar(self, name: str) -> Progress:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn(f"{{task.description:<{_LABEL}}}"), BarColumn(), MofNCompleteColumn())
        bar = Progress(*columns, TimeElapsedColumn(), console=RichConsole(file=self.stream), transient=True)
        bar.add_task(name, total=None)
        bar.start()
        return bar

    def table(self, title: str, rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> None:
        """Print a small table of left-aligned columns under a title."""
        if not self.quiet:
            print(f"\n{title}\n{format_table(rows, header)}", file=self.stream, flush=True)


def group_skips(skipped: Sequence[tuple[str, str]]) -> list[str]:
    """`name: reason` for each skipped file; many files with the same reason share a line."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in skipped:
        by_reason.setdefault(reason, []).append(name)
    lines = []
    for reason, names in by_reason.items():
        if len(names) > _SAME_REASON:
            names = [f"{names[0]} and {len(names) - 1:,} more"]
        lines += [f"{name}: {reason}" for name in names]
    return lines


def format_table(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> str:
    """Format rows as left-aligned columns, two blanks apart, each line indented by two."""
    lines = [list(header), *map(list, rows)] if header else [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  " + "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)
