"""Printed rows of papers beside ours, where runs hold a benchmark of their tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lean3r.eval.papers import PAPERS
from lean3r.eval.papers.base import Column, PaperTable
from lean3r.eval.report.page import NOTHING, Block, Figure, Heading, Table, Text, cell
from lean3r.eval.report.runs import Run


def paper_tables(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """What report.json says of each table with a benchmark of the runs: title, source, notes, heads of columns, and
    the rows as text by method or run and by column, "-" where there is no figure."""
    found = dict[str, dict[str, Any]]()
    for name in PAPERS:
        table: PaperTable = PAPERS.get(name)
        keys = [_key(column) for column in table.columns]
        ours = {
            run.name: dict(zip(keys, table.texts(table.ours(_contents(run))), strict=True))
            for run in runs
            if run.scores.keys() & set(table.benchmarks)
        }
        if ours:
            printed = {method: dict(zip(keys, table.texts(row), strict=True)) for method, row in table.rows.items()}
            about = {"title": table.title, "source": table.source, "notes": table.notes}
            heads = {key: column.head for key, column in zip(keys, table.columns, strict=True)}
            found[name] = about | {"columns": heads, "printed": printed, "ours": ours}
    return found


def _key(column: Column) -> str:
    return f"{column.benchmark} {column.figure}" if column.benchmark else column.head


def _contents(run: Run) -> dict[str, dict[str, Any]]:
    return {name: {"figures": scores.figures, "rows": scores.rows} for name, scores in run.scores.items()}


def paper_blocks(tables: Mapping[str, Mapping[str, Any]], own: Any) -> Iterator[Block]:
    """A section with a table each; `own` makes figures of report.json."""
    if tables:
        yield Heading(2, "Beside the papers")
    for name, table in tables.items():
        heads = table["columns"]
        rows = [
            (cell(who if kind == "printed" else f"{who} (measured)"), *(cell(shown(key)) for key in heads))
            for kind in ("printed", "ours")
            for who, values in table[kind].items()
            for shown in [_reader(own, values, "papers", name, kind, who)]
        ]
        yield Table(f"{table['title']} ({table['source']})", ("", *heads.values()), ("", *heads), rows)
        if table["notes"]:
            yield Text(cell(own(table["notes"], "papers", name, "notes")))


def _reader(own: Any, values: Mapping[str, str], *keys: str) -> Any:
    def shown(key: str) -> str | Figure:
        return NOTHING if values[key] == "-" else own(values[key], *keys, key)

    return shown
