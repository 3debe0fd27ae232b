"""What stands around the code: links, the citation, the changelog, hooks and continuous integration."""

from __future__ import annotations

import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import yaml

import lean3r

ROOT = Path(__file__).parents[2]
PAPERS = [path for part in ("*.md", "docs/**/*.md", ".github/**/*.md") for path in sorted(ROOT.glob(part))]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    words = [heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", text, re.M)]
    return {"".join(c for c in word if c in "-_" or unicodedata.category(c)[0] in "LN") for word in words}


@pytest.mark.parametrize("paper", PAPERS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_have_targets(paper: Path) -> None:
    for link in LINK.findall(paper.read_text(encoding="utf-8")):
        if link.startswith(("https://", "http://")):
            continue
        place, _, anchor = link.partition("#")
        target = (paper.parent / place).resolve() if place else paper
        assert target.exists(), f"{paper.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{paper.name}: {link}"


def test_the_citation_is_valid_and_names_both_papers() -> None:
    pytest.importorskip("cffconvert", reason="cffconvert is not installed: pip install -e '.[dev]'")
    from cffconvert import Citation

    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    Citation(text).validate()
    cited = yaml.safe_load(text)
    assert cited["version"] == lean3r.__version__ and cited["license"] == "Apache-2.0"
    assert [row["title"].partition(":")[0] for row in cited["references"]] == ["Speed3R", "Lite3R"]


def test_the_changelog_has_the_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[(.+?)\](?: - \d{4}-\d\d-\d\d)?$", text, re.M)
    assert headings[0] == "Unreleased" and (
        lean3r.__version__ in headings or f"what {lean3r.__version__} will be" in text
    )
    kinds = set(re.findall(r"^### (.*)$", text, re.M))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security", "Known limits"}


def test_github_runs_the_whole_check() -> None:
    (job,) = yaml.safe_load((ROOT / ".github/workflows/check.yml").read_text(encoding="utf-8"))["jobs"].values()
    assert job["steps"][-1] == {"run": ".ci/run"} and (ROOT / ".ci/run").stat().st_mode & 0o100
    for form in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        body = yaml.safe_load(form.read_text(encoding="utf-8"))
        assert form.name == "config.yml" or {"name", "description", "body"} <= set(body)


def test_hooks_refuse_bad_style_and_large_files(tmp_path: Path) -> None:
    """In a small repository with the project's own hooks and programs."""
    pytest.importorskip("pre_commit", reason="pre-commit is not installed: pip install -e '.[dev]'")

    def check(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        subprocess.run(["git", "add", "-A"], cwd=tmp_path, check=True)
        run = subprocess.run([sys.executable, "-m", "pre_commit", "run"], cwd=tmp_path, capture_output=True, text=True)
        (tmp_path / name).unlink()
        return " ".join(re.findall(r"hook id: ([\w-]+)", run.stdout)) if run.returncode else ""

    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    for name in (".pre-commit-config.yaml", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / ".gitignore").write_text(".venv\n")
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    assert check("good.py", '"""Good."""\n') == ""
    assert check("bad.py", "import os\n") == "ruff"
    assert check("wide.py", "x = {  }\n") == "format"
    assert check("large.bin", "x" * 1_100_000) == "large-files"
