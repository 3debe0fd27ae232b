"""gsa: windows of any grid, its definition written out, special and padded tokens, and the settings one by one."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lean3r.attention.base import Projected, recording
from lean3r.attention.coarse_fine import Gsa
from lean3r.attention.dense import Dense
from lean3r.errors import KernelError, UsageError
from lean3r.layers.trunk import Trunk, window_of
from lean3r.models.pi3 import Pi3, Pi3Config
from lean3r.models.pi3x import Pi3X, Pi3XConfig
from lean3r.models.speed3r import from_pi3
from lean3r.testing import assert_rms
from lean3r.types import TokenLayout

HEADS, DIM = 2, 16
GRIDS = {"63": (0, 7, 9), "183": (1, 14, 13), "1374": (5, 37, 37), "portrait": (1, 9, 5), "divisible": (2, 8, 12)}
each_grid = pytest.mark.parametrize(("special", "rows", "cols"), GRIDS.values(), ids=GRIDS)


def positions_of(layout: TokenLayout) -> Tensor:
    """Rows and columns [T, 2] from 1, in the layout's order."""
    patches = torch.cartesian_prod(torch.arange(layout.rows), torch.arange(layout.cols)).float() + 1
    order = layout.order()
    return torch.cat([torch.zeros(layout.special, 2), patches if order is None else patches[order]])


def projected(layout: TokenLayout, seed: int = 0, batch: int = 1, mask: Tensor | None = None) -> Projected:
    """Random projections; finish scales, and adds a term of the position that a test can repeat."""
    tokens = layout.views * layout.tokens
    random = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, batch, HEADS, tokens, DIM, generator=random).unbind(0)
    x = torch.randn(batch, tokens, HEADS * DIM, generator=random)
    return Projected(x, q, k, v, finisher(positions_of(layout)), mask, positions_of(layout))


def finisher(own: Tensor):
    def finish(q: Tensor, k: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        at = own if positions is None else positions
        at = at.repeat(q.shape[2] // len(at), 1)
        turn = torch.cat([at, at.flip(-1)], -1).repeat(1, DIM // 4).sin()
        return 2 * q + turn, k - 0.5 * turn

    return finish


def definition(gsa: Gsa, p: Projected, layout: TokenLayout) -> Tensor:
    """README of the golden files, window by window, with what it does not say: edges, padding, special tokens."""
    side, tokens = gsa.window, layout.tokens
    views = p.q.shape[2] // tokens
    order = layout.order()
    place = range(layout.patches) if order is None else order.argsort().tolist()
    windows = []
    for view in range(views):
        for top in range(0, layout.rows, side):
            for left in range(0, layout.cols, side):
                cells = [
                    row * layout.cols + col
                    for row in range(top, min(top + side, layout.rows))
                    for col in range(left, min(left + side, layout.cols))
                ]
                windows.append([view * tokens + layout.special + place[cell] for cell in cells])
    special = [view * tokens + i for view in range(views) for i in range(layout.special)]
    out = torch.zeros_like(p.v)
    finished_q, finished_k = p.finish(p.q, p.k)
    gates = gsa.gates(p.x)
    scale = DIM**-0.5
    for b in range(len(p.x)):
        real = torch.ones(p.q.shape[2], dtype=torch.bool) if p.key_mask is None else p.key_mask[b]
        means = []
        for tensor in (p.q, p.k, p.v):
            rows = [tensor[b][:, [t for t in w if real[t]]] for w in windows]
            means.append(torch.stack([r.mean(1) if r.shape[1] else r.new_zeros(HEADS, DIM) for r in rows], 1)[None])
        assert p.positions is not None
        centre = torch.stack([p.positions.repeat(views, 1)[w].mean(0).trunc() for w in windows])
        qc, kc = p.finish(means[0], means[1], centre)
        alive = [i for i, w in enumerate(windows) if any(real[t] for t in w)]
        everyone = real.nonzero()[:, 0].tolist()
        pooled = gsa.special == "pooled" and layout.special
        for h in range(HEADS):
            for i, members in enumerate(windows):
                scores = torch.stack([qc[0, h, i] @ kc[0, h, j] for j in alive])
                compressed = (scores * scale).softmax(0) @ means[2][0, h, alive]
                best = sorted(range(len(alive)), key=lambda j: -float(scores[j]))[: gsa.top_k]
                keys = [t for j in best for t in windows[alive[j]] if real[t]] + special
                k, v = finished_k[b, h, keys], p.v[b, h, keys]
                if pooled:
                    each = [special[n * layout.special : (n + 1) * layout.special] for n in range(views)]
                    patches = keys[: -len(special)]
                    k, v = (
                        torch.cat([x[b, h, patches], torch.stack([x[b, h, of].mean(0) for of in each])])
                        for x in (finished_k, p.v)
                    )
                for t in members:
                    selected = (k @ finished_q[b, h, t] * scale).softmax(0) @ v
                    both = (0, 1) if gates is None else gates[b, h, t]
                    out[b, h, t] = both[0] * compressed + both[1] * selected
            k, v = finished_k[b, h, everyone], p.v[b, h, everyone]
            if pooled:
                k = torch.cat([finished_k[b, h, special], kc[0, h, alive]])
                v = torch.cat([p.v[b, h, special], means[2][0, h, alive]])
            for t in special:
                out[b, h, t] = (k @ finished_q[b, h, t] * scale).softmax(0) @ v
    return out


def holes(layout: TokenLayout, batch: int) -> Tensor:
    """The last view's lower half is padding, and so are single patches elsewhere."""
    mask = torch.rand(batch, layout.views, layout.tokens, generator=torch.Generator().manual_seed(1)) > 0.1
    mask[:, -1, layout.special + layout.patches // 2 :] = False
    mask[:, :, : layout.special] = True
    return mask.flatten(1)


@each_grid
@pytest.mark.parametrize("side", [1, 3, 4])
def test_windows_partition_the_grid(special: int, rows: int, cols: int, side: int) -> None:
    place = torch.cartesian_prod(torch.arange(rows), torch.arange(cols))
    for order in (None, side, 5):
        layout = TokenLayout(2, special, rows, cols, window=order)
        windows = layout.windows_of(side)
        real = windows.members[windows.members >= 0]
        assert torch.equal(real.sort().values, torch.arange(rows * cols))
        assert torch.equal(windows.members.flatten()[windows.slots], torch.arange(rows * cols))
        assert windows.full == (rows % side == cols % side == 0)
        if order == side:
            assert torch.equal(real, torch.arange(rows * cols)) and windows.adjacent == windows.full
        elif side > 1:
            assert not windows.adjacent
        table = layout.order()
        where = place if table is None else place[table]
        expected = torch.cartesian_prod(torch.arange(-(-rows // side)), torch.arange(-(-cols // side)))
        for members, corner in zip(windows.members, expected, strict=True):
            inside = where[members[members >= 0]]
            assert torch.equal(inside // side, corner.expand_as(inside))
            assert torch.equal(inside, inside[(inside[:, 0] * cols + inside[:, 1]).argsort()])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("special", "rows", "cols"), [(0, 7, 9), (1, 8, 8), (2, 5, 3)])
@pytest.mark.parametrize(
    "settings", [{"gate": "two"}, {"gate": "one"}, {"gate": "none"}, {"special": "pooled"}], ids=str
)
def test_matches_its_definition(special: int, rows: int, cols: int, masked: bool, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    gsa = Gsa(HEADS * DIM, HEADS, window=4, top_k=3, **settings)
    for parameter in gsa.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    for window in (None, 4, 2):
        layout = TokenLayout(2, special, rows, cols, window=window)
        p = projected(layout, batch=2, mask=holes(layout, 2) if masked else None)
        with torch.no_grad():
            found, expected = gsa(p, layout), definition(gsa, p, layout)
        real = torch.ones(2, found.shape[2], dtype=torch.bool) if p.key_mask is None else p.key_mask
        assert_rms(found.transpose(1, 2)[real], expected.transpose(1, 2)[real], 1e-5)
        assert bool(found.isfinite().all())


@each_grid
def test_all_windows_and_no_gates_are_dense_attention(special: int, rows: int, cols: int) -> None:
    layout = TokenLayout(1 if rows > 30 else 3, special, rows, cols)
    for window in (None, 4):
        grid = TokenLayout(layout.views, special, rows, cols, window=window)
        p = projected(grid, mask=holes(grid, 1))
        found = Gsa(HEADS * DIM, HEADS, gate="none", top_k=10_000)(p, grid)
        assert_rms(found, Dense("explicit")(p, grid), 1e-5)


@each_grid
def test_the_trunk_gives_the_same_in_either_order(
    special: int, rows: int, cols: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    trunk = Trunk(("frame", "global", "frame", "global"), HEADS * DIM, HEADS)
    for block in list(trunk.blocks)[1::2]:
        block.attn.mechanism = Gsa(HEADS * DIM, HEADS, top_k=3)  # type: ignore[union-attr]
    valid = torch.ones(1, 2, rows * cols, dtype=torch.bool)
    valid[:, 1, -2 * cols :] = False
    layout = TokenLayout(2, special, rows, cols, valid)
    x = torch.randn(1, 2, layout.tokens, HEADS * DIM)
    orders: list[int | None] = []
    for block in trunk.blocks:
        block.register_forward_hook(lambda _m, inputs, _o: orders.append(inputs[1].window))
    with torch.no_grad():
        sparse, kept = trunk(x, layout, keep=(0, 3))
        monkeypatch.setattr("lean3r.layers.trunk.window_of", lambda *_: None)
        plain, plainly_kept = trunk(x, layout, keep=(0, 3))
    assert orders == [4] * 4 + [None] * 4
    assert torch.equal(sparse, kept[3])
    for ours, theirs in ((sparse, plain), (kept[0], plainly_kept[0])):
        assert_rms(ours, theirs, 1e-5)


def test_only_blocks_that_ask_for_windows_are_reordered() -> None:
    trunk = Trunk(("frame", "global"), HEADS * DIM, HEADS)
    attention = trunk.blocks[1].attn
    attention.mechanism = Gsa(HEADS * DIM, HEADS)  # type: ignore[union-attr]
    assert window_of(trunk.blocks[:1], [17]) is None and window_of(trunk.blocks, [17, 34]) == 4
    attention.short, attention.dense_below = Dense(), 35  # type: ignore[union-attr]
    assert window_of(trunk.blocks, [17, 34]) is None and window_of(trunk.blocks, [17, 51]) == 4


def test_special_tokens_see_all_and_are_seen_by_all() -> None:
    layout = TokenLayout(3, 2, 8, 8, window=4)
    gsa, p = Gsa(HEADS * DIM, HEADS, top_k=1), projected(layout)
    special = torch.arange(3 * layout.tokens) % layout.tokens < 2
    found = gsa(p, layout)
    assert_rms(found[:, :, special], Dense("explicit")(p, layout)[:, :, special], 1e-5)
    changed = Projected(
        p.x, p.q, p.k, p.v.index_fill(2, torch.tensor([layout.tokens]), 9.0), p.finish, None, p.positions
    )
    assert bool((gsa(changed, layout) != found).any(-1).all())


@pytest.mark.parametrize("grid", [(0, 8, 8), (2, 7, 5)])
@pytest.mark.parametrize(
    ("reference", "every", "views"), [(True, None, [0]), (False, 2, [0, 2, 4]), (True, 1, range(5))]
)
def test_views_that_are_always_kept(reference: bool, every: int | None, views: list[int], grid: tuple) -> None:
    layout = TokenLayout(5, *grid, window=4)
    gsa = Gsa(HEADS * DIM, HEADS, top_k=2, reference=reference, every=every)
    p = projected(layout)
    with recording() as log:
        found = gsa(p, layout)
    kept = {4 * view + window for view in views for window in range(4)}
    for chosen in log[0].values["blocks"].reshape(-1, log[0].values["blocks"].shape[-1]).tolist():
        assert kept <= set(chosen) and len(set(chosen)) == min(20, len(kept) + 2)
    no_padding = torch.ones(1, p.q.shape[2], dtype=torch.bool)
    assert_rms(found, gsa(replace(p, key_mask=no_padding), layout), 1e-6)


@pytest.mark.parametrize("padded", [False, True])
def test_many_views_that_are_always_kept_are_not_listed_for_every_window(padded: bool) -> None:
    """4,096 views of 2 x 2 patches: the windows of 1,024 views, listed for each of 4,096, would take 17 MB a head."""

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                self.size = max(self.size, result.untyped_storage().nbytes())
            return result

    layout = TokenLayout(4096, 0, 2, 2, window=2)
    gsa = Gsa(4, 1, window=2, top_k=2, every=4)
    x, q, k, v = torch.randn(4, 1, 4 * 4096, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    mask = (torch.arange(4 * 4096) != 5)[None] if padded else None
    p = Projected(x, q[:, None], k[:, None], v[:, None], lambda q, k, positions=None: (q, k), mask)
    with torch.inference_mode(), Largest() as seen:
        gsa(p, layout)
    assert seen.size <= 9e6


def test_top_k_above_the_number_of_windows() -> None:
    for views, rows in ((1, 3), (1, 8), (3, 4)):
        layout = TokenLayout(views, 0, rows, rows)
        p = projected(layout)
        few, many = (Gsa(HEADS * DIM, HEADS, gate="none", top_k=k) for k in (64, 512))
        assert_rms(few(p, layout), Dense("explicit")(p, layout), 1e-5)
        assert torch.equal(few(p, layout), many(p, layout))


def test_released_rule_repeats_the_last_window() -> None:
    layout = TokenLayout(1, 0, 4, 8, window=4)
    p = projected(layout)
    released = Gsa(HEADS * DIM, HEADS, gate="none", fill="repeat_last", top_k=5)(p, layout)
    q, k = p.finish(p.q, p.k)
    weight = torch.where(torch.arange(32) < 16, 0.0, math.log(4))
    scores = q @ k.mT * DIM**-0.5 + weight
    assert_rms(released, scores.softmax(-1) @ p.v, 1e-5)


def test_top_k_may_change_at_any_time() -> None:
    layout = TokenLayout(4, 0, 8, 8, window=4)
    gsa, p = Gsa(HEADS * DIM, HEADS, top_k=2), projected(layout)
    before = gsa(p, layout)
    gsa.top_k = 4
    assert_rms(gsa(p, layout), Gsa(HEADS * DIM, HEADS, top_k=4)(p, layout), 0)
    assert not torch.equal(gsa(p, layout), before)


def test_gates_start_close_to_the_selected_branch() -> None:
    x = torch.randn(1, 5, HEADS * DIM)
    for gate in ("two", "one"):
        gates = Gsa(HEADS * DIM, HEADS, gate=gate).gates(x)  # type: ignore[arg-type]
        assert gates is not None and gates.shape == (1, HEADS, 5, 2)
        torch.testing.assert_close(gates[0, 0, 0], torch.tensor([0.2689, 0.7311]), atol=1e-4, rtol=0)


def test_nan_in_a_query_affects_its_window_only() -> None:
    layout = TokenLayout(3, 1, 8, 8, window=4)
    p = projected(layout)
    clean = Gsa(HEADS * DIM, HEADS, top_k=2)(p, layout)
    p.q[0, 0, 1 + 16] = torch.nan  # the first patch of window 1 of view 0
    found = Gsa(HEADS * DIM, HEADS, top_k=2)(p, layout)
    spoiled = found.isnan().any(-1).nonzero().tolist()
    assert spoiled == [[0, 0, token] for token in range(17, 33)]
    same = torch.ones(found.shape[:3], dtype=torch.bool)
    same[0, 0, 17:33] = False
    assert_rms(found[same], clean[same], 1e-6)


def test_invalid_settings_are_refused() -> None:
    for wrong in ({"window": 0}, {"top_k": 0}, {"every": 0}, {"gate": "three"}):
        with pytest.raises(UsageError):
            Gsa(HEADS * DIM, HEADS, **wrong)
    layout = TokenLayout(2, 0, 8, 8)
    p = projected(layout)
    half = Projected(p.x.bfloat16(), p.q.bfloat16(), p.k.bfloat16(), p.v.bfloat16(), p.finish, None, p.positions)
    with pytest.raises(KernelError):
        Gsa(HEADS * DIM, HEADS, gate="none", implementation="triton")(half, layout)


def test_a_dense_pi3_becomes_a_sparse_one() -> None:
    small = {"width": 32, "heads": 2, "encoder_depth": 1, "grid": 4, "camera_width": 16, "depth": 4}
    dense = Pi3(Pi3Config(**small))
    model = from_pi3(dense)
    theirs, ours = dense.state_dict(), model.state_dict()
    assert theirs.keys() - ours.keys() == {"register_token"}
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs.keys() & ours.keys())
    assert all(".mechanism.gate." in name for name in ours.keys() - theirs.keys())
    official = model.KEY_MAP.write(ours)
    assert torch.equal(official["global_decoder.1.attn.qkv.weight"], theirs["trunk.blocks.3.attn.qkv.weight"])
    assert official["global_decoder.0.attn.gate.0.bias"].tolist() == [-1, 1, -1, 1]
    with pytest.raises(UsageError, match="expected a Pi3"):
        from_pi3(Pi3X(Pi3XConfig(**small, conv_widths=(32, 16), conv_last=8, metric_width=32, metric_heads=2)))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("special", "rows", "cols"), [(0, 7, 9), (1, 17, 10), (2, 24, 5)])
def test_all_regions_give_the_windows_of_one_level(special: int, rows: int, cols: int, masked: bool) -> None:
    layout = TokenLayout(3, special, rows, cols)
    p = projected(layout, batch=2, mask=holes(layout, 2) if masked else None)
    settings: dict[str, Any] = {"window": 4, "top_k": 5, "gate": "none", "reference": True}
    with recording() as log, torch.no_grad():
        one, two = (Gsa(HEADS * DIM, HEADS, **settings, regions=regions)(p, layout) for regions in (None, 100))
    lists = [record.values["blocks"].sort(-1).values for record in log]  # type: ignore[union-attr]
    assert torch.equal(*lists)
    assert_rms(two, one, 1e-6)


def test_windows_come_from_the_best_regions() -> None:
    """One region a list: its windows, whatever windows elsewhere score; the compressed branch reads regions."""
    torch.manual_seed(0)
    layout = TokenLayout(4, 1, 8, 8)
    p = projected(layout)
    gsa = Gsa(HEADS * DIM, HEADS, window=2, top_k=4, regions=1, gate="two")
    with recording() as log, torch.no_grad():
        gsa(p, layout)
    (entry,) = log
    blocks = entry.values["blocks"]
    assert isinstance(blocks, Tensor)
    view, row, col = blocks // 16, blocks % 16 // 4, blocks % 4
    region = view * 4 + row // 2 * 2 + col // 2
    assert torch.equal(region.amin(-1), region.amax(-1))
    assert torch.equal(blocks.sort(-1).values.diff(dim=-1) > 0, torch.ones(1, HEADS, 64, 3, dtype=torch.bool))
    patches = [x.unflatten(2, (4, 65))[:, :, :, 1:].unflatten(3, (2, 4, 2, 4)) for x in (p.q, p.k)]
    q, k = (x.mean((4, 6)).flatten(2, 4) for x in patches)  # a region: 4 x 4 patches
    assert p.positions is not None
    centre = p.positions[1:].unflatten(0, (2, 4, 2, 4)).mean((1, 3)).flatten(0, 1)
    q, k = p.finish(q, k, (centre - 0.5 + 1e-4).trunc())
    best = (q @ k.mT).argmax(-1)
    mine = torch.arange(64)
    own = mine // 16 * 4 + mine % 16 // 8 * 2 + mine % 4 // 2
    assert torch.equal(region[..., 0], best[:, :, own].to(torch.int32))


def test_regions_train_and_refuse_what_they_cannot_do() -> None:
    layout = TokenLayout(2, 1, 9, 9)
    p = projected(layout)
    q, k, v = (x.requires_grad_() for x in (p.q, p.k, p.v))
    gsa = Gsa(HEADS * DIM, HEADS, window=3, top_k=2, regions=2)
    for gradient in torch.autograd.grad(gsa(p, layout).square().sum(), (q, k, v)):
        assert bool(gradient.isfinite().all()) and bool(gradient.any())
    with pytest.raises(UsageError, match="regions is 2 and fill is 'repeat_last'"):
        Gsa(HEADS * DIM, HEADS, regions=2, fill="repeat_last")
