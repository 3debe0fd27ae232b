"""A report before it is Markdown or HTML: headings, texts, tables, plots and pictures.

Every figure holds its source, the JSON file and the key it was read from as FILE#/KEY/KEY (a JSON pointer, RFC 6901),
with FILE relative to the report. What the report computes itself is in its own report.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NOTHING = "–"


@dataclass(frozen=True)
class Figure:
    """A value, mostly a number, and where it was read; `unit` decides how it is shown, `signed` is for differences."""

    value: object
    source: str
    unit: str = ""
    signed: bool = False

    @property
    def text(self) -> str:
        """The value as it is printed."""
        return show(self.value, self.unit, self.signed)


def show(value: object, unit: str = "", signed: bool = False) -> str:
    """A number that is not whole in one decimal if it is in per cent, else in three digits."""
    if value is None:
        return NOTHING
    if not isinstance(value, float):
        return str(value)
    if unit == "%":
        value = round(value, 1) or 0.0  # no minus zero
    sign = "+" if signed and value > 0 else ""
    if unit == "%":
        return f"{sign}{value:.1f}"
    return f"{sign}{value:,.0f}" if abs(value) >= 1000 else f"{sign}{value:.3g}"


def pointer(*keys: str | int) -> str:
    """The keys as a JSON pointer."""
    return "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in keys)


@dataclass(frozen=True)
class Cell:
    """Text and figures of a cell of a table, in their order; `mark` is a verdict that colours it."""

    parts: tuple[str | Figure, ...]
    mark: str = ""

    @property
    def text(self) -> str:
        """The cell as it is printed."""
        return "".join(part if isinstance(part, str) else part.text for part in self.parts)

    @property
    def figures(self) -> list[Figure]:
        """The figures of the cell."""
        return [part for part in self.parts if isinstance(part, Figure)]


def cell(*parts: str | Figure, mark: str = "") -> Cell:
    """A cell of these texts and figures."""
    return Cell(parts, mark)


@dataclass(frozen=True)
class Table:
    """A table under its caption. `keys` are the columns' keys in the sources of their figures, "" where there are
    none; a `folded` table is closed until the reader opens it."""

    caption: str
    head: tuple[str, ...]
    keys: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]
    folded: bool = False

    def sources(self, row: tuple[Cell, ...]) -> list[str]:
        """The sources of a row's figures, with `*` for the key of the column; keys below a listed one are left out."""
        found = dict.fromkeys(
            _with_star(figure.source, key) for each, key in zip(row, self.keys, strict=True) for figure in each.figures
        )
        return [source for source in found if not any(source.startswith(f"{other}/") for other in found)]


def _with_star(source: str, key: str) -> str:
    """A source with `*` instead of the last of its keys that is `key`."""
    before, found, after = source.rpartition(pointer(key))
    return f"{before}/*{after}" if key and found else source


@dataclass(frozen=True)
class Heading:
    """A heading of a level from 1."""

    level: int
    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph, whose mark colours it."""

    content: Cell


@dataclass(frozen=True)
class Plot:
    """A plot as SVG, `name` without its ending; `alt` says what it shows to those who do not see it."""

    name: str
    svg: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Picture:
    """A JPEG with a caption; None where the run has no picture."""

    name: str
    jpeg: bytes | None
    alt: str
    caption: Cell


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side."""

    pictures: Sequence[Picture]


Block = Heading | Text | Table | Plot | Gallery
