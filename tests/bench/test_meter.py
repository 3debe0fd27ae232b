"""What a run is charged with: time by part, memory, operations; on a GPU by a stand-in for torch.cuda."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lean3r.bench import meter
from lean3r.bench.exponents import slope
from lean3r.bench.machine import Others, peaks
from lean3r.bench.meter import Clock, Meter, Operations, Parts
from lean3r.bench.run import figures
from lean3r.bench.verify import check_equal, check_finite, decibels, sample
from lean3r.errors import LeanError

CPU = torch.device("cpu")


class Counted(Clock):
    """A clock whose every mark is one second later."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self.now = 0.0

    def mark(self) -> float:
        self.now += 1
        return self.now


def test_time_counts_for_the_innermost_part_and_adds_up() -> None:
    inner = nn.Linear(2, 2)
    outer = nn.Sequential(inner, nn.ReLU())
    parts = Parts(Counted(), "rest")
    parts.watch(outer, {"": "outer", "0": "inner"})
    parts.start()
    outer(torch.ones(1, 2))
    with parts.running("export"):
        pass
    # rest | outer | inner | outer | rest | export | rest, a second each
    assert parts.stop() == {"rest": 3.0, "outer": 2.0, "inner": 1.0, "export": 1.0}
    outer[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        outer(torch.ones(1, 2))
    assert parts._running == ["rest"], "a failed pass leaves its parts"


def test_memory_is_that_of_the_run() -> None:
    run = Meter(Clock(CPU), Parts(Clock(CPU), "rest"))
    costs = run(lambda: torch.ones(50_000_000))
    if costs["peak_mb"] > 200:  # the system lets the peak start over
        assert 195 < costs["activation_mb"] < 260
    assert run(lambda: None)["activation_mb"] < 50
    assert costs["seconds"] > 0 and costs["cpu_seconds"] > 0 and costs["parts"]["rest"] <= costs["seconds"]


def test_a_gpu_is_timed_by_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work is given at once and done later: only events know its time, and torch's allocator its memory."""
    calls: list[str] = []
    done = [0.0]  # milliseconds of work in the stream

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: object) -> None:
            self.at = done[0]

        def elapsed_time(self, other: Event) -> float:
            assert calls[-1] == "synchronize"
            return other.at - self.at

    fake = SimpleNamespace(
        Event=Event,
        current_stream=lambda device: None,
        synchronize=lambda device: calls.append("synchronize"),
        reset_peak_memory_stats=lambda device: calls.append("reset"),
        memory_allocated=lambda device: 3_000_000,
        max_memory_allocated=lambda device: 10_000_000,
    )
    monkeypatch.setattr(meter.torch, "cuda", fake)
    clock = Clock(torch.device("cuda"))
    parts = Parts(clock, "heads")

    def run() -> None:
        done[0] += 2000
        with parts.running("global"):
            done[0] += 500

    costs = Meter(clock, parts)(run)
    assert costs["parts"] == {"heads": 2.0, "global": 0.5}
    assert (costs["peak_mb"], costs["activation_mb"]) == (10.0, 7.0)
    assert calls[0] == "reset" and calls[1] == "synchronize"


def test_operations_of_attention_are_counted() -> None:
    q = torch.randn(1, 2, 5, 4)
    with Operations() as counter:
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
        torch.matmul(torch.randn(3, 4), torch.randn(4, 5))
    assert counter.total == 2 * (2 * 2 * 5 * 5 * 4) + 2 * 3 * 4 * 5
    with torch.inference_mode(), Operations() as counter:
        nn.Linear(4, 5)(torch.randn(3, 4))
    assert counter.total == 2 * 3 * 4 * 5


def test_the_machine_has_peaks() -> None:
    found = peaks(CPU, torch.float32)
    assert 1e8 < found["flops_per_s"] < 1e14 and 1e7 < found["bytes_per_s"] < 1e13


def test_what_others_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 8 busy seconds of 4 cores within 4 seconds, 2 were ours."""
    from lean3r.bench import machine

    times = iter(((100.0, 10.0), (108.0, 14.0)))
    now = [0.0, 0.0]

    def busy() -> float:
        now[:] = next(times)
        return now[0]

    monkeypatch.setattr(machine, "busy_s", busy)
    monkeypatch.setattr(machine.time, "perf_counter", lambda: now[1])
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 4)
    others = Others()
    assert others.share is None
    others.start()
    others.stop(own_cpu_s=2.0)
    assert others.share == 6 / 16


def test_the_share_of_the_roofline() -> None:
    run = {"seconds": 2.0, "cpu_seconds": 4.0, "parts": {}, "peak_mb": 1.0, "activation_mb": 0.5}
    peak = {"flops_per_s": 1e9, "bytes_per_s": 1e8}
    row = {"views": 4, "flops": 10**9, "weight_bytes": 0}
    assert figures([run] * 3, row, peak)["roofline_share"] == 0.5
    assert figures([run] * 3, row | {"weight_bytes": 150_000_000}, peak)["roofline_share"] == 0.75
    assert figures([run], row | {"flops": None}, peak)["roofline_share"] is None
    assert figures([run], row, {})["roofline_share"] is None


def test_slopes_are_powers() -> None:
    rows = [{"views": n, "s": 0.3 * n**1.7} for n in (2, 8, 64)]
    assert slope(rows, lambda row: row["s"]) == 1.7
    assert slope(rows[:1], lambda row: row["s"]) is None
    assert slope(rows, lambda row: 0.0) is None


def test_outputs_are_judged() -> None:
    dense = {"depth": torch.rand(1, 40, 3, 3) + 1, "pose": torch.randn(1, 40, 4)}
    kept = sample(dense)
    assert kept["depth"].shape[1] == kept["pose"].shape[1] == 16
    assert decibels(kept, kept) == {"depth": 200.0, "pose": 200.0}
    near = {"depth": kept["depth"] * 1.01, "pose": kept["pose"]}
    assert decibels(near, kept)["depth"] == pytest.approx(40, abs=0.1)
    check_equal(decibels(kept, kept), torch.float32)
    with pytest.raises(LeanError, match="depth: 40"):
        check_equal(decibels(near, kept), torch.float32)
    check_equal(decibels(near, kept), torch.bfloat16)
    with pytest.raises(LeanError, match="'pose' is not finite"):
        check_finite(dense | {"pose": dense["pose"] / 0})
    with pytest.raises(LeanError, match="shape"):
        decibels({"depth": kept["depth"][:, :2]}, kept)
    assert decibels({"depth": torch.ones(2)}, {"depth": torch.zeros(2)}) == {"depth": -200.0}
