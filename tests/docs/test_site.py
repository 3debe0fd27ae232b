"""The rendered site: it builds without a warning, holds every room and docstring, loads nothing from elsewhere."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BULLET = re.compile(r"^\s*(?:[-*]|\d+\.) ", re.M)
griffe = pytest.importorskip("griffe", reason="the site's tools are not installed: pip install -e '.[docs]'")


def build(project: Path) -> subprocess.CompletedProcess[str]:
    """Build with warnings as errors, as `make docs` does."""
    shutil.copy(ROOT / "zensical.toml", project)
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    return subprocess.run(command, cwd=project, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of the project's own pages."""
    project = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", project / "docs")
    (project / "lean3r").symlink_to(ROOT / "lean3r")
    done = build(project)
    assert done.returncode == 0 and "No issues found" in done.stdout + done.stderr, done.stdout + done.stderr
    return project / "build" / "site"


@pytest.mark.parametrize("bad", ["[x](absent.md)", "[x](index.md#absent)", "[x][lean3r.absent]", "::: lean3r.absent"])
def test_broken_links_stop_the_build(bad: str, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Page\n\n{bad}\n")
    assert build(tmp_path).returncode != 0


def test_every_page_and_room_is_there_and_nothing_comes_from_elsewhere(site: Path) -> None:
    pages = {path.relative_to(site).with_suffix("").as_posix() for path in site.rglob("*.html")}
    assert {path.relative_to(ROOT / "docs").with_suffix("").as_posix() for path in ROOT.glob("docs/**/*.md")} <= pages
    shown = "".join(path.read_text(encoding="utf-8") for path in site.glob("reference/*.html"))
    rooms = {path.stem for path in ROOT.glob("lean3r/[a-z]*.py")}
    rooms |= {path.parent.name for path in ROOT.glob("lean3r/*/__init__.py")}
    assert {room for room in rooms if f'id="lean3r.{room}"' not in shown} == set()
    elsewhere = re.compile(r'<(?:script|img|iframe|link)\b[^>]* (?:src|href)="https?:[^"]+')
    for path in site.rglob("*.html"):
        assert elsewhere.findall(path.read_text(encoding="utf-8")) == [], path.name


def test_alternatives_in_tables_show_as_on_github(site: Path) -> None:
    page = (site / "cli.html").read_text(encoding="utf-8")
    assert "--device auto|cpu|cuda|mps" in page and "\\|" not in page


def test_pages_link_to_nothing_outside_the_site() -> None:
    for page in ROOT.glob("docs/**/*.md"):
        for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).resolve().is_relative_to(ROOT / "docs"), f"{page.name}: {link}"


def squeeze(text: str) -> str:
    return re.sub(r"[\s`]+", "", text)


def docstrings(owner: griffe.Object) -> Iterator[tuple[str, str]]:
    """Path and text of every public docstring below a package, kernels (which need triton) left out."""
    for name, member in owner.members.items():
        if member.is_alias or name.startswith("_") or name.startswith("kernel"):
            continue
        if member.docstring:
            yield member.path, member.docstring.value
        if member.is_module or member.is_class:
            yield from docstrings(member)


def test_every_docstring_arrives_whole(site: Path) -> None:
    """Markdown takes no letter for a sign: lists, products and underscores come out as they were written."""
    shown = ""
    for path in site.glob("reference/*.html"):
        article = path.read_text(encoding="utf-8").partition("<article")[2].partition("</article>")[0]
        shown += squeeze(html.unescape(re.sub(r"<[^>]+>", "", article)))
    texts = list(docstrings(griffe.load("lean3r", search_paths=[ROOT])))
    assert len(texts) > 1500
    parts = [(path, part) for path, text in texts for part in re.split(r"\n\s*\n", text)]
    lost = [(path, part) for path, part in parts if squeeze(re.sub(BULLET, "", part)) not in shown]
    assert lost == []
