"""The tables of the pages that are made from tables of the code: `make tables` writes them anew.

A page has them between `<!-- table NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from lean3r.cli import COMMANDS
from lean3r.export import EXPORTERS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PLACE = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
GUIDE = re.compile(r"\bdocs/([\w./-]+\.md)")


def main() -> None:
    """Write every table of every page, and say which pages changed."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if (now := with_tables(text)) != text:
            page.write_text(now, encoding="utf-8")
            print(page.relative_to(ROOT))


def with_tables(text: str) -> str:
    """A page with its tables as they are now; KeyError for one that nobody makes."""
    return PLACE.sub(lambda place: f"{place[1]}{TABLES[place[2]]()}{place[3]}", text)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def code(text: str, separator: str = ", ") -> str:
    """`a`, `b` of "a, b"."""
    return separator.join(f"`{part}`" for part in text.split(separator))


def says(thing: object) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())


def commands() -> str:
    """What each command does, and the page that its docstring names."""

    def row(name: str) -> list[str]:
        guides = GUIDE.findall(inspect.getdoc(COMMANDS.get(name)) or "")
        return [f"`lean3r {name}`", says(COMMANDS.get(name)), ", ".join(f"[{Path(g).stem}]({g})" for g in guides)]

    return table(["command", "what it does", "more"], map(row, COMMANDS))


def formats() -> str:
    """What each format writes."""
    rows = (
        [code(row.files), row.about, f"`{name}`" + ("" if row.default else ", if asked for")]
        for name, row in ((name, EXPORTERS[name]) for name in EXPORTERS)
    )
    return table(["in the folder", "what it holds", "format"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "commands": commands,
    "formats": formats,
}

if __name__ == "__main__":
    main()
