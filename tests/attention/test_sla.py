"""Sparse-linear attention: what each branch reads, its start, and its memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lean3r.attention import pieces
from lean3r.attention.base import Projected
from lean3r.attention.dense import softmax_attention
from lean3r.attention.sla import SLA, ThuSLA, _sparsity, top_tokens
from lean3r.errors import KernelError, UsageError
from lean3r.testing import assert_rms
from lean3r.types import TokenLayout


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def call(mechanism, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    x = q.transpose(1, 2).flatten(2)
    layout = TokenLayout(views=1, special=0, rows=1, cols=q.shape[2])
    return mechanism(Projected(x, q, k, v, lambda q, k: (q, k), mask), layout)


@pytest.mark.parametrize("keep", [0.0, 0.2, 0.77, 1.0])
def test_token_mode_keeps_the_largest_scores(keep: float) -> None:
    q, k, v = draw(3, 2, 2, 63, 16).double()
    mask = torch.rand(2, 63, generator=torch.Generator().manual_seed(1)) > 0.3
    for keys in (None, mask):
        found = top_tokens(q, k, v, keep, keys)
        for scene in range(2):
            real = torch.arange(63) if keys is None else keys[scene].nonzero()[:, 0]
            count = max(1, int(keep * len(real)))
            scores = q[scene] @ k[scene][:, real].mT / 4
            limit = scores.sort(-1, descending=True).values[..., count - 1 : count]
            shares = scores.masked_fill(scores < limit, -torch.inf).softmax(-1)
            assert ((shares > 0).sum(-1) == count).all()
            assert_rms(found[scene], shares @ v[scene][:, real], 1e-5)


def test_pieces_change_neither_result_nor_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [t.requires_grad_() for t in draw(3, 1, 2, 70, 8)]
    results = []
    for budget in (1 << 24, 1200):
        monkeypatch.setattr(pieces, "CPU_PIECE", budget)
        for mode in ("token", "three-way"):
            out = call(SLA(16, 2, mode=mode, block=8, critical=0.3, init_std=0.0), *inputs)  # type: ignore[arg-type]
            results.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    for whole, cut in zip(results[:2], results[2:], strict=True):
        for expected, found in zip(whole, cut, strict=True):
            assert_rms(found, expected, 1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_special_tokens_apart_attend_to_everything_and_everything_to_them(masked: bool) -> None:
    layout = TokenLayout(views=3, special=2, rows=3, cols=5)
    q, k, v = draw(3, 1, 2, 51, 8)
    mask = torch.ones(1, 51, dtype=torch.bool)
    mask[0, 20:23] = not masked
    special = torch.tensor([0, 1, 17, 18, 34, 35])
    mechanism = SLA(16, 2, keep=0.1, block=4, init_std=0.0, special="dense")
    p = Projected(torch.zeros(1, 51, 16), q, k, v, lambda q, k: (q, k), mask if masked else None)
    found = mechanism(p, layout)
    expected = F.scaled_dot_product_attention(q[:, :, special], k, v, attn_mask=mask[:, None, None])
    assert_rms(found[:, :, special], expected, 1e-5)
    moved = mechanism(replace(p, v=v + 100 * torch.zeros(51).index_fill(0, special, 1.0)[:, None]), layout)
    assert ((moved - found).abs().amin((0, 1, 3))[mask[0]] > 1e-3).all()


def test_every_key_block_is_critical_marginal_or_negligible() -> None:
    """A planted value in one block of keys shows which branch reads it, for one block of queries."""
    q, k = draw(2, 1, 1, 80, 8)
    mechanism = SLA(8, 1, mode="three-way", block=8, critical=0.2, negligible=0.3)
    readers = []
    for block in range(10):
        v = torch.zeros(1, 1, 80, 8)
        v[:, :, 8 * block : 8 * block + 8] = 1.0
        layout = TokenLayout(views=1, special=0, rows=1, cols=80)
        p = Projected(q.transpose(1, 2).flatten(2), q, k, v, lambda q, k: (q, k))
        readers.append([part[0, 0, 0, 0].item() > 0 for part in mechanism.branches(p, layout)])
    near, far = map(sum, zip(*readers, strict=True))
    assert (near, far) == (2, 5) and not any(a and b for a, b in readers)
    means = k.unflatten(2, (10, 8)).mean(3)[0, 0]
    ranked = (q[0, 0, :8].mean(0) @ means.T).argsort(descending=True)
    assert [i for i in range(10) if readers[i][0]] == sorted(ranked[:2].tolist())
    assert [i for i in range(10) if not any(readers[i])] == sorted(ranked[-3:].tolist())


def test_a_partial_last_block_counts_for_the_keys_that_it_holds() -> None:
    """Masked filling: 9 tokens in blocks of 8 give what 9 tokens and 7 masked ones give."""
    q, k, v = draw(3, 1, 1, 16, 8)
    mask = (torch.arange(16) < 9)[None]
    for settings in ({"mode": "block", "keep": 0.5}, {"mode": "three-way", "critical": 0.5}):
        mechanism = SLA(8, 1, block=8, **settings)  # type: ignore[arg-type]
        short = call(mechanism, q[:, :, :9], k[:, :, :9], v[:, :, :9])
        assert_rms(call(mechanism, q, k, v, mask)[:, :, :9], short, 1e-5)


def test_shares_apart_keep_as_many_blocks_as_they_say() -> None:
    for keep in (0.05, 0.1, 0.2, 0.3, 0.7, 0.9, 1.0):
        kept = [int(blocks * (1 - _sparsity(keep))) for blocks in (10, 20, 40, 1000, 100_000)]
        assert kept == [int(blocks * keep + 1e-6) for blocks in (10, 20, 40, 1000, 100_000)]


def test_starts_near_dense_attention_with_the_names_of_released_checkpoints() -> None:
    q, k, v = draw(3, 1, 2, 64, 32)
    torch.manual_seed(0)
    lite, thu = SLA(64, 2, keep=1.0), ThuSLA(64, 2, keep=1.0)
    assert {n: tuple(t.shape) for n, t in lite.state_dict().items()} == {"lam": (), "proj_lin.weight": (32, 32)}
    assert {n: tuple(t.shape) for n, t in thu.state_dict().items()} == {"proj_l.weight": (32, 32), "proj_l.bias": (32,)}
    assert [n for n, p in lite.named_parameters() if p.requires_grad] == ["proj_lin.weight"]
    assert 0.9e-3 < lite.proj_lin.weight.std() < 1.1e-3 and lite.lam == 0.5
    assert_rms(call(lite, q, k, v), softmax_attention(q, k, v), 0.02)
    assert_rms(call(thu, q, k, v), softmax_attention(q, k, v), 1e-5)


def test_one_block_of_many_is_always_read() -> None:
    """thu-ml's release divides 0 by 0 where keep asks for less than a block."""
    q, k, v = draw(3, 1, 1, 100, 8)
    assert call(ThuSLA(8, 1, keep=0.1), q, k, v).isfinite().all()


def test_unsupported_input_is_refused() -> None:
    with pytest.raises(UsageError, match="mode is 'tokens' and filling 'masked'"):
        SLA(8, 1, mode="tokens")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"keep is 2; expected a share from 0 to 1"):
        SLA(8, 1, keep=2)
    with pytest.raises(UsageError, match="special='dense' with mode='token'"):
        SLA(8, 1, mode="token", special="dense")
    with pytest.raises(UsageError, match="'gelu'"):
        ThuSLA(8, 1, feature="gelu")  # type: ignore[arg-type]
    with pytest.raises(KernelError, match="linear_attention"):
        call(SLA(320, 1, implementation="triton"), *draw(3, 1, 1, 8, 320))
