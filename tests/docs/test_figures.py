"""Every measured figure of README and of the guides is the one of its JSON."""

from __future__ import annotations

import pytest

from docs import markdown
from docs.figures import Page, loose, unbound
from docs.markdown import ROOT
from docs.measured import MEASURED
from docs.recorded import RESULTS

NAMES = [path.relative_to(ROOT).as_posix() for path in markdown.PAGES]
PAGES = pytest.mark.parametrize("page", [MEASURED.get(name, Page(name, [])) for name in NAMES], ids=NAMES)


def text_of(page: Page) -> str:
    return (ROOT / page.name).read_text(encoding="utf-8")


@PAGES
def test_figures_are_those_of_the_json(page: Page) -> None:
    assert unbound(page, text_of(page)) == [], "the JSON says so, the page does not: change the page"


@PAGES
def test_no_number_with_a_unit_is_from_nowhere(page: Page) -> None:
    assert loose(page, text_of(page)) == [], "bind it to its JSON, or say what it is, in tests/docs/measured"


@PAGES
def test_what_is_known_not_to_be_measured_is_still_on_the_page(page: Page) -> None:
    text = " ".join(text_of(page).split())
    assert [known for known in page.not_measured if known not in text] == []


def test_a_changed_figure_is_noticed() -> None:
    page = Page("README.md", [("8 photos take {:.1f} s", lambda: [5.525])])
    assert unbound(page, "8 photos\ntake 5.5 s") == []
    assert unbound(page, "8 photos take 5.6 s") == ["8 photos take 5.5 s"]


@pytest.mark.parametrize("number", ["12 s", "3.4", "17 times", "9 %", "1,024 MB", "4e-6", "20-second", "| 5.5 |"])
def test_a_figure_that_nobody_bound_is_noticed(number: str) -> None:
    page = Page("README.md", [("8 photos take {:.1f} s", lambda: [5.525])], {"Python 3.11": "a version"})
    assert loose(page, "8 photos take 5.5 s with Python 3.11 and 8 views.") == []
    assert len(loose(page, f"8 photos take 5.5 s and {number} more.")) == 1


def test_every_page_that_is_described_is_there() -> None:
    assert set(MEASURED) <= set(NAMES)


def test_every_result_is_on_the_page_of_results() -> None:
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert [path.stem for path in RESULTS.glob("*.json") if f"\n## {path.stem}\n" not in text] == []
