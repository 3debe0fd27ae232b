"""Shared by all benchmarks: a description of the hardware, and where the JSON goes."""

from __future__ import annotations

import json
import re
import shlex
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lean3r.attention.base import Mechanism, Projected
from lean3r.bench import machine
from lean3r.layers.attention import SelfAttention
from lean3r.types import TokenLayout

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
INNERMOST = re.compile(r"[\[{][^\[\]{}]*[\]}]")  # lists and objects that hold no others: a line each


def hardware() -> dict[str, object]:
    """Processor, cores, threads, GPU and versions; no name of a machine."""
    return machine.hardware() | {"threads": torch.get_num_threads()}


def write_result(name: str, result: dict, folder: Path = RESULTS) -> Path:
    """Write NAME.json into benchmarks/results, or another folder, with command and date, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    result = rounded(result | {"command": command(), "recorded": date.today().isoformat()})
    path = folder / f"{name}.json"
    path.write_text(
        INNERMOST.sub(lambda row: re.sub(r"\s*\n\s*", "", row[0]), json.dumps(result, indent=1, separators=(",", ":")))
        + "\n"
    )
    return path


def rounded(value: Any) -> Any:
    """A result with numbers of six digits, which is more than any of them means."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def command() -> str:
    """The command that runs now; folders outside the project by their last name."""
    script = Path(sys.argv[0]).resolve()
    script = script.relative_to(ROOT) if script.is_relative_to(ROOT) else Path(script.name)
    return shlex.join(["python", str(script), *(Path(a).name if a.startswith("/") else a for a in sys.argv[1:])])


def capture(layer: SelfAttention, x: Tensor, layout: TokenLayout) -> Projected:
    """The projections that a layer passes to its mechanism for tokens x [B, N, C]."""
    seen: list[Projected] = []

    class Spy(Mechanism):
        def forward(self, p: Projected, layout: TokenLayout) -> Tensor:
            seen.append(p)
            return p.v

    layer.mechanism = Spy()
    with torch.no_grad():
        layer(x, layout)
    return seen[0]
