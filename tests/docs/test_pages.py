"""Every block of every page runs as its reader would run it, or stands in a table with the reason why not.

A page has a copy of the project as its folder, with the inputs that it names (inputs.py), and runs from top to bottom
in a process of its own, a copy of one that has imported torch (run_page.py). Large networks have toy sizes there
(small/).
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from docs.inputs import hub, wanted
from docs.pages import ELSEWHERE, PAGES, ROOT, Step, steps_of
from docs.run_page import MOST, TORCH, Job, ask, start, surroundings
from lean3r.cli import COMMANDS
from lean3r.cli.main import main

FOLDERS = ("lean3r", "tests", "docs", "benchmarks", "examples")
FILES = ("README.md", "LICENSE", "Makefile", "constraints.txt", "pyproject.toml")
LARGE = re.compile(r"\b(vggt|pi3x?|da3-\w+|speed3r|lean3r (train|distill|demo)|make demo)\b")
FULL_SIZE = ("docs/how-to/depth.md",)
"""Pages whose pictures are as large as nano has them; so are those of `make demo` in README.md. Elsewhere a quarter of
the side shows that the blocks run."""


def runs_here(step: Step) -> bool:
    return step.plain not in ELSEWHERE.get(step.page, {})


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, whose files the pages have in their folders, too."""
    copy = tmp_path_factory.mktemp("project")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name)  # with its byte code, or every page would compile it anew
    for name in FILES:
        shutil.copy(ROOT / name, copy)
    return copy


def workplace(tmp_path: Path, project: Path, changes_code: bool) -> Path:
    """The project with its environment in .venv, set up. Links to its files take a hundredth of the time of copies,
    but what is written into them would be there for the next page, too."""
    tree = tmp_path / "lean3r"
    shutil.copytree(project, tree, copy_function=shutil.copy2 if changes_code else os.link)
    (tree / ".venv").mkdir()
    for name in ("lib", "pyvenv.cfg"):
        (tree / ".venv" / name).symlink_to(Path(sys.prefix) / name)
    (tree / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    (tree / ".venv" / "core.stamp").touch()
    return tree


@pytest.fixture(scope="session")
def hub_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    hub(folder)
    return folder


@pytest.fixture(scope="session")
def sockets() -> Iterator[dict[str, str]]:
    """Where pages and their commands ask for processes. Pages see whether they import what they use of lean3r."""
    with TemporaryDirectory() as folder:  # not pytest's, whose name may be too long for a socket
        pages, commands = Path(folder) / "pages", Path(folder) / "commands"
        with start(pages, TORCH, surroundings()), start(commands, MOST, surroundings()):
            yield {"pages": str(pages), "commands": str(commands)}


@pytest.mark.parametrize("page", PAGES)
def test_page(
    page: str, project: Path, sockets: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    steps = [step for step in steps_of(page) if runs_here(step)]
    if not steps:
        return
    text = "\n".join(step.text for step in steps)
    changes_code = any(step.kind in ("file", "row") for step in steps)
    tree = workplace(tmp_path, project, changes_code)
    for name, write in wanted(page, text).items():
        write(tree / name)
    environment = surroundings()
    path = [tree]
    if LARGE.search(text):
        path += [tree / "tests" / "docs" / "small", tree / "tests"]
        environment |= {"HF_HUB_CACHE": str(request.getfixturevalue("hub_cache")), "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
    log = tmp_path / "log.txt"
    end = ask(
        sockets["pages"],
        Job(
            str(tree),
            environment,
            str(log),
            None if changes_code else sockets["commands"],
            is_small=page not in FULL_SIZE and not changes_code,
            steps=[dataclasses.asdict(step) for step in steps],
            words=[],
        ),
    )
    said = log.read_text()
    assert end.code == 0 and "Error in sitecustomize" not in said, said[-6000:]
    shutil.rmtree(tree)


def test_what_runs_elsewhere_is_still_on_its_page() -> None:
    stale = [
        (page, plain) for page, rows in ELSEWHERE.items() for plain in rows
        if plain not in {step.plain for step in steps_of(page)}
    ]  # fmt: skip
    assert stale == []


@pytest.mark.parametrize("verb", list(COMMANDS))
def test_options_that_pages_name_exist(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of commands within sentences, too, and of those that run elsewhere; all options of reconstruct are explained."""
    assert main([verb, "--help"]) == 0
    known = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", capsys.readouterr().out))
    named = {
        (page, option)
        for page in PAGES
        for call in re.findall(rf"lean3r {verb}\b([^`#|\n]*)", (ROOT / page).read_text().replace("\\\n", " "))
        for option in re.findall(r"(?<=\s)--?[a-z][\w-]*", call)
    }
    assert {row for row in named if row[1] not in known} == set()
    if verb == "reconstruct":
        explained = set(re.findall(r"--[a-z][\w-]*", (ROOT / "docs" / "cli.md").read_text()))
        assert {option for option in known if option.startswith("--")} - explained - {
            "--help",
            "--quiet",
            "--verbose",
        } == set()
