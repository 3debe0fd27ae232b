"""A table of a paper, printed beside our own figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple


class Column(NamedTuple):
    """A column: its printed head, the benchmark and the figure that correspond to it, and the factor from ours to the
    printed unit. `figure` "network_seconds" or "peak_memory_mb" is the median over rows. An empty benchmark has no
    counterpart here."""

    head: str
    benchmark: str = ""
    figure: str = ""
    factor: float = 1.0
    digits: int = 2


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """`rows`: method -> printed figures, None where the paper has none; `notes` say how ours differ in protocol."""

    title: str
    source: str
    columns: tuple[Column, ...]
    rows: Mapping[str, Sequence[float | None]]
    notes: str = ""

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """The benchmarks that the table needs, in order."""
        return tuple(dict.fromkeys(column.benchmark for column in self.columns if column.benchmark))

    def ours(self, scores: Mapping[str, Mapping[str, Any]]) -> list[float | None]:
        """Our figure of each column, from the contents of scores.json by benchmark."""
        return [_figure(column, scores.get(column.benchmark)) for column in self.columns]

    def texts(self, values: Sequence[float | None]) -> list[str]:
        """Figures of the columns with the digits of the paper; "-" where there is none."""
        return [_text(value, column) for value, column in zip(values, self.columns, strict=True)]

    def printed(self, scores: Mapping[str, Mapping[str, Any]], label: str) -> tuple[list[str], list[list[str]]]:
        """Head and lines of the table as text, the paper's rows first, ours last."""
        lines = [[method, *self.texts(values)] for method, values in self.rows.items()]
        ours = self.texts(self.ours(scores))
        return ["", *(column.head for column in self.columns)], [*lines, [f"{label} (measured)", *ours]]


def _figure(column: Column, scores: Mapping[str, Any] | None) -> float | None:
    if scores is None:
        return None
    if column.figure in ("network_seconds", "peak_memory_mb"):
        values = [row[column.figure] for row in scores["rows"] if row[column.figure] is not None]
        value = median(values) if values else None
    else:
        value = scores["figures"].get(column.figure)
    return None if value is None else column.factor * value


def _text(value: float | None, column: Column) -> str:
    return "-" if value is None or value != value else f"{value:.{column.digits}f}"
