"""Kernels compile for each card without one, and fit its registers and shared memory (benchmarks/gpu/compile.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed: kernels cannot be compiled")

OPERATORS = ("block_select", "block_sparse", "block_sparse_fp8", "linear_attention", "norm_rotate", "quantize_rows")
OPERATORS += ("join_windows", "rank_listed", "residual", "rope2d", "span_attention")
SPILLED = 512  # bytes a thread, in half precision at the shapes of backbones


def compiled(root: Path, out: Path, *flags: str) -> list[dict]:
    """Rows of compiled.json; in a process of its own, since this one may have loaded Triton's interpreter."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(root / "benchmarks" / "gpu" / "compile.py"), "--no-loops", "--out", str(out), *flags]
    done = subprocess.run(command, env=env | {"PYTHONPATH": str(root)}, capture_output=True, text=True)
    assert (out / "compiled.json").exists(), done.stderr[-3000:]
    return json.loads((out / "compiled.json").read_text())["variants"]


def check(rows: list[dict]) -> None:
    """Within the limits of the card: no launch would be refused, nothing waits for spilled registers."""
    limits = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10}
    assert rows
    assert [row for row in rows if row["shared"] > limits[row["card"]] or row["registers"] > 255] == []
    assert [row for row in rows if row["type"] != "float32" and row["spills"] > SPILLED] == []


def test_usual_shapes_fit_the_smallest_card(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    """All operators in one process, which imports torch and triton once."""
    operators = OPERATORS[3:]
    rows = compiled(pytestconfig.rootpath, tmp_path, "--cards", "89", "--types", "bfloat16", "--operators", *operators)
    assert {row["operator"] for row in rows} == set(operators)
    check(rows)


@pytest.mark.aot
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("card", ["80", "89", "90", "100"])
def test_every_shape_fits_every_card(card: str, operator: str, pytestconfig: pytest.Config, tmp_path: Path) -> None:
    flags = ("--cards", card, "--operators", operator, "--shapes", "all")
    check(compiled(pytestconfig.rootpath, tmp_path, *flags))
