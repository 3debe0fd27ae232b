"""How a window's attention is shared among views and patches."""

from __future__ import annotations

import pytest
import torch

from lean3r.attention import ATTENTION
from lean3r.attention.base import Projected
from lean3r.attention.probe import Call, weights
from lean3r.attention.shares import Window, shares
from lean3r.testing import assert_rms
from lean3r.types import TokenLayout

HEADS, DIM = 2, 8


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_shares_are_softmax_weights_in_any_order_of_patches(window: int | None, masked: bool) -> None:
    layout = TokenLayout(views=3, special=2, rows=5, cols=6, window=window)
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, HEADS, 96, DIM, generator=generator).unbind(0)
    mask = torch.rand(1, 96, generator=generator) > 0.3 if masked else None
    if mask is not None:
        mask.unflatten(1, (3, 32))[:, :, :2] = True
        mask[:, 40:42] = True
    gsa = ATTENTION.get("gsa")(dim=HEADS * DIM, heads=HEADS, top_k=99, gate="none")
    queries = torch.tensor([40, 41])
    scores = (q + 0.1) @ k.mT / DIM**0.5
    scores = scores if mask is None else scores.masked_fill(~mask[:, None, None], -torch.inf)
    expected = scores.softmax(-1)[:, :, queries].mean(2)
    p = Projected(torch.zeros(1, 96, HEADS * DIM), q, k, v, lambda q, k, positions=None: (q + 0.1, k), mask)
    for mechanism in (ATTENTION.get("dense")(), gsa):
        assert_rms(weights(Call(mechanism, p, layout), queries), expected, 1e-5)
    found = shares(Call(gsa, p, layout), Window(0, 0, 5, 6), 1)
    every = scores.softmax(-1)[0, :, 34:64]
    every = every if mask is None else every[:, mask[0, 34:64]]
    order = layout.order()
    patches = every.mean((0, 1)).unflatten(0, (3, 32))[:, 2:]
    row_major = patches if order is None else patches[:, order.argsort()]
    assert_rms(torch.from_numpy(found.heat).flatten(1), row_major, 1e-5)
    assert sum(found.by_view) + found.special == pytest.approx(1)
