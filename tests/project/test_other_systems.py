"""Windows and macOS, as far as they can be simulated: what they lack is taken away."""

from __future__ import annotations

import json
import logging
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import lean3r
from lean3r.cli.main import main
from lean3r.errors import UsageError
from lean3r.models.base import Backbone
from lean3r.pipeline.devices import place_model, resolve_device
from lean3r.pipeline.load import load

HERE = Path(__file__).parent


def on_windows(code: str, *arguments: object) -> str:
    """Standard output of code that runs in a process that lacks what Windows lacks."""
    start = "import sys, windows; windows.become()\n"
    command = [sys.executable, "-c", start + code, *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=HERE)
    assert run.returncode == 0 and "LEFT" not in run.stderr, run.stderr
    return run.stdout


def test_what_windows_lacks_is_not_needed(tmp_path: Path) -> None:
    names = [module.name for module in pkgutil.walk_packages(lean3r.__path__, "lean3r.")]
    names = [name for name in names if not name.endswith("__main__") and ".kernel" not in name]
    assert len(names) > 150
    code = """
from importlib import import_module
from pathlib import Path
for name in sys.argv[2:]:
    import_module(name)
from lean3r.cli.doctor import hardware
from lean3r.errors import UsageError
from lean3r.scratch import hold
from lean3r.train.checkpoints.state import lock_folder
print(*(finding.part for finding in hardware()))
folder = Path(sys.argv[1])
first = hold(folder / "lock")
assert first and hold(folder / "lock") is None
first.close()
assert hold(folder / "lock")
with lock_folder(folder / "run", 0):
    try:
        with lock_folder(folder / "run", 0):
            print("both")
    except UsageError:
        print("one")
"""
    assert on_windows(code, tmp_path, *names).split("\n") == ["lean3r CPU GPU", "one", ""]


def test_a_run_and_its_repetition_on_windows(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        Image.effect_noise((96, 64), 90).convert("RGB").save(tmp_path / name)
    code = """
from pathlib import Path
from lean3r.cli.main import main
assert main(sys.argv[1:]) == 0
(Path(sys.argv[3].partition('=')[2]) / "mine.txt").write_text("stays")
assert main([*sys.argv[1:], "--overwrite", "--refine=off"]) == 0
"""
    out = tmp_path / "out"
    said = on_windows(code, "reconstruct", tmp_path, f"--out={out}", "--json", "--resolution", 64)
    for line in said.splitlines():
        assert len(json.loads(line)["views"]) == 2 and json.loads(line)["peak_memory_mb"] == 123.0
    assert (out / "mine.txt").read_text() == "stays"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "out", "two.png"]


def test_auto_takes_an_apple_gpu_and_falls_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """This torch knows of mps and has none of its operators, as a network with a missing one does."""
    with pytest.raises(UsageError, match=r"mps is not usable: this torch .* is built without MPS"):
        resolve_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto").type == resolve_device("mps").type == "mps"
    with caplog.at_level(logging.WARNING):
        model = load("nano", device="auto")
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert "nano does not run on mps" in caplog.text and "using the CPU" in caplog.text
    assert main(["doctor"]) == 0 and "Apple GPU (mps); untested" in capsys.readouterr().out


def test_a_network_that_differs_on_mps_stays_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def to(self: Backbone, device: object) -> Backbone:
        moved.append(str(device))
        if str(device) == "mps":
            self.forward = lambda views: wrong  # type: ignore[method-assign]
        return self

    moved: list[str] = []
    model = load("nano", device="cpu")
    wrong = model(lean3r.Views(torch.rand(1, 2, 3, 64, 64)))
    monkeypatch.setattr(Backbone, "to", to)
    monkeypatch.setattr(lean3r.Views, "to", lambda self, device: self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *_: self)
    place_model(model, torch.device("mps"))
    assert moved == ["mps", "cpu"] and "differs from the CPU's by" in caplog.text
