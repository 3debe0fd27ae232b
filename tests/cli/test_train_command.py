"""`lean3r train`: what it judges weights on is looked at before it trains, and what its options change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data.tiny import write

from lean3r.cli.main import main
from lean3r.train.held_out import SETS
from lean3r.train.recipes.nano import nano


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--validate-scenes", "0"], 2, "--validate-every 0"),
        (["--validate-data", "blendedmvs=/nowhere/at/all"], 3, "is not a folder"),
        (["--validate-data", "synthetic"], 2, "is the default without data"),
        (["--validate-data", "blendedmvs={tiny}"], 3, "fewer than 8 views"),
    ],
)
def test_impossible_validation_is_refused_before_the_first_step(
    arguments: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("blendedmvs", tmp_path / "tiny")
    arguments = [argument.format(tiny=tmp_path / "tiny") for argument in arguments]
    assert main(["train", "nano", "-o", str(tmp_path / "run"), *arguments]) == code
    assert said in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert {views for views, _, _ in SETS} == {2, 8}


def test_the_seed_is_that_of_the_scenes_too(capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for seed in ([], ["--seed", "5"]):
        assert main(["train", "nano", *seed, "--dry-run"]) == 0
        shown.append(json.loads(capsys.readouterr().out))
    assert shown[0]["world"]["seed"] == nano().world.seed
    assert shown[1]["world"]["seed"] == 5 and {phase["seed"] for phase in shown[1]["phases"]} == {5}
