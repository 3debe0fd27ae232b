"""Measuring one run inside its process: seconds by part, seconds of all cores, peak memory, operations."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from lean3r.compress.linears import labels_of
from lean3r.processes import give_memory_back, memory_status_mb, peak_memory_mb

MB = 1e6
PARTS = {"embedding": "encoder", "encoder": "encoder", "frame": "frame", "global": "global"}
"""Role of a module (compress/targets.py) -> the part that its seconds count for; other roles belong to the heads."""


class Clock:
    """Moments on a device: events of its stream on an NVIDIA GPU, else times, once an Apple one has done its work."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wait(self) -> None:
        """Until all work is done that was given to the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def mark(self) -> Any:
        """Now, in the order of the device's work."""
        if self.device.type != "cuda":
            self.wait()
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def seconds(self, first: Any, last: Any) -> float:
        """Between two marks, after `wait`."""
        return first.elapsed_time(last) / 1e3 if self.device.type == "cuda" else last - first


class Parts:
    """Seconds of a run by part. Time counts for the innermost part that runs, and else for `rest`."""

    def __init__(self, clock: Clock, rest: str) -> None:
        self.clock, self.rest = clock, rest
        self.start()

    def start(self) -> None:
        """A run begins."""
        self._running = [self.rest]
        self._spans: list[tuple[str, Any, Any]] = []
        self._last = self.clock.mark()

    def stop(self) -> dict[str, float]:
        """The run ended: its seconds by part."""
        self._charge()
        self.clock.wait()
        found: dict[str, float] = {}
        for part, first, last in self._spans:
            found[part] = found.get(part, 0.0) + self.clock.seconds(first, last)
        return found

    @contextmanager
    def running(self, part: str) -> Iterator[None]:
        """Inside, time counts for `part`."""
        self._enter(part)
        try:
            yield
        finally:
            self._leave()

    def watch(self, model: nn.Module, parts: dict[str, str]) -> None:
        """From now on, the forward passes of these modules, by path, count for these parts."""
        for path, part in parts.items():
            module = model.get_submodule(path)
            module.register_forward_pre_hook(lambda *_, part=part: self._enter(part))
            module.register_forward_hook(lambda *_: self._leave(), always_call=True)

    def _enter(self, part: str) -> None:
        self._charge()
        self._running.append(part)

    def _leave(self) -> None:
        self._charge()
        self._running.pop()

    def _charge(self) -> None:
        now = self.clock.mark()
        self._spans.append((self._running[-1], self._last, now))
        self._last = now


def parts_of(model: nn.Module) -> dict[str, str]:
    """Path -> part of the modules of one of our networks with which a part begins."""
    return {path: PARTS[place.part] for path, place in labels_of(model).items() if place.part in PARTS}


class Meter:
    """Measures runs on one device."""

    def __init__(self, clock: Clock, parts: Parts) -> None:
        self.clock, self.parts = clock, parts

    def __call__(self, run: Callable[[], object]) -> dict[str, Any]:
        """Wall seconds, seconds of all cores (child processes included), peak and added megabytes, seconds by part."""
        before = self._reset_memory()
        self.clock.wait()
        start, cpu = time.perf_counter(), cpu_s()
        self.parts.start()
        result = run()
        parts = self.parts.stop()
        self.clock.wait()
        seconds, cpu = time.perf_counter() - start, cpu_s() - cpu
        del result
        peak = self._peak_mb()
        return {
            "seconds": seconds,
            "cpu_seconds": cpu,
            "peak_mb": peak,
            "activation_mb": max(0.0, peak - before),
            "parts": parts,
        }

    def _reset_memory(self) -> float:
        """Let the peak start over; megabytes in use now."""
        if self.clock.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.clock.device)
            return torch.cuda.memory_allocated(self.clock.device) / MB
        give_memory_back()
        if sys.platform == "linux":
            with suppress(OSError):  # some containers forbid it: then the peak is that of the process so far
                Path("/proc/self/clear_refs").write_text("5")
        return memory_status_mb("VmRSS") or peak_memory_mb()

    def _peak_mb(self) -> float:
        if self.clock.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.clock.device) / MB
        return peak_memory_mb()


def cpu_s() -> float:
    """Seconds of all cores that this process and its ended children have taken."""
    children = os.times()
    return time.process_time() + children.children_user + children.children_system


class Operations(TorchDispatchMode):
    """Counts floating point operations of products and of attention; those of our own kernels are not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        aten = torch.ops.aten
        # torch's table lacks the two of the CPU. Their first arguments are q, k, v, or a gradient and then these.
        self.more: dict[Any, tuple[int, Callable[..., int]]] = {
            aten._scaled_dot_product_flash_attention_for_cpu: (3, sdpa_flop_count),
            aten._scaled_dot_product_flash_attention_for_cpu_backward: (4, sdpa_backward_flop_count),
        }

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run and count."""
        kwargs, kind = kwargs or {}, func.overloadpacket
        if kind not in flop_registry and kind not in self.more:
            with self:  # in inference mode a linear layer comes as one operator
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if kind in self.more:
            tensors, count = self.more[kind]
            self.total += count(*(a.shape for a in args[:tensors]))
        elif kind in flop_registry:
            self.total += flop_registry[kind](*args, **kwargs, out_val=out)
        return out
