"""gsa where kernels take windows as they lie, as on a GPU: the same as step by step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lean3r.attention.base import Projected, recording
from lean3r.attention.coarse_fine import Gsa
from lean3r.attention.dense import Dense
from lean3r.layers.attention import SelfAttention
from lean3r.layers.rope import norm_rotate_pool, rope_table
from lean3r.testing import assert_rms
from lean3r.types import TokenLayout

HEADS = 2
ONE_PASS = [
    {},
    {"gate": "one", "special": "pooled"},
    {"gate": "none", "kv": "fp8"},
    {"regions": 3, "special": "pooled"},
    {"reference": True, "every": 2, "fill": "repeat_last"},
    {"implementation": "triton", "kv": "fp8"},
    {"implementation": "triton", "regions": 4},
]


@pytest.mark.parametrize("settings", ONE_PASS, ids=str)
@pytest.mark.parametrize("special", [0, 3])
def test_windows_taken_as_they_lie(special: int, settings: dict[str, Any]) -> None:
    """Where a kernel norms, rotates and averages at once, patches come apart from special tokens: the same results."""
    layout = TokenLayout(3, special, 8, 12, window=4)
    torch.manual_seed(0)
    dim = 32
    layer = SelfAttention(HEADS * dim, HEADS).eval()
    gsa = Gsa(HEADS * dim, HEADS, top_k=3, **settings).eval()
    seen: list[Projected] = []
    layer.mechanism = Noted(seen)
    with torch.no_grad():
        for x in layer.parameters():
            x.add_(0.1 * torch.randn_like(x))
        for x in gsa.parameters():
            x.copy_(torch.randn_like(x))
        layer(torch.randn(2, 3 * layout.tokens, HEADS * dim), layout)
        (p,) = seen

        def at_once(q: Tensor, k: Tensor, window: int) -> tuple[tuple[Tensor, Tensor], ...]:
            table = rope_table(layout, dim, q.device, torch.float32)
            sizes = (table, torch.float32, layout.tokens, layout.special, window)
            return norm_rotate_pool(q, layer.q_norm, *sizes), norm_rotate_pool(k, layer.k_norm, *sizes)

        with recording() as records:
            expected = gsa(replace(p, finish_and_pool=None), layout)
            found = gsa(replace(p, finish_and_pool=at_once), layout)
    assert_rms(found, expected, 1e-5)
    assert found.transpose(1, 2).is_contiguous()  # as the next product reads it
    for name, value in records[0].values.items():
        assert value is records[1].values[name] is None or torch.equal(value, records[1].values[name])  # type: ignore[arg-type, call-overload]


class Noted(Dense):
    """Dense attention that keeps what it was given."""

    def __init__(self, seen: list[Projected]):
        super().__init__()
        self.seen = seen

    def forward(self, p: Projected, layout: TokenLayout) -> Tensor:
        self.seen.append(p)
        return super().forward(p, layout)
