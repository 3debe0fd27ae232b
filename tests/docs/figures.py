"""Measured figures of the pages, each bound to its value in benchmarks/results.

A page's file in tests/docs/measured/ lists its sentences (or parts of them) with a {} for every figure, and the values
from the JSON that stand there, rounded as printed:

    ("{} frames chosen by motion", lambda: [result("video")["runs"]["default"]["views"]])

and numbers with a unit that were not measured here, with what they are. Tables between `<!-- table` and `<!-- end -->`
are made from the JSON. No page has others. `PYTHONPATH=tests python -m docs.figures` counts, by page, the
figures that are bound, those of such tables, and those that are neither.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from docs.markdown import PAGES, ROOT
from docs.tables import PLACE

UNIT = (
    r"%|per cent|[kMG]i?B\b|m?s\b|seconds?\b|minutes?\b|hours?\b|CPU|[cm]?m\b|px\b|pixels?\b|degrees?\b|deg\b|dB\b|"
    r"decibels\b|times\b|x\b|points?\b|M parameters\b|M\b|GFLOP|TFLOP"
)
LOOSE = re.compile(rf"(?<![\w.@/-])[-+]?(?:\d[\d,]*\.\d+|\d[\d,]*(?=[ -]?(?:{UNIT}))|\de-\d+)(?![\w.]*\()")
HIDDEN = re.compile(r"```.*?```|^    [^\n]*$|<!--.*?-->|\]\([^)]*\)", re.DOTALL | re.MULTILINE)

Sentence = tuple[str, Callable[[], Iterable[float]]]


@dataclass(frozen=True)
class Page:
    """What is known of the figures of one page."""

    name: str
    sentences: list[Sentence]
    not_measured: Mapping[str, str] = field(default_factory=dict)


def squeezed(text: str) -> str:
    """On one line."""
    return " ".join(text.split())


def filled(sentence: Sentence) -> str:
    """The sentence as the JSON has it."""
    text, values = sentence
    return squeezed(text.format(*values()))


def places(sentence: Sentence) -> int:
    """How many figures it binds."""
    return sum(name is not None for _, name, _, _ in string.Formatter().parse(sentence[0]))


def unbound(page: Page, text: str) -> list[str]:
    """Sentences that the page does not have as the JSON has them."""
    text = squeezed(text)
    return [said for said in map(filled, page.sentences) if said not in text]


def loose(page: Page, text: str) -> list[str]:
    """Numbers with a unit, each with the words around it, that are neither bound nor known not to be measured."""
    text = HIDDEN.sub(" ", PLACE.sub("", text))
    text = squeezed(text)
    for known in sorted([*map(filled, page.sentences), *map(squeezed, page.not_measured)], key=len, reverse=True):
        text = text.replace(known, "·")
    return [text[max(0, found.start() - 30) : found.end() + 20] for found in LOOSE.finditer(text)]


def in_tables(text: str) -> int:
    """Figures of the tables that are made from results."""
    return sum(len(LOOSE.findall(place[0])) for place in PLACE.finditer(text))


def main() -> None:
    """Count, by page."""
    from docs.measured import MEASURED

    print(f"{'page':44} bound  in tables  neither")
    totals = [0, 0, 0]
    for path in PAGES:
        name = path.relative_to(ROOT).as_posix()
        page, text = MEASURED.get(name, Page(name, [])), path.read_text(encoding="utf-8")
        counts = [sum(map(places, page.sentences)), in_tables(text), len(loose(page, text))]
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
        print(f"{name:44} {counts[0]:5} {counts[1]:10} {counts[2]:8}")
    print(f"{'':44} {totals[0]:5} {totals[1]:10} {totals[2]:8}")


if __name__ == "__main__":
    main()
