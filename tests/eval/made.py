"""Runs and files of `lean3r bench` as they are on disk, with figures made up here."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lean3r.eval.report.compare import Comparison, compare, parse_tolerances
from lean3r.eval.report.runs import read_runs

NAMES = [f"room/{n:02d}" for n in range(12)]
DIRECTIONS = {"auc5": "higher", "auc30": "higher", "auc30_pi3": "higher", "abs_rel": "lower"}
UNITS = {"auc5": "%", "auc30": "%", "auc30_pi3": "%", "abs_rel": "%"}


def mean_pool(_: str, rows: Sequence[Mapping[str, Any]], counts: np.ndarray) -> dict[str, np.ndarray]:
    """The mean of each figure over the items where it is a number, in each resample."""
    found = {}
    for figure in DIRECTIONS:
        has = np.array([row["error"] is None and row["figures"].get(figure) is not None for row in rows])
        values = np.array([row["figures"][figure] if known else 0.0 for row, known in zip(rows, has, strict=True)])
        number = counts @ has
        found[figure] = np.divide(counts @ values, number, out=np.full(len(counts), np.nan), where=number > 0)
    return found


def jpeg(shade: int) -> bytes:
    """A small picture."""
    file = io.BytesIO()
    Image.linear_gradient("L").rotate(shade).resize((160, 60)).convert("RGB").save(file, "JPEG")
    return file.getvalue()


def row(name: str, auc30: float | None, abs_rel: float | None = 10.0, **more: Any) -> dict[str, Any]:
    """A row of scores.json."""
    figures = {"auc5": auc30 and auc30 / 3, "auc30": auc30, "auc30_pi3": auc30, "abs_rel": abs_rel}
    costs = {"seconds": 1.5, "network_seconds": 1.25, "cpu_seconds": 2.0, "peak_memory_mb": 512.0}
    about = {"id": name, "group": "", "curves": {}, "errors": {}, "weight": 1.0, "error": None, "picture": None}
    return {**about, "figures": figures, **costs, **more}


def failed(name: str, why: str = "it is <broken>") -> dict[str, Any]:
    """A row of an item without predictions."""
    return row(name, None, figures={}, error=why, weight=0.0, seconds=None, network_seconds=None)


def make_run(folder: Path, rows: Sequence[dict[str, Any]], benchmark: str = "made-4", **about: Any) -> Path:
    """A scored run."""
    place = folder / benchmark
    place.mkdir(parents=True, exist_ok=True)
    for number, each in enumerate(rows):
        if each["picture"]:
            (place / each["picture"]).parent.mkdir(parents=True, exist_ok=True)
            (place / each["picture"]).write_bytes(jpeg(10 * number))
    run = {
        "format": 1,
        "lean3r": "0.1.0",
        "model": "nano",
        "plan": None,
        "settings": {"resolution": 240, "refine": "off"},
        "hardware": {"cpu": "a processor", "cores": 2},
        "benchmarks": {benchmark: {"items": [{"id": each["id"], "views": []} for each in rows]}},
        "dtype": "float32",
        "weights": "sha256:0",
        **about,
    }
    scores = {
        "format": 1,
        "benchmark": benchmark,
        "title": f"Made up, {benchmark}",
        "paper": "nobody",
        "notes": "",
        "protocol": {"views": 4},
        "directions": DIRECTIONS,
        "units": UNITS,
        "figures": {name: float(v[0]) for name, v in mean_pool("", rows, np.ones((1, len(rows)))).items()},
        "failed": sum(each["error"] is not None for each in rows),
        "rows": rows,
    }
    (folder / "run.json").write_text(json.dumps(run))
    (place / "scores.json").write_text(json.dumps(scores))
    return folder


def make_bench(path: Path, exponents: Mapping[str, float], views: Sequence[int] = (2, 4, 8, 16)) -> Path:
    """A file of `lean3r bench`: for each plan of nano, seconds that grow with this power of the views."""
    rows = []
    for plan, exponent in exponents.items():
        for count in views:
            seconds = 0.01 * count**exponent
            row = {"model": "nano", "plan": plan, "program": "lean3r", "views": count, "height": 240, "width": 240}
            spread = {"median": seconds, "min": seconds, "max": seconds, "runs": [seconds]}
            row |= {"device": "cpu", "dtype": "float32", "asked": {"whole": None, "size": 240}, "error": None}
            rows.append(
                row | {"seconds": spread, "cpu_seconds": spread, "peak_mb": 500.0 + count, "activation_mb": 3.0 * count}
            )
    path.write_text(json.dumps({"format": 1, "rows": rows, "exponents": {}}))
    return path


SPREAD = np.linspace(10, 70, 12)


def rows(values: Any, **more: Any) -> list[dict[str, Any]]:
    """Items with these AUC@30."""
    return [row(name, float(value), **more) for name, value in zip(NAMES, values, strict=False)]


def compared(tmp_path: Path, before: list[dict[str, Any]], after: list[dict[str, Any]], *tolerances: str) -> Comparison:
    """The comparison of two runs with these rows."""
    runs = read_runs([make_run(tmp_path / "before", before), make_run(tmp_path / "after", after)])
    (found,) = compare(runs, runs[0], mean_pool, parse_tolerances(tolerances))
    return found
