"""The buffers of a causal cache against lists of frames: which keys are seen, in one slice, whatever is kept."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lean3r.layers.frames import CachePolicy, FrameTable
from lean3r.layers.kv_cache import Buffer, CacheSizes, FrameCache

HEADS, DIM = 2, 4


def frames(count: int, tokens: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v [1, H, count * tokens, D]."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, 1, HEADS, count * tokens, DIM, generator=generator)
    return q, k, v


class Lists:
    """The same as a FrameCache, with every frame by itself: (k, v) of stored ones."""

    def __init__(self, sizes: CacheSizes):
        self.sizes = sizes
        self.stored: list[tuple[Tensor, Tensor]] = []

    def attend(self, q: Tensor, new: list[tuple[Tensor, Tensor]], keep: bool) -> tuple[Tensor, int]:
        """The result, and the number of keys."""
        sizes, known = self.sizes, [*self.stored, *new] if keep else self.stored
        full = [*known[: sizes.anchors], *known[sizes.anchors :][-sizes.window :], *([] if keep else new)]
        some = known[sizes.anchors :][: -sizes.window]
        if keep:
            self.stored = known
        keys, values = (
            torch.cat([*(f[i] for f in full), *(f[i][:, :, : sizes.memory] for f in some)], 2) for i in (0, 1)
        )
        return F.scaled_dot_product_attention(q, keys, values), keys.shape[2]


@pytest.mark.parametrize("seed", range(12))
def test_the_buffer_is_what_lists_of_frames_are(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    choice = random.Random(seed)
    tokens, memory = choice.choice([1, 5, 9]), choice.choice([0, 1, 3])
    memory = 1 if tokens == 1 else memory
    anchors, window = choice.randint(1, 4), choice.randint(1, 4)
    sizes = CacheSizes(1, HEADS, DIM, memory, tokens - memory, anchors, window, choice.randint(1, 6))
    whole = CacheSizes(1, HEADS, DIM, 1, 0, anchors, 10_000, 1)  # as in the camera head: nothing is dropped
    lists = Lists(whole if tokens == 1 else sizes)
    cache = FrameCache(sizes)
    slices: list[Tensor] = []
    read = Buffer.read
    monkeypatch.setattr(Buffer, "read", lambda *how: slices.append(read(*how)) or slices[-1])
    for step in range(40):
        count = choice.randint(1, anchors) if step == 0 else 1
        keep = step == 0 or choice.random() < 0.6
        q, k, v = frames(count, tokens, 1000 * seed + step)
        new = list(zip(k.split(tokens, 2), v.split(tokens, 2), strict=True))
        expected, keys = lists.attend(q, new, keep)
        cache.begin(count, keep=keep)
        torch.testing.assert_close(cache.attend(0, q, k, v), expected)
        buffer, found = cache.buffers[0], slices[-1]
        assert buffer is not None and found.shape[2] == keys and found.stride() == buffer.data.stride()
        assert found.untyped_storage().data_ptr() == buffer.data.untyped_storage().data_ptr()
        cache.end()
        if not keep and choice.random() < 0.5:
            cache.accept()
            lists.stored += new
        assert cache.stored == len(lists.stored)
        assert sum(t.nbytes for t in cache.tensors) == sizes.bytes(cache.stored, torch.float32)


def test_a_table_names_what_the_buffer_holds() -> None:
    """Keys of a keyframe: (anchors + min(window, m - anchors)) pages and memory of all m frames."""
    policy = CachePolicy(anchors=3, window=4, interval=2)
    table = FrameTable.of(policy, 40)
    sizes = CacheSizes(1, HEADS, DIM, 2, 5, policy.anchors, policy.window, 8)
    for t in range(3, 40):
        stored = table.times[t] + policy.is_keyframe(t)
        full, some = int(table.full[t].sum()), int(table.memory[t].sum())
        assert full == 3 + min(policy.window, stored - 3) + (not policy.is_keyframe(t))
        assert 7 * full + 2 * some == 5 * full + 2 * (stored + (not policy.is_keyframe(t)))
    assert sizes.full == 7


def test_misuse_is_an_error() -> None:
    cache = FrameCache(CacheSizes(1, HEADS, DIM, 1, 2, 2, 2, 4))
    for count, keep in ((2, False), (5, True)):
        with pytest.raises(ValueError, match="at once"):
            cache.begin(count, keep=keep)
    with pytest.raises(ValueError, match="stored already"):
        cache.accept()
