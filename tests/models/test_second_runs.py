"""What a second run of a network brings to its device: nothing, or a GPU would be waited for, and a CUDA graph could
not be recorded. The device is torch's "meta", which knows shapes only."""

from __future__ import annotations

import copy
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from contracts.tiny import tiny
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lean3r
from lean3r.layers import attention, causal, kv_cache, rope
from lean3r.layers.frames import CachePolicy
from lean3r.models import base, lingbot
from lean3r.models.lingbot import LingbotMap
from lean3r.recorded import Recorder
from lean3r.types import Views

PACKAGE = str(Path(lean3r.__file__).parent)


class Crossings(TorchDispatchMode):
    """Notes where in the package tensors go from one device to another, or are made of numbers of the processor."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        devices = {x.device.type for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor) and x.ndim}
        if len(devices) > 1:
            stack = [f for f in traceback.extract_stack() if f.filename.startswith(PACKAGE)]
            self.places.append(f"{function.overloadpacket.__name__} in {stack[-1].filename}, line {stack[-1].lineno}")
        return result

    def __enter__(self) -> Self:
        self.before = torch.tensor, Tensor.new_tensor  # which on "meta" look as if they brought nothing
        torch.tensor = Tensor.new_tensor = self._refuse  # type: ignore[assignment]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch.tensor, Tensor.new_tensor = self.before  # type: ignore[method-assign]
        super().__exit__(*error)

    @staticmethod
    def _refuse(*arguments: object, **named: object) -> Tensor:
        raise AssertionError(f"a tensor of numbers: {arguments}")


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paths that tensors on a GPU take, as far as shapes alone can go."""
    for module in (attention, causal):
        monkeypatch.setattr(module, "in_one_pass", lambda *_: True)
    monkeypatch.setattr(rope, "norm_rotate", lambda x, *_, dtype, **__: (torch.empty_like(x, dtype=dtype), None))
    monkeypatch.setattr(kv_cache, "reads_on_device", lambda x: True)
    monkeypatch.setattr(kv_cache, "span_attention", lambda q, k, v, spans: torch.empty_like(q))
    monkeypatch.setattr(base, "is_recorded", lambda images: True)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


@pytest.mark.parametrize("name", ["vggt", "pi3", "pi3x", "da3-large", "da3mono-large"])
def test_encode_brings_nothing(name: str) -> None:
    model = copy.deepcopy(tiny(name)).to("meta")
    views = Views(torch.empty(1, 3, 3, 2 * model.patch, 3 * model.patch, device="meta"))
    with torch.no_grad():
        model.encode(views)
        with Crossings() as seen:
            model.encode(views)
    assert seen.places == []


@pytest.mark.parametrize("policy", [CachePolicy(anchors=1, window=2), CachePolicy(anchors=1, window=4, top_pages=1)])
def test_a_step_of_a_stream_brings_nothing_but_its_numbers(
    policy: CachePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = copy.deepcopy(tiny("lingbot-map")).to("meta")
    assert isinstance(model, LingbotMap)
    monkeypatch.setattr(lingbot, "together", lambda first, second, like: (first(), second()))
    monkeypatch.setattr(Recorder, "__call__", lambda self, key, run, *inputs, name: run(*inputs))
    views = Views(torch.empty(1, 1, 3, 2 * model.patch, 3 * model.patch, device="meta"))
    cache, places = model.new_cache(policy, *views.images.shape[-2:]), []
    advance = model._advance

    def watched(*arguments):
        with Crossings() as seen:
            found = advance(*arguments)
        places.append(seen.places)
        return found

    monkeypatch.setattr(model, "_advance", watched)
    with torch.no_grad():
        for number in range(15):
            model.step(views, cache, keep=number % 3 != 2)
    assert places[0] and places[-3:] == [[], [], []]
