"""Lists on the pages that repeat a table of the code are made from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.markdown import PAGES, ROOT
from docs.tables import PLACE, TABLES, with_tables
from lean3r.cli import COMMANDS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_tables_are_those_of_the_code(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert with_tables(text) == text, "the code has changed: run `make tables`"


def test_every_table_is_on_a_page() -> None:
    used = {place[2] for page in PAGES for place in PLACE.finditer(page.read_text(encoding="utf-8"))}
    assert used == set(TABLES)


def test_a_new_row_is_reported_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS._rows, "another", "lean3r.cli.doctor:Doctor")
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert with_tables(text) != text and "lean3r another" in with_tables(text)
