"""Names of benchmarks: a row of BENCHMARKS, or NAME@VIEWS for another number of views."""

from __future__ import annotations

from dataclasses import replace

from lean3r.errors import UsageError
from lean3r.eval.protocols import BENCHMARKS
from lean3r.eval.protocols.base import Benchmark


def resolve(name: str) -> Benchmark:
    """The benchmark NAME or NAME@VIEWS; UsageError for another name, or for fewer than two views."""
    base, at, views = name.partition("@")
    benchmark: Benchmark = BENCHMARKS.get(base)
    if not at:
        return benchmark
    if not views.isdecimal() or int(views) < 2:
        raise UsageError(f"'{name}' asks for {views or 'no'} views; expected {base}@N with a number of at least 2")
    return replace(benchmark, count=int(views))
