"""`lean3r compress`, `reconstruct --plan` and `inspect attention`, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts.tiny import tiny
from PIL import Image

from lean3r.cli.main import main
from lean3r.models.checkpoint import read_tensors, save_model, save_weights
from lean3r.models.da3_mono import Da3Mono
from lean3r.models.nano import Nano
from lean3r.models.pi3 import Pi3
from lean3r.models.weight_files import open_weights

HEADS, DIM = 2, 8


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Nano()
    path = tmp_path_factory.mktemp("dense") / "nano.safetensors"
    save_model(model, path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(3):
        small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
        small.resize((192, 144), Image.Resampling.BICUBIC).save(folder / f"{index}.jpg")
    return folder


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--plan", "gsa", "--budget", "0.2"], "--budget is for --calibrate, which is missing"),
        (["--plan", "gsa", "--by-head"], "--by-head is for --calibrate"),
        (["--plan", "gsa", "--remove", "1"], "--remove is for --calibrate"),
        (["--plan", "fp8", "--photos", "a.jpg"], "--photos is for --scan"),
        (["--plan", "fp8", "--floor-db", "9"], "--floor-db is for --scan"),
        (["--scan", "--calibrate", "a.jpg"], "--scan and --calibrate write different files"),
        (["--scan", "--export", "lean3r"], "--scan and --export write different files"),
        (["--calibrate", "a.jpg", "--remove", "1", "--budget", "0.2"], "--budget is a density of attention"),
    ],
)
def test_options_that_nothing_reads_are_refused(given: list[str], says: str, tmp_path: Path, capsys) -> None:
    assert main(["compress", "nano", str(tmp_path / "out.safetensors"), *given]) == 2
    assert says in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_compress_writes_a_file_that_reconstructs(
    dense: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, scene = tmp_path / "fast.safetensors", tmp_path / "scene"
    assert main(["compress", str(dense), str(out), "--plan", "gsa", "--json", "-q"]) == 0
    done = json.loads(capsys.readouterr().out)
    before, after = read_tensors(dense)[0], read_tensors(out)[0]
    assert all(torch.equal(after.pop(name), value) for name, value in before.items())
    assert sum(v.numel() for v in after.values()) == done["parameters"]["after"] - done["parameters"]["before"] > 0
    assert [row["role"] for row in done["changed"]] == ["global"] * 3 and done["plan"]["name"] == "gsa"
    assert done["changed"][0]["new_parameters"]["trunk.blocks.2.attn.mechanism.gate.bias"] == [8]

    arguments = ["reconstruct", str(photos), "-o", str(scene), "--weights", str(out), "--resolution", "96", "-q"]
    assert main([*arguments, "-f", "npz"]) == 0
    manifest = json.loads((scene / "manifest.json").read_text())
    assert manifest["plan"] == done["plan"] and 'plan = "gsa"' in (scene / "config.toml").read_text()
    capsys.readouterr()

    stamp = out.read_bytes()
    for arguments, says in (
        (["compress", str(dense), str(out), "--plan", "gsa"], "exists; use --overwrite"),
        (["compress", str(out), str(tmp_path / "b.safetensors"), "--plan", "gsa"], "compressed already"),
        (["compress", str(out), str(out), "--plan", "gsa", "--overwrite"], "is one of the input files"),
        (["compress", str(dense), str(tmp_path / "b.pt"), "--plan", "gsa"], "ends in .safetensors"),
        (
            ["compress", str(dense), str(tmp_path / "no" / "b.safetensors"), "--plan", "gsa"],
            "does not exist; create it first",
        ),
        (["compress", str(dense), str(tmp_path / "b.safetensors"), "--plan", "gsq"], "Perhaps you meant gsa"),
        (["compress", "nano", str(tmp_path / "b.safetensors"), "--plan", "gsa", "-m", "vggt"], "Leave one out"),
        (["reconstruct", str(photos), "-o", str(scene / "b"), "--weights", str(out), "--plan", "sla"], "cannot become"),
    ):
        assert main(arguments) == 2
        assert says in capsys.readouterr().err
    assert out.read_bytes() == stamp and sorted(p.name for p in tmp_path.iterdir()) == ["fast.safetensors", "scene"]


def test_inspect_attention(dense: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "seen"
    plan = tmp_path / "few.json"
    plan.write_text('{"steps": [{"target": "global blocks", "mechanism": "gsa", "settings": {"top_k": 2}}]}')
    arguments = ["inspect", "attention", str(photos), "--weights", str(dense), "--plan", str(plan), "-o", str(out)]
    assert main([*arguments, "--view", "1", "--at", "190", "140", "--json", "-q"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((out / "attention.json").read_text())
    assert sum(row["share"] for row in found["views"]) + found["special_tokens_share"] == pytest.approx(1, abs=1e-4)
    assert found["query"]["name"] == "1.jpg" and found["query"]["patches"]["row"] > 0
    assert all(0 < density < 0.6 for density in found["density"].values()) and len(found["density"]) == 3
    with Image.open(out / "attention.png") as picture:
        assert picture.width > 700 and len(picture.getcolors(1 << 20) or []) > 100
    for more, says in (
        (["--view", "3"], "0 to 2"),
        (["--at", "-1", "0"], "pixels"),
        (["--block", "3"], "3 global blocks"),
    ):
        assert main([*arguments, "--overwrite", *more]) == 2
        assert says in capsys.readouterr().err
    assert main(arguments) == 2 and "not empty" in capsys.readouterr().err


def test_a_plan_without_effect_on_few_pictures_is_reported(
    dense: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["inspect", "attention", str(photos), "--weights", str(dense), "-o"]
    assert main([*arguments, str(tmp_path / "plan"), "--plan", "gsa"]) == 0
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("warning: plan gsa is not in effect here: 3 pictures have") and "dense attention" in said
    found = json.loads((tmp_path / "plan" / "attention.json").read_text())
    assert found["not_in_effect"] in said and found["mechanism"].startswith("Dense")
    assert main([*arguments, str(tmp_path / "none")]) == 0 and "not in effect" not in capsys.readouterr().err
    heights = [Image.open(tmp_path / name / "attention.png").height for name in ("plan", "none")]
    assert heights[0] > heights[1]  # the title has a line more


def test_official_weights_are_recognised_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --model, as published: no name in the header."""
    shape = {key: value.shape for key, value in official("pi3").items() if key == Pi3.TELLTALE[0]}
    monkeypatch.setattr(Pi3, "SIZES", {"pi3": Pi3.SMALLEST})
    monkeypatch.setattr(Pi3, "TELLTALE", next(iter(shape.items())))
    source, out = tmp_path / "pi3.safetensors", tmp_path / "fast.safetensors"
    save_weights(official("pi3"), source, {})
    assert main(["compress", str(source), str(out), "--plan", "merge", "-q"]) == 0
    assert open_weights(out).metadata["model"] == "pi3"


def official(name: str) -> dict[str, torch.Tensor]:
    """A small model's parameters under official names."""
    model = tiny(name)
    return model.KEY_MAP.write(model.state_dict())


def test_weights_of_two_models_or_none_need_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {name: Da3Mono.SMALLEST for name in Da3Mono.SIZES}
    monkeypatch.setattr(Da3Mono, "SIZES", sizes)
    monkeypatch.setattr(Da3Mono, "TELLTALE", None)
    path = tmp_path / "mono.safetensors"
    save_weights(official("da3mono-large"), path, {})
    assert main(["compress", str(path), str(tmp_path / "a.safetensors"), "--plan", "fp8"]) == 2
    assert "fits da3mono-large and da3metric-large. Name the model with --model" in capsys.readouterr().err
    save_weights({"some.weight": torch.zeros(3)}, path, {})
    assert main(["compress", str(path), str(tmp_path / "a.safetensors"), "--plan", "fp8"]) == 2
    assert "fits no model, judged by the names and shapes of its tensors" in capsys.readouterr().err
