"""What `lean3r report` refuses, and runs in which everything failed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from eval.made import SPREAD, compared, failed, make_bench, make_run, mean_pool, row, rows

from lean3r.errors import InputError, UsageError
from lean3r.eval.report.bench import read_benches
from lean3r.eval.report.compare import compare, parse_tolerances
from lean3r.eval.report.content import make_report
from lean3r.eval.report.runs import read_runs
from lean3r.eval.report.writing import write_report


def damage(name: str, **changes: Any) -> Any:
    """Change keys of one JSON file of a run."""

    def change(run: Path) -> None:
        content = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps(content | changes))

    return change


SCORES = "made-4/scores.json"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: (run / "run.json").unlink(), "no run.json.*lean3r evaluate"),
        (lambda run: (run / SCORES).unlink(), "no scores yet.*lean3r score"),
        (lambda run: (run / SCORES).write_text('{"format": 1, "rows"'), "cannot be read.*lean3r score"),
        (damage("run.json", format=2), '"format" 2, this lean3r reads 1'),
        (damage("run.json", benchmarks=["../../etc"]), "no names of benchmarks"),
        (damage(SCORES, format=0), '"format" 0.*lean3r score'),
        (damage(SCORES, rows=[]), "no rows"),
        (damage(SCORES, rows=[{"id": "a"}]), "damaged"),
        (damage(SCORES, rows=[row("a", 1.0), row("a", 1.0)]), "same id"),
        (damage(SCORES, rows=[row("a", 1.0, abs_rel="ten")]), "damaged.*not a number"),  # type: ignore[arg-type]
        (damage(SCORES, directions={"auc30": "up"}), "direction 'up'"),
    ],
)
def test_what_is_no_scored_run_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    run = make_run(tmp_path / "run", rows(SPREAD))
    change(run)
    with pytest.raises(InputError, match=message):
        read_runs([run])


def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", rows(SPREAD))
    with pytest.raises(UsageError, match="given twice"):
        read_runs([one, tmp_path / "." / "one"])
    with pytest.raises(InputError, match="nothing to compare"):
        runs = read_runs([one, make_run(tmp_path / "two", rows(SPREAD), "others-4")])
        compare(runs, runs[0], mean_pool, {})
    with pytest.raises(InputError, match="no item in common"):
        compared(tmp_path, rows(SPREAD), [row("elsewhere", 1.0)])
    with pytest.raises(InputError, match="no item has a score"):
        compared(tmp_path, [failed("a")], [failed("a")])
    with pytest.raises(UsageError, match="names auc60; the figures are"):
        compared(tmp_path, rows(SPREAD), rows(SPREAD), "auc60=1")
    for text in ("auc30", "auc30=", "=1", "auc30=-1", "auc30=nan", "auc30=1%%"):
        with pytest.raises(UsageError, match="expected FIGURE=NUMBER"):
            parse_tolerances([text])


@pytest.mark.parametrize("one", [failed("a"), row("a", None, abs_rel=None), row("a", math.nan, abs_rel=math.inf)])
def test_a_run_without_any_figure_still_has_a_page(tmp_path: Path, one: dict[str, Any]) -> None:
    runs = read_runs([make_run(tmp_path / "run", [one])])
    (tmp_path / "report").mkdir()
    write_report(make_report(runs, mean_pool, {}, [], tmp_path / "report"), tmp_path / "report", "0.1.0")
    assert "–" in (tmp_path / "report" / "report.md").read_text()


def test_files_that_are_not_of_bench_are_refused(tmp_path: Path) -> None:
    path = make_bench(tmp_path / "bench.json", {"dense": 1.8})
    content = json.loads(path.read_text())
    for rows_, message in (
        ([], "no row with figures"),
        ([each | {"error": "out of memory", "seconds": None} for each in content["rows"]], "no row with figures"),
        ([{"views": 2}], "not a file of lean3r bench"),
    ):
        path.write_text(json.dumps(content | {"rows": rows_}))
        with pytest.raises(InputError, match=message):
            read_benches([path])
