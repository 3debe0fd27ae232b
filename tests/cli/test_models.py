"""`lean3r models`: every row useful, costs on demand, licences with their source."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import lean3r
from lean3r.cli.main import main
from lean3r.models import CARDS, MODELS
from lean3r.pipeline.load import load
from lean3r.registry import Registry

PARTS = ("encoder", "frame attention", "global attention", "mlp", "heads")


def rows(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict]:
    assert main(["models", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_row_says_what_it_predicts(capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(capsys)
    assert [row["name"] for row in found] == list(lean3r.list_models())
    assert len({row["predicts"] for row in found}) == len(found)
    for row in found:
        assert row["licence"] and row["non_commercial"] == ("NC" in row["licence"])
        assert row["predicts"] and len(row["predicts"]) < 120
        if row["name"] in CARDS and CARDS[row["name"]].repository:
            assert row["weights"].startswith("hf:") and row["licence_stated"].startswith("https://")
    assert main(["models"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in lean3r.list_models()) and "CC-BY-NC-4.0 (non-commercial)" in shown
    assert max(map(len, shown.splitlines())) <= 240


def test_costs_are_the_summary(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("pi3", "--verbose", "--views", "3", "--height", "60", "--width", "80")
    with torch.device("meta"):
        model = MODELS.get("pi3")()
    summary = model.summary(3, 56, 84)
    (row,) = rows(capsys, *arguments)
    costs = row["costs"]
    assert (costs["views"], costs["height"], costs["width"]) == (3, 56, 84), "rounded to whole patches"
    assert tuple(costs["flops"]) == PARTS and costs["flops"] == summary.flops
    assert costs["activation_bytes"] == summary.activation_bytes
    assert main(["models", *arguments]) == 0
    shown = capsys.readouterr().out
    assert "3 views, 84x56, float32" in shown and all(part in shown for part in PARTS)
    assert f"{summary.weight_bytes / 1e6:,.0f} MB" in shown and "958.7 M" in shown


def test_costs_of_a_student_are_with_its_plan(capsys: pytest.CaptureFixture[str]) -> None:
    size = ("--verbose", "--views", "14")  # from so many pictures on its attention is sparse
    dense, student = (rows(capsys, name, *size)[0]["costs"] for name in ("nano", "nano-gsa-fp8"))
    assert student["flops"]["global attention"] < 0.5 * dense["flops"]["global attention"]
    assert student["weight_bytes"] < 0.4 * dense["weight_bytes"]


def test_costs_of_all(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"nano": "lean3r.models.nano:Nano", "da3-small": "lean3r.models.da3:Da3Small"}
    monkeypatch.setattr("lean3r.models.MODELS", Registry("model", few))
    assert main(["models", "-v", "--views", "1", "--height", "32", "--width", "32"]) == 0
    shown = capsys.readouterr().out
    assert "1 view, 32x32" in shown and "1 view, 28x28" in shown and "activations" in shown


@pytest.mark.parametrize(
    ("source", "licence"),
    [("hf:yyfz233/Pi3@main", "CC-BY-NC-4.0"), ("hf:some/body", "Apache-2.0"), (None, "Apache-2.0")],
)
def test_loading_warns_where_commercial_use_is_forbidden(
    source: str | None, licence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The licence is that of the weights that are read, known by their repository, else that of the model."""
    save_file({"any": torch.zeros(1)}, tmp_path / "any.safetensors")
    monkeypatch.setattr("lean3r.pipeline.load.find_weights", lambda *_, **__: tmp_path / "any.safetensors")
    monkeypatch.setattr("lean3r.pipeline.load.load_weights", lambda model, *_, **__: model.to_empty(device="cpu"))
    model = load("da3-small", source, device="cpu")
    assert model.licence == licence and ("non-commercial use only" in caplog.text) == ("NC" in licence)
    assert model.origin.weights == (source or "hf:depth-anything/DA3-SMALL")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["da3-larg"], "unknown model 'da3-larg'. Perhaps you meant da3-large"),
        (["nano-gsa-fp"], "unknown model 'nano-gsa-fp'. Perhaps you meant nano-gsa-fp8"),
        (["none"], "none is no network, so it has no row; expected one of nano, "),
        (["nano", "-v", "--views", "0"], "expected at least one view"),
        (["nano", "-v", "--height", "-5"], "expected at least one view"),
        (["nano", "--views", "16"], "--views is for the costs that --verbose shows; add --verbose"),
    ],
)
def test_bad_requests_are_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", *arguments]) == 2
    shown = capsys.readouterr().err.strip()
    assert said in shown and "\n" not in shown
