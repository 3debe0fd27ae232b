"""`--adapters` of `train` and `distill`: which layers, what trains, resuming, weights merged or apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("peft", reason="adapters come with the extra 'train'")

import lean3r
from lean3r.cli.main import main
from lean3r.models.base import Backbone
from lean3r.models.checkpoint import read_tensors
from lean3r.train import RECIPES
from lean3r.train.adapting import AdapterChoice, choose, with_adapters
from lean3r.train.freeze import trainable_names
from lean3r.train.lora import load_adapters, merge_lora
from lean3r.train.recipes.distilled import Distillation
from lean3r.types import Views

FAST = ("--views", "2", "--batch", "2", "--processes", "1", "--validate-every", "0")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No validation and no curves: they take longer than the runs."""
    monkeypatch.setattr("lean3r.train.logs.watch.draw_curves", lambda *_: None)
    monkeypatch.setattr("lean3r.eval.synthetic.validate", lambda *_: {"auc30": 1.0})


def depth(model: Any) -> Tensor:
    with torch.inference_mode():
        return model(Views(torch.rand(1, 2, 3, 96, 128, generator=torch.Generator().manual_seed(0)))).depth


def nano(weights: Path | None = None) -> Backbone:
    return lean3r.load("nano", weights=weights, device="cpu", dtype="float32")


def test_distill_with_the_probe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["distill", "--recipe", "nano-gsa-fp8", *FAST, "--steps", "1", "-q"]
    call += ["--adapters", "gradient", "--adapter-rank", "4", "-o", str(tmp_path / "run")]
    assert main([*call, "--dry-run"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert main(call) == 0
    model = lean3r.load("nano-gsa-fp8", weights=capsys.readouterr().out.strip(), device="cpu")
    assert depth(model).isfinite().all()
    assert json.loads((tmp_path / "run" / "recipe.json").read_text()) == shown
    mechanisms, sparse, rounded = shown["phases"]
    assert sparse["settings"]["adapters"].items() >= {"how": "gradient", "rank": 4, "share": 0.5}.items()
    assert "adapters" not in mechanisms["settings"] and "adapters" not in rounded["settings"]
    trains = [phase["stages"][0]["train"] for phase in (mechanisms, sparse, rounded)]
    assert trains == [["mechanisms"], ["adapters", "mechanisms"], ["norms", "mechanisms"]]
    chosen = json.loads((tmp_path / "run" / "nano-gsa" / "adapters.json").read_text())
    scores = chosen["scores"]
    best = {max((t for t in scores if role in t), key=scores.get) for role in ("frame", "global")}
    assert set(chosen["targets"]) == best
    before = read_tensors(tmp_path / "run" / "nano-gsa-mechanisms" / "weights.safetensors")[0]
    after = read_tensors(tmp_path / "run" / "nano-gsa-fp8" / "weights.safetensors")[0]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    blocks = {name.split(".")[2] for name in changed if name.endswith(("qkv.weight", "fc1.weight"))}
    others = {n for n in changed if ".mechanism." not in n and n.split(".")[2] not in blocks}
    assert len(blocks) == 2 and others <= trainable_names(nano(), ["norms"])
    assert main([*call, "--resume"]) == 0
    call[call.index("--adapter-rank") + 1] = "8"
    assert main([*call, "--resume"]) == 2 and "rank: 4 in the run, 8 now" in capsys.readouterr().err


def test_a_killed_run_keeps_its_layers_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = ["distill", "--student-plan", "gsa", *FAST, "--steps", "2", "--checkpoint-every", "1", "-q"]
    call += ["--adapters", "gradient", "--adapter-rank", "4", "-o"]
    assert main([*call, str(tmp_path / "whole")]) == 0
    batch = Distillation.batch

    def killed(recipe: Distillation, phase: int, step: int, *rest: Any) -> Any:
        if (tmp_path / "run" / "nano-gsa" / "checkpoints" / "step-000000001.pt").exists():
            raise KeyboardInterrupt
        return batch(recipe, phase, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Distillation, "batch", killed)
        assert main([*call, str(tmp_path / "run")]) == 130
    monkeypatch.setattr("lean3r.train.adapting.choose", None)  # not called again
    assert main([*call, str(tmp_path / "run"), "--resume"]) == 0
    whole, run = (read_tensors(tmp_path / name / "nano-gsa.safetensors")[0] for name in ("whole", "run"))
    assert whole.keys() == run.keys() and all(torch.equal(whole[name], run[name]) for name in whole)


def test_train_merged_and_apart(tmp_path: Path) -> None:
    from peft import PeftModel

    call = [
        "train",
        "nano",
        *FAST,
        "--steps",
        "1",
        "-q",
        "--adapters",
        "last",
        "--adapter-rank",
        "2",
        "--lr",
        "0.1",
        "-o",
    ]
    assert main([*call, str(tmp_path / "merged")]) == 0
    assert main([*call, str(tmp_path / "apart"), "--separate-adapters"]) == 0
    folder = tmp_path / "apart" / "adapters"
    assert not list((tmp_path / "apart").glob("*.safetensors"))
    assert (folder / "adapter_model.safetensors").stat().st_size < 4e5
    dense, merged, ours = nano(), nano(tmp_path / "merged" / "nano.safetensors"), nano()
    blocks = load_adapters(ours, folder)
    assert {name.split(".")[2] for name in blocks} == {"3", "5", "6"}, "of four frame and three global blocks"
    torch.testing.assert_close(depth(ours), depth(merged), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(depth(PeftModel.from_pretrained(nano(), str(folder))), depth(ours), rtol=0, atol=0)
    assert not torch.allclose(depth(ours), depth(dense), rtol=1e-3)
    merge_lora(ours)
    assert ours.state_dict().keys() == dense.state_dict().keys()


def test_which_blocks() -> None:
    model, (config,) = nano(), RECIPES.get("nano")().phases[-1:]

    def targets(how: Any, seed: int = 0) -> list[str]:
        (asked,) = with_adapters([replace(config, seed=seed)], [None], AdapterChoice(how))
        return choose(model, asked, lambda *_: torch.ones(()))["targets"]

    assert len(targets("all")) == 7 and targets("last") == ["frame blocks 2", "frame blocks 3", "global blocks 2"]
    draws = [targets("random", seed) for seed in range(5)]
    assert len({tuple(draw) for draw in draws}) > 1 and draws[0] == targets("random", 0)
    assert all(["frame" in target for target in sorted(draw)] == [True, True, False] for draw in draws)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["distill", "--recipe", "lite3r-vggt", "--adapters", "all"], "no phase of the recipe can have adapters"),
        (["distill", "--adapter-rank", "4"], "need --adapters"),
        (["train", "nano", "--separate-adapters"], "need --adapters"),
        (
            ["train", "nano", "--adapters", "last", "--train", "norms", "heads", "--separate-adapters"],
            "heads norms changes",
        ),
        (["distill", "--adapters", "all", "--separate-adapters"], "the last phase, nano-gsa-fp8, quantises"),
        (["train", "nano", "--adapters", "last", "--adapter-share", "2"], "--adapter-share is 2.0"),
        (["train", "nano", "--adapters", "last", "--adapter-rank", "0"], "--adapter-rank is 0"),
        (["distill", "--student-plan", "gsa", "--adapters", "all", "--train", "nothing"], "unknown role 'nothing'"),
    ],
)
def test_bad_calls(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--dry-run"]) == 2
    assert said in capsys.readouterr().err
