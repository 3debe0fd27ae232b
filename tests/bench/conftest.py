"""Programs start as copies of a process that has imported torch, which takes longer than what they do here; those of
docs/how-to/benchmark.md start as a user's do."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator

import pytest

from lean3r.bench import worker


@pytest.fixture(scope="session", autouse=True)
def copied_programs() -> Iterator[None]:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        yield
        return
    copies = multiprocessing.get_context("forkserver")
    copies.set_forkserver_preload(["torch", "torch._dynamo", "lean3r.bench.programs"])  # the second counts operations
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "SPAWN", copies)
        yield
