"""What every command keeps to: a new row of COMMANDS is held to it, called as its own help says."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from eval.gate import BASELINE
from PIL import Image
from torch import Tensor, nn

from lean3r.cli import COMMANDS
from lean3r.cli.main import main
from lean3r.web import runtime

EXAMPLES = {
    "add": ["SCENE", "INPUT", "-o", "DIR"],
    "batch": [".", "-o", "DIR", "--options=--refine off --resolution 96 --format cameras"],
    "bench": ["--views", "2", "--resolution", "64", "--repeats", "1", "-o", "DIR/bench.json", "--overwrite"],
    "export-model": ["nano", "OUT.pt2"],
    "compress": ["nano", "OUT.safetensors", "--plan", "gsa"],
    "data": ["list"],
    "demo": ["--photos", "INPUT", "-o", "DIR"],
    "distill": ["--dry-run"],
    "export-page": ["INPUT/nano.onnx", "--runtime", "RUNTIME", "-o", "DIR"],
    "evaluate": ["synthetic@2", "--limit", "1", "-o", "DIR"],
    "probe": ["--resolution", "64", "--views", "2", "--batches", "1"],
    "stream": ["INPUT", "-o", "DIR", "--refine", "off", "--resolution", "96"],
    "report": [str(BASELINE), "-o", "DIR"],
    "score": ["INPUT", "--benchmark", "synthetic@2", "--limit", "1"],
    "train": ["--dry-run"],
    "serve": ["--openapi"],
    "view": ["SCENE", "--html", "DIR/view.html"],
}
"""Row -> a short run, where the shortest that the help allows, on photos INPUT into a folder DIR, is none."""
REFUSED = {
    "--seed": ("-1", 2),
    "--model": ("nobody", 2),
    "--plan": ("nobody", 2),
    "--weights": ("nowhere.safetensors", 6),
    "--resolution": ("3", 2),
}
"""Option -> a value that every command which has it refuses, and the exit code."""

LIGHT = """
import contextlib, io, json, sys

class Heavy:
    def find_spec(self, name, path=None, target=None):
        if name in {"torch", "numpy", "triton", "PIL", "av", "pycolmap", "trimesh", "scipy", "safetensors", "rich"}:
            raise ImportError(f"--help needs {name}")

sys.meta_path.insert(0, Heavy())
from lean3r.cli import COMMANDS
from lean3r.cli.main import main

found = {}
for name in COMMANDS:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main([name, "--help"]) == 0, name
    found[name] = out.getvalue()
print(json.dumps(found))
"""


class Option(NamedTuple):
    """An entry of --help: its names (none: its place counts), what its value is called, what it says."""

    names: tuple[str, ...]
    value: str
    text: str


@cache
def helps() -> dict[str, str]:
    """--help of every command, from a Python that cannot import anything heavy."""
    run = subprocess.run(
        [sys.executable, "-c", LIGHT], capture_output=True, text=True, env=os.environ | {"COLUMNS": "500"}
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def options(name: str) -> list[Option]:
    """What the help of a command lists."""
    found: list[Option] = []
    for line in helps()[name].splitlines():
        entry = re.fullmatch(r"[ │] (\S.*?)(?:\s{2,}(.*?))?\s*│?", line)
        more = re.fullmatch(r"[ │]\s{5,}(\S.*?)\s*│?", line)
        if entry:
            names = tuple(re.findall(r"(?<![\w-])--?[a-z][\w-]*", entry[1]))
            value = entry[1].split(", ")[-1].removeprefix(names[-1] if names else "")
            found.append(Option(names, value, entry[2] or ""))
        elif more and found:
            found[-1] = found[-1]._replace(text=f"{found[-1].text} {more[1]}".strip())
    return found


def takes(name: str) -> set[str]:
    """The names of all options of a command."""
    return {flag for option in options(name) for flag in option.names}


def call(name: str) -> list[str]:
    """A short run in the current folder, where INPUT gets three photos, and predictions of two poses."""
    Path("INPUT").mkdir()
    for number in range(3):
        Image.linear_gradient("L").rotate(90 * number).resize((96, 72)).convert("RGB").save(f"INPUT/{number}.jpg")
    predicted = Path("INPUT/synthetic@2/0000/poses.txt")
    predicted.parent.mkdir(parents=True)
    predicted.write_text("1 0 0 0  0 1 0 0  0 0 1 0\n1 0 0 1  0 1 0 0  0 0 1 0\n")  # as KITTI has them
    if name == "export-page":
        Path("INPUT/nano.onnx").write_bytes(b'{"model": "nano", "limits": {"fewest_views": 1}}')
        Path("RUNTIME").mkdir()
        for file in runtime.FILES:
            Path("RUNTIME", file).write_bytes(b"a program")
    if name in ("add", "view"):  # a result of other photos
        Path("DIR").mkdir(exist_ok=name == "view")
        Path("STORED").mkdir()
        for number in range(3):
            Image.radial_gradient("L").rotate(30 * number).resize((96, 72)).convert("RGB").save(f"STORED/s{number}.jpg")
        stored = ["reconstruct", "STORED", "-o", "SCENE", "-q", "--refine", "off", "-f", "npz"]
        with contextlib.redirect_stdout(io.StringIO()):
            assert main([*stored, "--resolution", "96"]) == 0
    needed = [
        part
        for option in options(name)
        if option.text.endswith("(required)") or (not option.names and "INPUT" in option.value)
        for part in (*option.names[:1], re.findall(r"[\w-]+", option.value)[0])
    ]
    return [name, *EXAMPLES.get(name, needed)]


class Depth(nn.Module):
    """A network that is recorded at once."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"depth": images.mean(2)}


@cache
def recorded() -> torch.export.ExportedProgram:
    """Its graph."""
    return torch.export.export(Depth(), (torch.rand(1, 2, 3, 32, 32),))


each_command = pytest.mark.parametrize("name", list(COMMANDS))


@pytest.fixture(autouse=True)
def a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runtime, "FILES", dict.fromkeys(runtime.FILES, runtime.integrity(b"a program")))
    # What takes export-model a minute is no part of this contract (tests/deploy).
    monkeypatch.setattr("lean3r.deploy.export.trace", lambda *call: recorded())
    monkeypatch.setattr("lean3r.deploy.export.compare", lambda *call: {"depth": 0.0})


@each_command
def test_help_needs_nothing_heavy_and_explains_every_option(name: str) -> None:
    assert {"-h", "-v", "--verbose", "-q", "--quiet"} <= takes(name)
    assert [o for o in options(name) if not o.text or o.text.startswith("(")] == [], "without a text"


@each_command
def test_an_unknown_option_is_a_usage_error(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*call(name), "--no-such-option"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "--no-such-option" in err


@each_command
def test_quiet_says_nothing_and_json_is_all_of_standard_output(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    has_json = "--json" in takes(name)
    assert main([*call(name), "-q", *(["--json"] if has_json else [])]) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.strip()
    assert not has_json or json.loads(out)


@each_command
def test_errors_are_one_line_and_have_their_code(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    usual = call(name)
    for option in takes(name) & set(REFUSED):
        if option == "--weights" and "--dry-run" in usual:
            continue  # which opens no file
        value, code = REFUSED[option]
        assert main([*usual, "-q", option, value]) == code
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1
        assert not any(Path("DIR").glob("*")), "a half result"
