"""A report as Markdown, with its plots and pictures as files beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from lean3r.eval.report.page import Block, Cell, Gallery, Heading, Picture, Plot, Table, Text


def markdown(blocks: Iterable[Block]) -> str:
    """The page. Plots are plots/NAME.svg, pictures pictures/NAME.jpg; the last column of a table says where its figures
    come from, with * for the key of a column."""
    return "\n\n".join(_write(block) for block in blocks) + "\n"


def _write(block: Block) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {_plain(block.text)}"
        case Text():
            return _text(block.content)
        case Table():
            return _table(block)
        case Plot():
            return f"![{_plain(block.alt)}](plots/{block.name}.svg)\n\n{_plain(block.caption)}"
        case Gallery():
            return "\n".join(_picture(each) for each in block.pictures)


def _text(content: Cell) -> str:
    text = f"**{_plain(content.text)}**" if content.mark else _plain(content.text)
    sources = dict.fromkeys(_code(figure.source).replace("--", "&#45;&#45;") for figure in content.figures)
    return "\n".join([text, *(f"<!-- from {source} -->" for source in sources)])


def _table(table: Table) -> str:
    head = [
        f"{_plain(label)} `{_code(key)}`" if key not in label else _plain(label)
        for label, key in zip(table.head, table.keys, strict=True)
    ]
    lines = [[*head, "from"], ["---"] * (len(head) + 1)]
    for row in table.rows:
        marked = [f"**{_plain(each.text)}**" if each.mark else _plain(each.text) for each in row]
        lines.append([*marked, "<br>".join(f"`{_code(source)}`" for source in table.sources(row))])
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"*{_plain(table.caption)}*\n\n{body}"


def _picture(picture: Picture) -> str:
    image = f"![{_plain(picture.alt)}](pictures/{picture.name}.jpg) " if picture.jpeg else ""
    sources = ", ".join(f"`{_code(figure.source)}`" for figure in picture.caption.figures)
    return f"- {image}{_plain(picture.caption.text)} ({sources})"


def _plain(text: str) -> str:
    """Text without meaning for Markdown and HTML, in one line."""
    return re.sub(r"([\\*`\[<>|]|(?<!\w)_|_(?!\w)|^#|&)", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    """Text of a code span in a table."""
    return " ".join(text.split()).replace("`", "'").replace("|", "\\|")
