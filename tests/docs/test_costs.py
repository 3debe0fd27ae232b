"""What pages say of files of `lean3r bench`: tables, sentences and pictures follow the recorded file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from docs import costs, markdown
from docs.recorded import section
from lean3r.bench.exponents import exponents

HARDWARE = {"cpu": "AMD EPYC", "cores": 2, "python": "3.11.7", "torch": "2.13.0+cpu"}
POWERS = {"dense": 2.0, "gsa:dense_below=0": 1.5, "gsa:dense_below=0,special=pooled,regions=64": 1.25}


def row(model: str, plan: str, views: int, power: float, whole: bool = False) -> dict[str, Any]:
    """A row whose attention takes views^power / 1000 s, and the rest a second."""
    attention = views**power / 1000
    return {
        **{"model": model, "plan": plan, "program": "lean3r", "views": views, "height": 168, "width": 224},
        **{"device": "cpu", "dtype": "float32", "asked": {"size": "own", "whole": whole}, "start_seconds": 2.04},
        **{key: {"median": attention + 1} for key in ("seconds", "cpu_seconds")},
        **{"peak_mb": 700.0 + views, "activation_mb": 3.0 * views, "error": None},
        "parts": {"attention": attention, "linear": 1.0},
    }


@pytest.fixture(autouse=True)
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Results of layers, networks and reconstructions in a folder of their own."""
    shapes = [row(f"layer-{shape}", *each) for shape in ("16x64", "4x32") for each in lines((2, 32, 64, 128, 256))]
    shapes.append(row("layer-4x32", "sla:dense_below=0", 256, 2.0) | {"error": "out of memory", "seconds": None})
    rows = {
        "layer": shapes,
        "network": [row("nano", *each) for each in lines((4, 32))],
        "whole": [row("nano", "dense", views, 1.0, whole=True) for views in (8, 64, 128)],
    }
    for name, found in rows.items():
        text = {"hardware": HARDWARE, "roofline": {}, "recorded": "2026-11-21", "rows": found}
        (tmp_path / f"{name}.json").write_text(json.dumps(text | {"exponents": exponents(found)}))
    (tmp_path / "docs" / "images").mkdir(parents=True)
    for name in ("markdown.RESULTS", "costs.ROOT"):
        monkeypatch.setattr(f"docs.{name}", tmp_path)
    markdown.result.cache_clear()
    yield
    markdown.result.cache_clear()


def lines(views: tuple[int, ...]) -> list[tuple[str, int, float]]:
    return [(plan, count, power) for plan, power in POWERS.items() for count in views]


def test_layers_are_those_of_the_file_without_linear_layers() -> None:
    small, large = costs.cost_tables(costs.layers()).split("\n16 heads of 64, ")
    where = "224 x 168 pixels a view, float32, 2 cores of an AMD EPYC, torch 2.13.0:"
    assert small.startswith(f"4 heads of 32, {where}\n\n| views | 2 | 32 | 64 | 128 | 256 | exponent from 32 on |")
    assert large.startswith(where)
    for text in (small, large):
        assert "| `dense` | 0.004 s | 1.02 s | 4.10 s | 16.4 s | 65.5 s | 2.00 |" in text
        assert "| `gsa` | 1.4 | 5.7 | 8.0 | 11.3 | 16.0 | 1.50 |" in text
        assert "| `gsa, special=pooled, regions=64` | 1.7 | 13.5 |" in text and "sla" not in text


def test_the_readme_follows_the_files() -> None:
    text = costs.speed()
    assert "| one layer of 16 heads of 64, `gsa` | 5.7 | 11.3 | 16.0 |" in text
    assert "| the whole of nano, `gsa` | 1.7 |  |  |" in text  # 2.024 s of 1.181
    assert "docs/images/layer-seconds.svg" in text
    said = " ".join(costs.photos().split())
    assert "8 photos take 1.0 s and 708 MB at the peak, 64 photos 1.1 s and 764 MB, 128 photos" in said
    assert said.endswith("Starting takes 2.0 s.")


def test_pictures_show_the_exponents_of_the_table() -> None:
    seconds, memory = (path.read_text() for path in costs.draw())
    for plan, power in (("dense", "2.00"), ("gsa", "1.50"), ("gsa, special=pooled, regions=64", "1.25")):
        assert f"{plan}: views^{power}" in seconds and f"{plan}: views^1.00" in memory


def test_results_list_a_file_and_its_failures() -> None:
    text = section("layer")
    assert "`python benchmarks/costs.py layer` · AMD EPYC, 2 cores · 2026-11-21" in text
    assert "layer-16x64 dense, 168x224, cpu, float32: seconds (views): 1 (2), 2.02 (32)" in text
    assert "sla:dense_below=0, 168x224, cpu, float32: seconds (views): out of memory (256)" in text
