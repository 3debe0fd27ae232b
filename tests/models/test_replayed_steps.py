"""Steps of a stream as a GPU takes them: kernels find the rows of the cache by numbers on the device, and one graph is
replayed for frame after frame, with the results of plain steps."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from contracts.tiny import tiny
from torch import Tensor

from lean3r.layers import attention, causal, kv_cache
from lean3r.layers.frames import CachePolicy
from lean3r.layers.kv_cache import CacheSizes, FrameCache
from lean3r.models.lingbot import LingbotMap
from lean3r.stream.cache import CacheResult, CacheStream
from lean3r.testing import assert_rms
from models.recorded_graphs import Graph, stand_in

POLICIES = {
    "all keyframes": CachePolicy(anchors=2, window=3, reserve=4),
    "every second": CachePolicy(anchors=2, window=3, interval=2, reserve=40),
    "few pages": CachePolicy(anchors=2, window=5, recent=1, top_pages=1, reserve=40),
    "few pages, every second": CachePolicy(anchors=2, window=3, interval=2, recent=1, top_pages=1, reserve=40),
    "by motion": CachePolicy(anchors=2, window=3, motion_px=0.02, max_gap=5, reserve=40),
}


def by_mask(q: Tensor, k: Tensor, v: Tensor, spans: Tensor) -> Tensor:
    """span_attention without a look at the numbers: what a graph can record on a CPU."""
    row = torch.arange(k.shape[1])
    seen = ((row >= spans[:, :1]) & (row < spans.sum(1, keepdim=True))).any(0)
    k, v = (torch.where(seen[:, None], x, 0) for x in (k, v))  # memory that was never written
    return F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=seen.expand(1, 1, q.shape[1], -1))[0]


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "reads_on_device", lambda x: True)
    monkeypatch.setattr(kv_cache, "span_attention", by_mask)
    for module in (attention, causal):  # the path of a GPU, which makes no tables on the way
        monkeypatch.setattr(module, "in_one_pass", lambda *_: True)


@pytest.mark.parametrize("seed", range(8))
def test_rows_on_the_device_are_those_of_slices(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    choice = random.Random(seed)
    memory, page = choice.choice([(0, 4), (1, 0), (2, 5), (6, 3)])
    anchors, window = choice.randint(1, 3), choice.randint(2, 6)
    sizes = CacheSizes(2, 2, 4, memory, page, anchors, window, choice.randint(1, 9))
    more = {"top_pages": choice.choice([None, 1, 2]), "recent": choice.randint(0, 2)}
    plain, placed = FrameCache(sizes, **more), FrameCache(sizes, **more)
    generator = torch.Generator().manual_seed(seed)
    for step in range(30):
        count = choice.randint(1, anchors) if step == 0 else 1
        keep = step == 0 or choice.random() < 0.6
        found = []
        draws = [torch.randn(3, 1, 2, count * (memory + page), 4, generator=generator) for _ in range(2)]
        for cache, on in ((plain, False), (placed, True)):
            monkeypatch.setattr(kv_cache, "reads_on_device", lambda x, on=on: on)
            cache.begin(count, keep=keep)
            found.append(torch.stack([cache.attend(layer, *draw) for layer, draw in enumerate(draws)]))
            cache.end()
        torch.testing.assert_close(*found)
        if not keep and choice.random() < 0.5:
            plain.accept()
            placed.accept()
    assert plain.state().keys() == placed.state().keys()
    for name, value in plain.state().items():
        assert not isinstance(value, Tensor) or torch.equal(value, placed.state()[name]), name


def frames(count: int = 20) -> Tensor:
    return torch.rand(count, 3, 28, 42, generator=torch.Generator().manual_seed(3))


def streamed(policy: CachePolicy) -> tuple[list[CacheResult], CacheStream]:
    model = tiny("lingbot-map")
    assert isinstance(model, LingbotMap)
    stream = CacheStream(model, policy)
    return [found for picture in frames() for found in stream.push(picture)], stream


def graphs_of(stream: CacheStream) -> list[int]:
    """Replays of each graph of a stream."""
    assert stream._cache is not None
    found = stream._cache.recorder._found.values()  # type: ignore[attr-defined]
    return [captured.graph.replays for _, captured in found if isinstance(captured.graph, Graph)]


def same(found: list[CacheResult], expected: list[CacheResult]) -> None:
    assert len(found) == len(expected) == len(frames())
    for one, other in zip(found, expected, strict=True):
        assert (one.index, one.is_anchor, one.is_keyframe) == (other.index, other.is_anchor, other.is_keyframe)
        for part in ("cam_from_world", "intrinsics", "depth", "conf"):
            assert_rms(getattr(one, part), getattr(other, part), 2e-6)


@pytest.mark.parametrize("name", list(POLICIES))
def test_replayed_steps_are_plain_steps(name: str, request: pytest.FixtureRequest) -> None:
    monkeypatch = pytest.MonkeyPatch()
    expected, _ = streamed(POLICIES[name])
    with monkeypatch.context() as patch:
        stand_in(patch)
        request.getfixturevalue("on_device")
        found, stream = streamed(POLICIES[name])
    same(found, expected)
    assert sum(graphs_of(stream)) >= 4, "the steps were not replayed"


def test_a_question_and_a_saved_state_leave_no_trace(on_device: None, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    policy = replace(POLICIES["every second"], interval=1)
    expected, _ = streamed(policy)
    model = tiny("lingbot-map")
    assert isinstance(model, LingbotMap)
    stream, found = CacheStream(model, policy), []
    for number, picture in enumerate(frames()):
        found += stream.push(picture)
        if number > 2:
            stream.query(frames()[0])
        if number == 9:
            stream = stream.fork()
    same(found, expected)


def test_steps_without_memory_for_a_graph_are_plain(
    on_device: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in(monkeypatch)
    expected, _ = streamed(POLICIES["all keyframes"])

    @contextmanager
    def without_memory(*_: object, **__: object) -> Iterator[None]:
        raise torch.OutOfMemoryError("CUDA out of memory")
        yield

    monkeypatch.setattr(torch.cuda, "graph", without_memory)
    found, _ = streamed(POLICIES["all keyframes"])
    same(found, expected)
    assert [r.message for r in caplog.records if "graph" in r.message] == [
        "lingbot-map runs without CUDA graphs, which cannot be recorded: CUDA out of memory"
    ]
