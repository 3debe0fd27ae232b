"""lean3r report: its files, its messages and its exit codes, and the gate that keeps nano from getting worse."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from eval.gate import BASELINE, EVALUATE, TOLERANCES

from lean3r.cli.main import main

SCORES = "synthetic@4/scores.json"


def gate(run: Path, out: Path) -> int:
    """The exit code of the comparison with the recorded run."""
    return main(["report", str(BASELINE), str(run), "-o", str(out), *_flags(TOLERANCES)])


def _flags(tolerances: Sequence[str]) -> list[str]:
    return [part for each in tolerances for part in ("--tolerance", each)]


def changed(folder: Path, figure: str, by: float) -> Path:
    """A copy of the recorded run in which a figure of each item, and so the mean, is another."""
    content = json.loads((BASELINE / SCORES).read_text())
    for row in content["rows"]:
        row["figures"][figure] += by
    content["figures"][figure] += by
    (folder / SCORES).parent.mkdir(parents=True)
    (folder / SCORES).write_text(json.dumps(content))
    (folder / "run.json").write_bytes((BASELINE / "run.json").read_bytes())
    return folder


def test_nano_is_not_worse_than_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The gate of CI. Pictures of half the size are what it has to notice."""
    assert main(["evaluate", *EVALUATE, "-q", "-o", str(tmp_path / "now")]) == 0
    capsys.readouterr()
    assert gate(tmp_path / "now", tmp_path / "report") == 0, capsys.readouterr().err
    assert main(["evaluate", *EVALUATE, "-q", "-o", str(tmp_path / "small"), "--resolution", "120"]) == 0
    assert gate(tmp_path / "small", tmp_path / "worse") == 1
    error = capsys.readouterr().err
    assert "small, synthetic@4: auc" in error and "worse beyond the tolerance" in error


def test_a_regression_is_an_error_of_one_line_after_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    worse = changed(tmp_path / "worse", "abs_rel", 3.0)
    call = ["report", str(BASELINE), str(worse), "-o", str(tmp_path / "out")]
    assert main([*call, "-v"]) == 1
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'out' / 'report.html'}\n" and err.count("\n") == 1
    assert err.startswith(
        "error: worse beyond the tolerance: worse, synthetic@4: abs_rel 15.1 -> 18.1 (+3.0, 95 % +3.0"
    )
    assert err.endswith(f"See {tmp_path / 'out'}/report.html\n")
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"report.html", "report.md", "report.json", "plots"}
    assert main([*call, "--overwrite", "--json", "--tolerance", "abs_rel=4"]) == 0
    assert json.loads(capsys.readouterr().out)["worse"] == []
    assert main(["report", str(worse), "--against", str(BASELINE), "-o", str(tmp_path / "against")]) == 1


def test_what_cannot_be_reported_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    for given, code, message in (
        ([str(tmp_path / "photos")], 3, "has no run.json, so it is not a run"),
        ([str(tmp_path / "nowhere")], 3, "is not a folder"),
        ([str(BASELINE), str(BASELINE)], 2, "given twice"),
        ([str(BASELINE), "--tolerance", "auc60=1"], 2, "--tolerance names auc60"),
        ([str(BASELINE), "--bench", str(BASELINE / "run.json")], 3, "not a file of lean3r bench"),
        ([], 2, "nothing to report"),
    ):
        assert main(["report", *given, "-o", str(tmp_path / "out")]) == code
        err = capsys.readouterr().err
        assert err.startswith("error: ") and message in err and err.count("\n") == 1
        assert not (tmp_path / "out").exists()


def test_the_folder_of_a_run_is_never_replaced(tmp_path: Path) -> None:
    run = changed(tmp_path / "run", "abs_rel", 0.0)
    before = (run / SCORES).read_bytes()
    assert main(["report", str(run), "-o", str(run), "--overwrite"]) == 2
    assert (run / SCORES).read_bytes() == before
