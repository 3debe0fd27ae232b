"""`lean3r probe`: a table for people, JSON for programs, clear refusals."""

from __future__ import annotations

import json

import pytest

from lean3r.cli.main import main

SMALL = ["--views", "2", "--resolution", "32", "--batches", "1", "-q", "--device", "cpu"]


def test_a_report_of_every_block(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "nano", *SMALL, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [unit["target"] for unit in found["units"]][:3] == ["frame blocks 0", "frame blocks 1", "global blocks 0"]
    assert len(found["units"]) == 7 and len(found["targets"]) == 3 and found["side"] == 32
    assert found["lowest_index"] == min(u["index"] for u in found["units"] if u["chosen"])
    assert main(["probe", "nano", *SMALL, "--group", "2"]) == 0
    shown = capsys.readouterr().out
    assert "* chosen: " in shown and json.dumps(found["targets"]) in shown and shown.count("\n") == 8


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--batches", "0"], "--batches is 0"),
        (["--share", "2"], "--share is 2.0"),
        (["--resolution", "2"], "--resolution is 2; expected at least 16"),
        (["--data", "nowhere=x"], "unknown data set 'nowhere'"),
        (["--plan", "fp8"], "no encoder or trunk blocks"),
    ],
)
def test_refusals(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "nano", "--device", "cpu", "-q", *options]) != 0
    assert said in capsys.readouterr().err
