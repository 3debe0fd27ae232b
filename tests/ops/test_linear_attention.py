"""Linear attention: its laws, masks, types, and the kernel against the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lean3r.errors import KernelError, UsageError
from lean3r.ops.linear_attention import block_states, linear_attention, states_attention
from lean3r.testing import assert_rms

FEATURES = ("elu", "relu", "softmax")
KERNEL_CASES = [
    pytest.param(*case, id="-".join(map(str, case)))
    for case in [
        ("elu", 63, 64, torch.float32, True),
        ("relu", 130, 32, torch.float32, False),
        ("softmax", 63, 48, torch.float32, True),
        ("softmax", 183, 128, torch.float16, False),
        ("elu", 183, 32, torch.float16, True),
    ]
]


def draw(tokens: int, dim: int, batch: int = 2, heads: int = 2, seed: int = 0) -> list[Tensor]:
    return list(torch.randn(3, batch, heads, tokens, dim, generator=torch.Generator().manual_seed(seed)))


def by_hand(q: Tensor, k: Tensor, v: Tensor, feature: str, eps: float, mask: Tensor | None) -> Tensor:
    """The full table of weights, in double precision."""
    phi = {"elu": lambda x: torch.where(x > 0, x + 1, x.exp()), "relu": torch.relu, "softmax": lambda x: x.softmax(-1)}
    weight = phi[feature](q.double()) @ phi[feature](k.double()).transpose(-1, -2)
    if mask is not None:
        weight = weight * mask[:, None, None]
    return weight @ v.double() / (weight.sum(-1, keepdim=True) + eps)


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("tokens", [1, 63, 183])
def test_equals_the_full_table(feature, tokens: int) -> None:
    q, k, v = draw(tokens, 32)
    mask = torch.rand(2, tokens, generator=torch.Generator().manual_seed(1)) > 0.3
    assert_rms(linear_attention(q, k, v, feature=feature, eps=1e-5), by_hand(q, k, v, feature, 1e-5, None), 1e-5)
    found = linear_attention(q, k, v, feature=feature, eps=1e-5, key_mask=mask)
    assert_rms(found, by_hand(q, k, v, feature, 1e-5, mask), 1e-5)


def test_masked_keys_have_no_influence_even_when_they_are_nan() -> None:
    q, k, v = draw(40, 32)
    mask = torch.arange(40).expand(2, -1) < 25
    spoiled = [x.masked_fill(~mask[:, None, :, None], torch.nan).requires_grad_() for x in (k, v)]
    out = linear_attention(q, *spoiled, feature="elu", eps=1e-6, key_mask=mask)
    assert torch.equal(out, linear_attention(q, k, v, feature="elu", eps=1e-6, key_mask=mask))
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), spoiled))
    nothing = linear_attention(q, k, v, feature="elu", eps=1e-6, key_mask=torch.zeros_like(mask))
    assert torch.equal(nothing, torch.zeros_like(nothing))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow_over_many_tokens(dtype: torch.dtype) -> None:
    q, k, v = draw(70_000, 32, 1, 1)
    found = linear_attention(*(x.to(dtype) * 3 for x in (q, k, v)), feature="elu", eps=1e-6)
    assert found.dtype == dtype
    assert_rms(found, linear_attention(q * 3, k * 3, v * 3, feature="elu", eps=1e-6), 0.01)


def test_states_of_all_blocks_give_the_whole_sum() -> None:
    q, k, v = draw(48, 16)
    mask = torch.arange(48).expand(2, -1) < 41
    states = block_states(k, v, 8, "elu", mask)
    every = torch.ones(2, 2, 6, 6, dtype=torch.bool)
    found = states_attention(q.unflatten(2, (6, 8)), states, every, "elu", 1e-6).flatten(2, 3)
    assert_rms(found, linear_attention(q, k, v, feature="elu", eps=1e-6, key_mask=mask), 1e-5)
    diagonal = torch.eye(6, dtype=torch.bool).expand(2, 2, 6, 6)
    found = states_attention(q.unflatten(2, (6, 8)), states, diagonal, "elu", 1e-6)
    alone = linear_attention(q[:, :, :8], k[:, :, :8], v[:, :, :8], feature="elu", eps=1e-6)
    assert_rms(found[:, :, 0], alone, 1e-5)


@pytest.mark.parametrize(("feature", "tokens", "dim", "dtype", "masked"), KERNEL_CASES)
def test_kernel_agrees_with_reference(kernel_device, feature, tokens: int, dim: int, dtype, masked: bool) -> None:
    whole = torch.randn(1, tokens, 3, 2, dim, generator=torch.Generator().manual_seed(2)).to(kernel_device)
    weight = torch.randn(1, 2, tokens, dim, generator=torch.Generator().manual_seed(3)).to(kernel_device)
    mask = None
    if masked:
        mask = (torch.arange(tokens) % 5 != 2)[None].to(kernel_device)
    results = []
    for implementation, kind in (("reference", torch.float32), ("triton", dtype)):
        leaf = whole.to(dtype).to(kind).requires_grad_()
        q, k, v = leaf.permute(2, 0, 3, 1, 4)  # strided, as a fused projection gives them
        if masked and implementation == "triton":
            hidden = ~mask[:, None, :, None]
            k, v = k.masked_fill(hidden, torch.nan), v.masked_fill(hidden, torch.nan)
        out = linear_attention(q, k, v, feature=feature, eps=1e-5, key_mask=mask, implementation=implementation)
        (gradient,) = torch.autograd.grad((out.float() * weight).sum(), leaf)
        results.append((out, gradient))
    bound = 1e-5 if dtype == torch.float32 else 0.005
    for ours, theirs in zip(results[1], results[0], strict=True):
        assert_rms(ours, theirs, bound)


def test_kernel_reads_keys_of_another_length(kernel_device) -> None:
    q, k, v = (x.to(kernel_device) for x in draw(70, 32))
    for length in (1, 65):
        mine = linear_attention(q, k[:, :, :length], v[:, :, :length], feature="elu", eps=1e-6, implementation="triton")
        assert_rms(mine, linear_attention(q, k[:, :, :length], v[:, :, :length], feature="elu", eps=1e-6), 1e-5)


@pytest.mark.parametrize(("batch", "queries", "keys"), [(2, 4, 0), (2, 0, 4), (0, 4, 4)])
@pytest.mark.parametrize("how", ["reference", "triton"])
def test_nothing_to_attend_gives_zeros(kernel_device, how, batch: int, queries: int, keys: int) -> None:
    q, k = (torch.ones(batch, 2, n, 16, device=kernel_device, requires_grad=True) for n in (queries, keys))
    out = linear_attention(q, k, k, feature="elu", eps=1e-6, implementation=how)
    assert torch.equal(out, torch.zeros_like(q))
    assert all(torch.equal(slope, torch.zeros_like(slope)) for slope in torch.autograd.grad(out.sum(), (q, k)))


def test_results_have_the_type_of_the_values(kernel_device) -> None:
    q, k, v = (x.to(kernel_device) for x in draw(20, 32))
    for mine, wide in ((torch.float16, torch.float32), (torch.float32, torch.float16)):
        inputs = [x.to(kind).requires_grad_() for x, kind in ((q, mine), (k, mine), (v, wide))]
        results = []
        for how in ("reference", "triton"):
            out = linear_attention(*inputs, feature="elu", eps=1e-6, implementation=how)  # type: ignore[misc]
            results.append((out, *torch.autograd.grad(out.float().square().sum(), inputs)))
        for theirs, ours, kind in zip(*results, (wide, mine, mine, wide), strict=True):
            assert theirs.dtype == ours.dtype == kind
            assert_rms(ours.float(), theirs.float(), 0.005)


def test_unsupported_input_is_refused(kernel_device) -> None:
    q, k, v = draw(8, 160)
    with pytest.raises(KernelError, match="head_dim 160"):
        linear_attention(q, k, v, feature="elu", eps=1e-6, implementation="triton")
    assert linear_attention(q, k, v, feature="elu", eps=1e-6).shape == q.shape
    with pytest.raises(UsageError, match="'gelu'"):
        linear_attention(q, k, v, feature="gelu", eps=1e-6)  # type: ignore[arg-type]


def test_nan_in_a_query_stays_in_its_row() -> None:
    q, k, v = draw(9, 32)
    q[0, 0, 4] = torch.nan
    bad = linear_attention(q, k, v, feature="elu", eps=1e-6).isnan().any(-1)
    assert bad[0, 0, 4] and bad.sum() == 1
