"""Every attention mechanism, with nothing left out, is softmax attention; a new row needs a line in COMPLETE."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lean3r.attention import ATTENTION
from lean3r.attention.base import Mechanism, Projected
from lean3r.testing import assert_rms
from lean3r.types import TokenLayout

HEADS, DIM = 2, 8
LAYOUTS = {
    "one view": TokenLayout(views=1, special=1, rows=3, cols=5),
    "odd sizes": TokenLayout(views=3, special=2, rows=5, cols=3),
    "no special tokens": TokenLayout(views=2, special=0, rows=1, cols=7),
}

COMPLETE = {"dense": [{"implementation": "auto"}, {"implementation": "sdpa"}, {"implementation": "explicit"}]}
"""Row -> arguments with which it keeps every block, so that its exact branch must equal dense attention."""

CASES = [
    pytest.param(name, arguments, layout, id=f"{name}-{'-'.join(map(str, arguments.values()))}-{layout}")
    for name in ATTENTION
    for arguments in COMPLETE.get(name, [None])
    for layout in LAYOUTS
]
cases = pytest.mark.parametrize(("name", "arguments", "layout"), CASES)


def build(name: str, arguments: dict | None) -> Mechanism:
    assert arguments is not None, f"{name}: say in COMPLETE with which arguments it leaves nothing out"
    return ATTENTION.get(name)(**arguments)


def projections(layout: TokenLayout, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(layout.tokens)
    tokens = layout.views * layout.tokens
    q, k, v = torch.randn(3, batch, HEADS, tokens, DIM, generator=generator).unbind(0)
    return q, k, v


def finish(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Stands for norm and rotation: whoever skips it gives other numbers."""
    return 2.0 * q.flip(-1), k.flip(-1) - 0.1


def attend(mechanism: Mechanism, layout: TokenLayout, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return mechanism(Projected(torch.zeros_like(q).transpose(1, 2).flatten(2), q, k, v, finish, mask), layout)


def reference(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(D)) v in double precision, key by key."""
    q, k = finish(q.double(), k.double())
    scores = torch.einsum("bhnd,bhmd->bhnm", q, k) / DIM**0.5
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
    return torch.einsum("bhnm,bhmd->bhnd", scores.softmax(-1), v.double())


def padding(layout: TokenLayout, batch: int = 2) -> Tensor:
    """Another third of the patches masked in every scene; special tokens always count."""
    mask = torch.rand(batch, layout.views, layout.tokens, generator=torch.Generator().manual_seed(1)) > 1 / 3
    mask[:, :, : layout.special] = True
    mask[:, :, layout.special] = True
    return mask.flatten(1)


@cases
@pytest.mark.parametrize("masked", [False, True])
def test_equals_softmax_attention(name: str, arguments: dict | None, layout: str, masked: bool) -> None:
    mechanism, shape = build(name, arguments), LAYOUTS[layout]
    q, k, v = projections(shape)
    mask = padding(shape) if masked else None
    with torch.inference_mode():
        found = attend(mechanism, shape, q, k, v, mask)
    assert found.dtype == v.dtype
    assert_rms(found, reference(q, k, v, mask), 1e-5)


@cases
def test_gradients_equal_those_of_softmax_attention(name: str, arguments: dict | None, layout: str) -> None:
    mechanism, shape = build(name, arguments), LAYOUTS[layout]
    inputs = [t.requires_grad_() for t in projections(shape)]
    mask = padding(shape)
    weight = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(2))
    found = torch.autograd.grad((attend(mechanism, shape, *inputs, mask) * weight).sum(), inputs)
    expected = torch.autograd.grad((reference(*inputs, mask) * weight).sum(), inputs)
    for ours, theirs in zip(found, expected, strict=True):
        assert_rms(ours, theirs, 1e-4)


@cases
def test_masked_keys_are_never_seen(name: str, arguments: dict | None, layout: str) -> None:
    mechanism, shape = build(name, arguments), LAYOUTS[layout]
    q, k, v = projections(shape)
    mask = padding(shape)
    hidden = ~mask[:, None, :, None]
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            q = q.detach().requires_grad_(grad)
            plain = attend(mechanism, shape, q, k, v, mask)
            spoiled = attend(mechanism, shape, q, k.masked_fill(hidden, 30.0), v.masked_fill(hidden, 1e6), mask)
        assert torch.equal(plain, spoiled)


@pytest.mark.parametrize("name", list(ATTENTION))
def test_shows_its_choices(name: str) -> None:
    for arguments in COMPLETE[name]:
        text = repr(build(name, arguments))
        assert all(f"{key}={value!r}" in text for key, value in arguments.items())
