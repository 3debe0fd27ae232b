"""Two-axis rotation: what it keeps, where it is the identity, and the kernel against the reference."""

from __future__ import annotations

import pytest
import torch

from lean3r.errors import UsageError
from lean3r.layers.rope import rope_table, rotate
from lean3r.ops.rope2d import rope2d
from lean3r.testing import assert_rms
from lean3r.types import TokenLayout


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_equals_the_table_of_a_layout() -> None:
    layout = TokenLayout(views=2, special=3, rows=3, cols=5)
    row = torch.arange(1, 4).repeat_interleave(5)
    col = torch.arange(1, 6).repeat(3)
    positions = torch.cat([torch.zeros(3, 2, dtype=torch.long), torch.stack([row, col], -1)]).repeat(2, 1)
    x = draw(2, 2, 36, 24)
    assert_rms(rope2d(x, positions), rotate(x, rope_table(layout, 24, x.device, x.dtype)), 1e-6)


def test_products_depend_on_the_difference_of_positions_only() -> None:
    q, k = draw(1, 1, 6, 32).double(), draw(1, 1, 6, 32).flip(2).double()
    near = torch.tensor([[0, 0], [1, 4], [2, 2], [7, 1], [3, 3], [0, 9]])
    scores = [rope2d(q, near + shift) @ rope2d(k, near + shift).mT for shift in (0, 11)]
    assert_rms(scores[1], scores[0], 1e-5)
    assert_rms(rope2d(q, near).norm(dim=-1), q.norm(dim=-1), 1e-6)
    assert torch.equal(rope2d(q, torch.zeros(6, 2)), q)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("tokens", "dim", "each"), [(63, 64, True), (183, 48, False)])
def test_kernel_agrees_with_reference(kernel_device, dtype, tokens: int, dim: int, each: bool) -> None:
    whole = draw(2, tokens, 2, dim).to(kernel_device, dtype)
    generator = torch.Generator().manual_seed(1)
    positions = torch.randint(0, 74, (2, tokens, 2) if each else (tokens, 2), generator=generator).to(kernel_device)
    weight = draw(2, 2, tokens, dim).to(kernel_device)
    results = []
    for implementation, kind in (("reference", torch.float32), ("triton", dtype)):
        leaf = whole.to(kind).requires_grad_()
        out = rope2d(leaf.transpose(1, 2), positions, implementation=implementation)
        results.append((out, *torch.autograd.grad((out.float() * weight).sum(), leaf)))
    for ours, theirs in zip(results[1], results[0], strict=True):
        assert_rms(ours, theirs, 1e-5 if dtype == torch.float32 else 0.005)


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(UsageError, match="multiple of 4, got 30"):
        rope2d(draw(1, 1, 3, 30), torch.zeros(3, 2))
    with pytest.raises(UsageError, match=r"got \[4, 2\]"):
        rope2d(draw(1, 1, 3, 32), torch.zeros(4, 2))
