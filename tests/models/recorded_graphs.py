"""A stand-in for CUDA graphs on a CPU: records torch's operators, and replays them into the tensors that they gave."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ASKS = ("_local_scalar_dense", "nonzero", "lift_fresh", "_linalg_svd")  # values that a CPU wants, or gives


class Graph:
    """torch.cuda.CUDAGraph."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, tuple, dict, list[Tensor]]] = []
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        for function, args, kwargs, results in self.calls:
            found = [x for x in tree_leaves(function(*args, **kwargs)) if isinstance(x, Tensor)]
            for old, new in zip(results, found, strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class _Capture(TorchDispatchMode):
    active = False

    def __init__(self, graph: Graph):
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ASKS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        results = function(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves(results) if isinstance(x, Tensor)]
        self.graph.calls.append((function, args, kwargs or {}, tensors))
        return results


class _Watch(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def operator_by_operator(function: Callable) -> Callable:
    """A function that runs as the stand-in records it: on some CPUs torch rounds otherwise where nothing watches it."""

    def watched(*args: Any) -> Any:
        with _Watch():
            return function(*args)

    return watched


@contextmanager
def _capture(graph: Graph, **_: object) -> Iterator[None]:
    _Capture.active = True
    try:
        with _Capture(graph):
            yield
    finally:
        _Capture.active = False


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs of tensors on the CPU."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    instead = {"CUDAGraph": Graph, "graph": _capture, "Stream": lambda: stream, "current_stream": lambda: stream}
    instead |= {"stream": lambda _: nullcontext(), "device_of": lambda _: nullcontext()}
    for name, value in instead.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr("lean3r.models.base.is_recorded", lambda images: _Capture.active)
