"""Stages of a run: their seconds add up, whatever way they end."""

from __future__ import annotations

import pytest

from lean3r.pipeline import observer as module
from lean3r.pipeline.observer import Observer


class Told(Observer):
    """Writes down what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[object, ...]] = []

    def advanced(self, name: str, done: int, total: int) -> None:
        self.calls.append((name, done, total))

    def finished(self, name: str) -> None:
        self.calls.append((name, "finished"))


def test_stages_are_timed_and_reported_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.5, 20.0, 21.0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    told = Told()
    with told.stage("reading") as progress:
        progress(1, 2)
    with pytest.raises(ValueError, match="broken"), told.stage("reading"):
        raise ValueError("broken")
    assert told.seconds == {"reading": 3.5}, "a stage that comes again, or that fails, counts"
    assert told.calls == [
        ("reading", 0, 0), ("reading", 1, 2), ("reading", "finished"), ("reading", 0, 0), ("reading", "finished"),
    ]  # fmt: skip
