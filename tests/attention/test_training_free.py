"""Training-free mechanisms on cases whose right answer is known by construction, and against slow oracles."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lean3r.attention.base import Mechanism, Projected, recording
from lean3r.attention.block_mask import BlockSparse, choose_blocks
from lean3r.attention.dense import softmax_attention
from lean3r.attention.frame_local import FrameLocal
from lean3r.attention.frame_subset import FrameSubset, choose_views
from lean3r.attention.kv_prune import KeyValuePrune, auto_frames, auto_merge, kept_keys, query_groups
from lean3r.attention.matches import Matches
from lean3r.attention.mean_query import MeanQuery
from lean3r.attention.merge import TokenMerge
from lean3r.attention.merging import merge, places, unmerge
from lean3r.attention.sla import SLA, ThuSLA
from lean3r.errors import UsageError
from lean3r.testing import assert_close, assert_rms
from lean3r.types import TokenLayout


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def attend(mechanism: Mechanism, layout: TokenLayout, q: Tensor, k: Tensor, v: Tensor, x: Tensor | None = None):
    x = q.transpose(1, 2).flatten(2) if x is None else x
    return mechanism(Projected(x, q, k, v, lambda q, k: (q, k)), layout)


def film(pictures: list[int], layout: TokenLayout, dim: int = 8, heads: int = 2) -> list[Tensor]:
    """q, k, v of views that show the named pictures; equal names, equal tokens."""
    each = draw(3, 1, heads, max(pictures) + 1, layout.tokens, dim)
    return list(each[:, :, :, pictures].flatten(3, 4))


# Token merging


def test_merging_gives_every_token_the_mean_of_its_group() -> None:
    layout = TokenLayout(views=3, special=1, rows=4, cols=5)
    q, k, v = draw(3, 2, 2, 63, 8)
    p = Projected(draw(2, 63, 16), q, k, v, lambda q, k: (q, k))
    plan = TokenMerge(0.5, protect=0.1).plan(p, layout)
    place, back = places(plan, 63), unmerge(merge(v, plan), plan, 63)
    protected = set(plan.protected.tolist())
    for scene in range(2):
        for token in set(range(63)) - protected:
            group = [t for t in range(63) if place[scene, t] == place[scene, token]]
            # A protected destination still counts in the mean of its group, though it reads its own row.
            slot = int(place[scene, token]) - plan.unmerged.shape[1]
            if 0 <= slot < len(plan.destinations):
                group = sorted({*group, int(plan.destinations[slot])})
            assert_close(back[scene, :, token], v[scene][:, group].mean(1), 1e-6)
        for token in protected:
            assert torch.equal(back[scene, :, token], v[scene, :, token])


def test_copies_of_a_view_are_merged_into_it() -> None:
    """View 0 is all destinations: every token of an exact copy finds its original, specials are destinations too."""
    layout = TokenLayout(views=4, special=0, rows=4, cols=4)
    q, k, v = film([0, 0, 0, 0], layout)
    x = q.transpose(1, 2).flatten(2)
    plan = TokenMerge(protect=0.0).plan(Projected(x, q, k, v, lambda q, k: (q, k)), layout)
    assert torch.equal(plan.destinations[plan.targets[0]] % 16, plan.sources[0] % 16)
    once = softmax_attention(q[:, :, :16], k[:, :, :16], v[:, :, :16])
    found = attend(TokenMerge(protect=0.0, random=False), layout, q, k, v)
    assert_rms(found, once.repeat(1, 1, 4, 1), 1e-5)


def test_seed_fixes_the_regions() -> None:
    layout = TokenLayout(views=4, special=1, rows=6, cols=6)
    q, k, v = film([0, 1, 2, 3], layout)
    first, again, other = (attend(TokenMerge(seed=s), layout, q, k, v) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("window", [None, 4])
def test_order_of_the_tokens_changes_nothing(window: int | None) -> None:
    """The same picture handed over window by window gives the same result, window by window."""
    flat = TokenLayout(views=3, special=1, rows=5, cols=6)
    layout = TokenLayout(views=3, special=1, rows=5, cols=6, window=window)
    order = layout.order()
    order = torch.arange(30) if order is None else order
    tokens = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + order])
    whole = (torch.arange(3)[:, None] * 31 + tokens).flatten()
    q, k, v = draw(3, 1, 2, 93, 8)
    for mechanism in (
        TokenMerge(0.3),
        KeyValuePrune(2, grid=(2, 2), query_merge=4, own=True, mean="one"),
        FrameSubset(2, stride=2),
    ):
        expected = attend(mechanism, flat, q, k, v)
        found = attend(mechanism, layout, q[:, :, whole], k[:, :, whole], v[:, :, whole])
        assert_rms(found, expected[:, :, whole], 1e-5)


# Fewer keys, merged queries


def test_dropping_all_but_one_copy_of_each_view_is_exact() -> None:
    layout = TokenLayout(views=6, special=0, rows=3, cols=5)
    q, k, v = film([0, 0, 1, 1, 2, 2], layout)
    found = attend(KeyValuePrune(2, query_merge=1), layout, q, k, v)
    assert_rms(found, softmax_attention(q, k, v), 1e-5)


def test_merging_exact_copies_of_queries_is_exact() -> None:
    """Views 1 and 2 offer each other's sources as destinations, because the offset moves with the view."""
    layout = TokenLayout(views=3, special=2, rows=3, cols=6)
    q, k, v = film([0, 1, 1], layout)
    mechanism = KeyValuePrune(1, query_merge=2)
    found = attend(mechanism, layout, q, k, v)
    assert_rms(found, softmax_attention(q, k, v), 1e-5)
    plan = mechanism.plan(q, layout, None)
    assert plan is not None and plan.sources.shape[1] == 18 and plan.destinations.shape[0] == 18


@pytest.mark.parametrize("mean", [None, "one", "count"])
@pytest.mark.parametrize("own", [False, True])
def test_three_sets_of_keys_share_one_softmax(own: bool, mean) -> None:
    layout = TokenLayout(views=3, special=1, rows=5, cols=4)
    q, k, v = draw(3, 1, 2, 63, 8).double()
    kept = kept_keys(layout, 1, (2, 3), True, False).flatten()
    found = attend(KeyValuePrune(1, grid=(2, 3), own=own, mean=mean, query_merge=1), layout, q, k, v)
    dropped = (~kept).nonzero()[:, 0].tolist()
    for token in range(63):
        keys, values, bias = [k[0, :, kept]], [v[0, :, kept]], [torch.zeros(int(kept.sum()))]
        mine = own and token in dropped
        if mine:
            keys, values, bias = [*keys, k[0, :, [token]]], [*values, v[0, :, [token]]], [*bias, torch.zeros(1)]
        if mean:
            others = [t for t in dropped if not (mine and t == token)]
            keys.append(k[0, :, others].mean(1, keepdim=True))
            values.append(v[0, :, others].mean(1, keepdim=True))
            bias.append(torch.tensor([float(len(others))]).log() if mean == "count" else torch.zeros(1))
        scores = torch.einsum("hd,hnd->hn", q[0, :, token], torch.cat(keys, 1)) / 8**0.5 + torch.cat(bias).double()
        expected = torch.einsum("hn,hnd->hd", scores.softmax(-1), torch.cat(values, 1))
        assert_close(found[0, :, token], expected, 1e-6)


@pytest.mark.parametrize("own", [False, True])
def test_a_mean_that_counts_is_exact_where_the_dropped_keys_are_equal(own: bool) -> None:
    layout = TokenLayout(views=3, special=1, rows=5, cols=4)
    q, k, v = draw(3, 1, 2, 63, 8)
    kept = kept_keys(layout, 2, (2, 2), True, False).flatten()
    k[:, :, ~kept] = k[:, :, ~kept][:, :, :1]
    found = attend(KeyValuePrune(2, grid=(2, 2), own=own, mean="count", query_merge=1), layout, q, k, v)
    assert_rms(found, softmax_attention(q, k, v), 1e-5)


def test_which_keys_stay() -> None:
    layout = TokenLayout(views=5, special=2, rows=5, cols=7)
    every = kept_keys(layout, 2, (2, 3), True, False)
    assert every[:, :2].all() and every[0].all()
    assert not every[1, 2:].any() and not every[3, 2:].any()
    assert every[2, 2:].view(5, 7).nonzero().tolist() == [[r, c] for r in (0, 2, 4) for c in (0, 3, 6)]
    assert not kept_keys(layout, 1, (2, 3), False, False)[0].all()
    covered = kept_keys(TokenLayout(views=6, special=0, rows=5, cols=7), 1, (2, 3), False, True)
    assert covered.any(0).all() and (covered.sum(0) == 1).all()  # a moving grid covers each place once in 6 views


def test_schedules_of_spark3r() -> None:
    assert [auto_frames(n) for n in (1, 100, 101, 400, 1000)] == [1, 1, 3, 10, 25]
    assert [auto_merge(n) for n in (100, 101, 300, 301, 500, 501)] == [1, 2, 2, 3, 3, 4]


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_every_region_of_every_view_offers_one_query(factor: int) -> None:
    layout = TokenLayout(views=7, special=1, rows=5, cols=5)
    kind = query_groups(layout, factor, 3).view(7, 26)
    assert (kind[:, 0] == -1).all() and (kind[0] == -1).all()
    down, across = {2: (1, 2), 3: (1, 3), 4: (2, 2)}[factor]
    for view in range(1, 7):
        assert set(kind[view, 1:].tolist()) <= {2 * (view // 3), 2 * (view // 3) + 1}
        offered = (kind[view, 1:] % 2 == 0).view(5, 5).float()[None, None]
        padded = F.pad(offered, (0, -5 % across, 0, -5 % down))
        assert (F.avg_pool2d(padded, (down, across)) * down * across == 1).all()


def test_queries_merge_within_their_group_only() -> None:
    layout = TokenLayout(views=6, special=0, rows=2, cols=4)
    plan = KeyValuePrune(1, query_merge=4, query_group=2).plan(draw(2, 2, 48, 8), layout, None)
    assert plan is not None
    joined = plan.destinations[plan.targets]
    assert torch.equal(joined // 16, plan.sources // 16) and not (plan.sources < 8).any()


# Views that differ


def test_chosen_views_cover_the_scene_within_twice_the_optimum() -> None:
    for seed in range(5):
        points = F.normalize(draw(1, 11, 3, seed=seed), dim=-1)
        chord = torch.cdist(points, points)[0]
        for start in ("central", "first"):
            picks = choose_views(points, 4, start)[0]  # type: ignore[arg-type]
            best = min(chord[list(c)].amin(0).max() for c in combinations(range(11), 4))
            assert chord[picks].amin(0).max() <= 2 * best + 1e-6


def test_the_order_of_views_does_not_matter_from_a_central_start() -> None:
    descriptors = draw(2, 12, 6)
    shuffle = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    picks, moved = choose_views(descriptors, 5), choose_views(descriptors[:, shuffle], 5)
    assert torch.equal(shuffle[moved], picks)
    assert choose_views(descriptors, 30).sort(1).values.tolist() == [list(range(12))] * 2
    assert choose_views(torch.ones(1, 6, 4), 6)[0].unique().numel() == 6  # all alike: each once


def test_a_camera_on_a_loop_is_sampled_all_around() -> None:
    angle = torch.arange(24) / 24 * 2 * torch.pi
    picks = choose_views(torch.stack([angle.cos(), angle.sin()], -1)[None], 4, "first")[0].sort().values
    gaps = torch.diff(torch.cat([picks, picks[:1] + 24]))
    assert gaps.max() <= 6 and 0 in picks


def test_views_of_padding_come_last() -> None:
    usable = torch.ones(1, 6, dtype=torch.bool)
    usable[0, 2] = False
    descriptors = draw(1, 6, 4)
    descriptors[0, 2] = 0
    picks = choose_views(descriptors, 6, usable=usable)[0]
    assert picks[-1] == 2 and picks.unique().numel() == 6


def test_only_chosen_views_are_read() -> None:
    layout = TokenLayout(views=4, special=1, rows=3, cols=3)
    q, k, v = film([0, 1, 2, 3], layout)
    found = attend(FrameSubset(2, keep=(3, 1)), layout, q, k, v)
    near = [t.unflatten(2, (4, 10))[:, :, [1, 3]].flatten(2, 3) for t in (k, v)]
    assert_rms(found, softmax_attention(q, *near), 1e-5)
    with pytest.raises(UsageError, match="view 4, but there are 4 views"):
        attend(FrameSubset(keep=(4,)), layout, q, k, v)


def test_frame_local_passes_nothing_between_views() -> None:
    layout = TokenLayout(views=3, special=1, rows=2, cols=3)
    q, k, v = film([0, 1, 2], layout)
    before = attend(FrameLocal(), layout, q, k, v)
    v[:, :, 7:14] += 1
    after = attend(FrameLocal(), layout, q, k, v)
    assert torch.equal(after[:, :, :7], before[:, :, :7]) and torch.equal(after[:, :, 14:], before[:, :, 14:])
    assert not torch.equal(after[:, :, 7:14], before[:, :, 7:14])


# Pooled scores


def test_planted_blocks_are_found_and_special_tokens_see_everything() -> None:
    layout = TokenLayout(views=2, special=3, rows=8, cols=16)  # two blocks of 64 a view
    q, k, v = draw(3, 1, 1, 262, 8)
    first = torch.cat([torch.arange(3, 131), torch.arange(134, 262)])
    code = 6 * torch.eye(4, 8)
    planted = [2, 3, 0, 1]  # block b of queries looks for block planted[b] of keys
    for block in range(4):
        k[0, 0, first[64 * block : 64 * block + 64]] += code[block]
        q[0, 0, first[64 * block : 64 * block + 64]] += code[planted[block]]
    mechanism = BlockSparse(0.75, query_block=64, key_block=64)
    with recording() as log:
        found = attend(mechanism, layout, q, k, v)
    assert log[0].values["blocks"][0, 0].tolist() == [[b, 4] for b in planted]  # 4 holds the special tokens
    dense = softmax_attention(q, k, v)
    assert_rms(found, dense, 0.05)
    special = [0, 1, 2, 131, 132, 133]
    assert_rms(found[:, :, special], dense[:, :, special], 1e-5)


def test_counts_of_kept_blocks() -> None:
    prob = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.97, 0.01, 0.01, 0.01]])
    assert choose_blocks(prob, None, 0.8, 1).tolist() == [[0, 1, 4], [0, -1, 4]]
    assert choose_blocks(prob, 0.25, 0.8, 0).tolist() == [[0, 1, 2], [0, 1, 2]]
    assert choose_blocks(prob, 1.0, None, 0).tolist() == [[0], [0]]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: BlockSparse(None), "got neither"),
        (lambda: BlockSparse(1.5), r"sparsity is 1\.5; expected a share from 0 to 1"),
        (lambda: TokenMerge(-0.1), "ratio is -0.1; expected a share"),
        (lambda: TokenMerge(seed="x"), "seed is 'x'; expected a whole number, 0 or more"),  # type: ignore[arg-type]
        (lambda: TokenMerge(seed=1.5), r"seed is 1\.5"),  # type: ignore[arg-type]
        (lambda: BlockSparse(0.5, window=0), "window is 0; expected a whole number, 1 or more"),
        (lambda: SLA(16, 2, window=-2), "window is -2"),
        (lambda: ThuSLA(16, 2, window="4"), "window is '4'"),  # type: ignore[arg-type]
        (lambda: KeyValuePrune(0), "frames is 0; expected a whole number, 1 or more"),
        (lambda: KeyValuePrune(grid=3), "grid is 3; expected .rows, columns"),  # type: ignore[arg-type]
        (lambda: KeyValuePrune(mean="all"), "mean is 'all'"),  # type: ignore[arg-type]
        (lambda: FrameSubset(keep=()), "distinct view numbers"),
        (lambda: FrameSubset(start="last"), "start is 'last'"),  # type: ignore[arg-type]
    ],
)
def test_invalid_settings_are_refused(build, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build()


# Patterns for single heads


def test_the_mean_query_chooses_the_keys_with_the_highest_mean_score() -> None:
    layout = TokenLayout(views=3, special=1, rows=4, cols=5)
    q, k, v = draw(3, 2, 2, 63, 8)
    with recording() as log:
        out = attend(MeanQuery(0.2), layout, q, k, v)
    means = (q.double() @ k.double().transpose(2, 3)).mean(2)
    expected = means.topk(13).indices.sort().values  # 0.2 of 63, rounded up
    keys = log[0].values["keys"]
    assert isinstance(keys, Tensor) and torch.equal(keys, expected) and log[0].density == pytest.approx(13 / 63)
    kept = torch.zeros(2, 2, 1, 63, dtype=torch.bool).scatter(3, expected[:, :, None], True)
    assert_rms(out, F.scaled_dot_product_attention(q, k, v, attn_mask=kept.expand(-1, -1, 63, -1)), 1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_matches_are_found_where_they_were_put(shared: bool) -> None:
    """Every view shows the patches of view 0 in another order; a patch reads its own copies and the special tokens."""
    layout, heads = TokenLayout(views=3, special=1, rows=4, cols=5), 2
    orders = [torch.randperm(20, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    unit = F.normalize(draw(heads, 20, 32), dim=-1)
    patches = torch.stack([unit[:, order] for order in orders], 1)  # [H, S, 20, D]
    q = k = torch.cat([torch.zeros(heads, 3, 1, 32), patches], 2).flatten(1, 2)[None]
    with recording() as log:
        attend(Matches(1, shared=shared), layout, q, k, draw(1, heads, 63, 32))
    keys = log[0].values["keys"]
    assert isinstance(keys, Tensor) and keys.shape == (1, heads, 60, 6)
    assert keys[..., :3].unique().tolist() == [0, 21, 42]  # special tokens
    for head in range(heads):
        found = keys[0, head, :, 3:].reshape(3, 20, 3) - torch.tensor([1, 22, 43])
        for view, order in enumerate(orders):
            for other, theirs in enumerate(orders):
                assert torch.equal(theirs[found[view, :, other].long()], order)
    assert log[0].density == pytest.approx((3 * 63 + 60 * 6) / 63**2)


def test_a_shared_choice_is_that_of_the_first_head() -> None:
    layout = TokenLayout(views=2, special=0, rows=4, cols=5)
    q, k, v = draw(3, 1, 2, 40, 8)
    with recording() as log:
        attend(Matches(3, shared=True), layout, q, k, v)
        attend(Matches(3), layout, q, k, v)
    shared, own = (record.values["keys"] for record in log)
    assert isinstance(shared, Tensor) and isinstance(own, Tensor)
    assert torch.equal(shared[:, 0], own[:, 0]) and torch.equal(shared[:, 1], own[:, 0])
    assert not torch.equal(own[:, 0], own[:, 1])
