"""Choices and means of training-free mechanisms in half precision: those of float32, whatever the number of tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lean3r.attention import coarse_fine, regions
from lean3r.attention.base import Projected
from lean3r.attention.coarse_fine import Gsa
from lean3r.attention.frame_subset import choose_views
from lean3r.attention.kv_prune import KeyValuePrune
from lean3r.attention.matches import best_matches
from lean3r.attention.merging import MergePlan, best_match, merge
from lean3r.attention.sla import top_tokens
from lean3r.layers.attention import SelfAttention
from lean3r.ops.block_select import block_select
from lean3r.testing import assert_rms
from lean3r.types import TokenLayout

HALF = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_similar_views_are_told_apart_under_autocast() -> None:
    time = torch.linspace(0, 9, 60)[:, None]
    drift = torch.cat([(rate * time).sin() for rate in (0.3, 0.5, 0.7)], 1) @ draw(3, 64)
    descriptors = (draw(1, 64) + 0.05 * drift)[None]
    for start in ("central", "first"):
        exact = choose_views(descriptors, 10, start)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(choose_views(descriptors, 10, start), exact)


def test_alike_tokens_find_their_nearest_under_autocast() -> None:
    tokens = draw(1, 1, 64) + 0.05 * torch.randn(1, 400, 64, generator=torch.Generator().manual_seed(1))
    index = torch.arange(400)
    sources, to = index[index % 4 > 0], index[::4]
    _, exact = best_match(tokens, sources, to)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(best_match(tokens, sources, to)[1], exact)
    rounded = tokens.bfloat16()
    assert torch.equal(best_match(rounded, sources, to)[1], best_match(rounded.float(), sources, to)[1])


def test_alike_patches_find_their_best_matches_under_autocast() -> None:
    layout = TokenLayout(3, 1, 10, 10)
    q, k = (
        draw(1, 2, 1, 64) + 0.05 * torch.randn(1, 2, 303, 64, generator=torch.Generator().manual_seed(i))
        for i in (1, 2)
    )
    exact = best_matches(q, k, layout, 2, None)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(best_matches(q, k, layout, 2, None), exact)
    q, k = q.bfloat16(), k.bfloat16()
    assert torch.equal(best_matches(q, k, layout, 2, None), best_matches(q.float(), k.float(), layout, 2, None))


def test_alike_keys_are_kept_in_the_number_asked_for_under_autocast() -> None:
    q, k, v = draw(3, 1, 1, 500, 64)
    q, k = (draw(64) + 0.05 * x for x in (q, k))
    exact = top_tokens(q, k, v, 0.05)
    with torch.autocast("cpu", torch.bfloat16):
        assert_rms(top_tokens(q, k, v, 0.05).float(), exact, 0.01)
    q, k, v = (x.bfloat16() for x in (q, k, v))
    assert_rms(top_tokens(q, k, v, 0.05).float(), top_tokens(q.float(), k.float(), v.float(), 0.05), 0.01)


@HALF
def test_the_mean_of_many_merged_tokens_does_not_drift(dtype: torch.dtype) -> None:
    count = 70_000
    none = torch.arange(0)
    to, targets = torch.tensor([0]), torch.zeros(1, count, dtype=torch.int64)
    plan = MergePlan(to, torch.arange(1, count + 1)[None], targets, none, none)
    merged = merge(torch.full((1, 2, count + 1, 4), 1.5, dtype=dtype), plan)
    assert merged.dtype == dtype
    assert merged.unique().tolist() == [1.5]


@HALF
def test_the_mean_of_dropped_keys_does_not_overflow(dtype: torch.dtype) -> None:
    layout = TokenLayout(4, 0, 16, 16)
    q, k, v = draw(3, 1, 2, 1024, 8)
    parts = [x.to(dtype) for x in (q, k, v + 100)]
    mechanism = KeyValuePrune(1, grid=(4, 4), mean="count", own=True, query_merge=1)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return mechanism(Projected(q.transpose(1, 2).flatten(2), q, k, v, lambda q, k: (q, k)), layout)

    assert_rms(attend(*parts).float(), attend(*(x.float() for x in parts)), 0.01)


def test_large_scores_beside_the_mean_of_dropped_keys_are_not_rounded() -> None:
    layout = TokenLayout(3, 1, 10, 10)
    q, k, v = draw(3, 1, 2, 303, 64).bfloat16()
    q, k = (3 * (draw(64) + 0.3 * x).bfloat16() for x in (q, k))
    mechanism = KeyValuePrune(1, grid=(2, 2), mean="count", own=True, query_merge=1)

    def attend(*parts: Tensor) -> Tensor:
        return mechanism(Projected(parts[0].transpose(1, 2).flatten(2), *parts, lambda q, k: (q, k)), layout)

    exact = attend(q.float(), k.float(), v.float())
    assert_rms(attend(q, k, v).float(), exact, 0.01)
    with torch.autocast("cpu", torch.bfloat16):
        assert_rms(attend(q, k, v).float(), exact, 0.01)


class SumsInFloat32(TorchFunctionMode):
    """What autocast does on a GPU, and not on a CPU: a sum of half precision is float32 unless its type is named."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        named = kwargs or {}
        if function is Tensor.sum and args[0].dtype in (torch.float16, torch.bfloat16):
            named = {"dtype": torch.float32} | named
        return function(*args, **named)


@HALF
def test_windows_cut_at_the_edge_are_chosen_in_the_type_of_the_tokens(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.dtype] = []

    def spy(*args, **named):
        seen.extend(x.dtype for x in args[:3])
        return block_select(*args, **named)

    monkeypatch.setattr(regions, "block_select", spy)
    monkeypatch.setattr(coarse_fine, "block_select", spy)
    layout = TokenLayout(2, 1, 6, 10)  # neither windows of 4 nor regions of 2 fit
    torch.manual_seed(0)
    layer = SelfAttention(64, 2).to(dtype)
    for how in (None, 2):
        layer.mechanism = Gsa(64, 2, top_k=2, regions=how).to(dtype)
        with torch.no_grad(), SumsInFloat32():
            layer(draw(1, 2 * layout.tokens, 64).to(dtype), layout)
    assert seen == [dtype] * 6
