"""The package as others get it: built, checked, installed; types and links arrive."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ADDRESS = PROJECT["urls"]["Repository"]

CONSUMER = """
import lean3r

model = lean3r.load("nano")
scene = lean3r.reconstruct(model, "photos/")
reveal_type(scene)
reveal_type(scene.points)
reveal_type(scene.names)
reveal_type(lean3r.list_models())
scene.nothing
lean3r.load(nothing=1)
"""


def run(*command: object) -> str:
    """Standard output of a command that succeeds."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the wheel and the source archive, both built from here."""
    pytest.importorskip("build", reason="build is not installed: pip install -e '.[dev]'")
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--wheel", "--outdir", folder, ROOT)
    return folder


def metadata(dist: Path) -> Message:
    """What the wheel says of itself; its payload is the long description."""
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode())


def test_the_marker_of_types_is_in_both_archives(dist: Path) -> None:
    (wheel,), (source,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        assert {"lean3r/py.typed", "lean3r/quality/page.html"} <= set(archive.namelist())
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"lean3r/py.typed", "README.md", "CHANGELOG.md", "CITATION.cff", "tests/conftest.py"} <= names


def test_a_consumer_sees_types(dist: Path, tmp_path: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    venv.create(tmp_path / "venv")
    (python,) = [path for part in ("bin/python", "Scripts/python.exe") if (path := tmp_path / "venv" / part).exists()]
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    (tmp_path / "consumer.py").write_text(CONSUMER)
    settings = {"include": ["consumer.py"], "reportMissingTypeStubs": "error"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", python, "--project", tmp_path]
    report = json.loads(subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=tmp_path).stdout)
    said = [row["message"] for row in report["generalDiagnostics"]]
    types = [found[1] for row in said if (found := re.fullmatch(r'Type of ".*" is "(.*)"', row))]
    assert types == ["Reconstruction", "PointCloud", "tuple[str, ...]", "tuple[str, ...]"]
    errors = [row for row in said if not row.startswith("Type of")]
    assert len(errors) == 2 and all('"nothing"' in row for row in errors), "what is wrong is seen, and nothing else"


def test_pypi_accepts_the_archives(dist: Path) -> None:
    assert "PASSED" in run(sys.executable, "-m", "twine", "--no-color", "check", "--strict", *dist.iterdir())
    told = metadata(dist)
    assert told["License-Expression"] == "Apache-2.0" and told.get_all("License-File") == ["LICENSE", "NOTICE"]
    assert told["Author"] and told["Keywords"] and "Typing :: Typed" in (told.get_all("Classifier") or ())


def test_links_of_the_readme_work_on_pypi(dist: Path) -> None:
    shown = metadata(dist).get_payload()
    assert isinstance(shown, str)
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)]*)\)", shown)
    assert len(links) == len(re.findall(r"!?\[[^\]]*\]\([^)]*\)", (ROOT / "README.md").read_text(encoding="utf-8")))
    for is_picture, link in links:
        kind = "raw" if is_picture else "blob"
        place = link.removeprefix(f"{ADDRESS}/{kind}/HEAD/").partition("#")[0]
        assert place != link and (ROOT / place).is_file(), link


def test_the_public_address_is_in_one_file() -> None:
    """Whoever gives the project its address changes pyproject.toml, and nothing else."""
    owner = ADDRESS.split("/")[-2]
    places = [*ROOT.glob("*.*"), *ROOT.glob(".github/**/*.*"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("lean3r/**/*.py")]
    texts = {path.name: path.read_text(encoding="utf-8") for path in places if path.is_file()}
    assert [name for name, text in texts.items() if f"github.com/{owner}/lean3r" in text] == ["pyproject.toml"]
    assert all(link.startswith(ADDRESS) for link in PROJECT["urls"].values())
