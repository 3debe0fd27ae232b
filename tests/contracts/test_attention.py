"""What every attention mechanism keeps to, with the settings that it declares itself: a new row needs no line here."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from lean3r.attention import ATTENTION
from lean3r.attention.base import Mechanism, Projected, recording
from lean3r.compress.plan import Step
from lean3r.errors import UsageError
from lean3r.testing import assert_rms, rms_ratio
from lean3r.types import TokenLayout

HEADS, DIM = 2, 8
LAYOUTS = {
    "one view": TokenLayout(views=1, special=1, rows=3, cols=5),
    "odd sizes": TokenLayout(views=3, special=2, rows=5, cols=3),
    "no special tokens": TokenLayout(views=2, special=0, rows=1, cols=7),
    "by windows": TokenLayout(views=3, special=1, rows=6, cols=5, window=4),
}
LENGTHS = {  # tokens a view
    63: TokenLayout(views=2, special=0, rows=7, cols=9),
    183: TokenLayout(views=3, special=3, rows=12, cols=15),
    1374: TokenLayout(views=2, special=5, rows=37, cols=37),
}

COMPLETE = {name: list(ATTENTION.get(name).COMPLETE) for name in ATTENTION}
SMALL = {name: list(ATTENTION.get(name).SMALL) for name in ATTENTION}
"""Row -> settings that the mechanism itself declares; attention/base.py says what for."""


def named(table: dict[str, list[dict]], *others: Any) -> list:
    return [
        pytest.param(name, arguments, *other, id="-".join(map(str, (name, *arguments.values(), *other))))
        for name in ATTENTION
        for arguments in table[name]
        for other in ([(o,) for o in others] or [()])
    ]


complete = pytest.mark.parametrize(("name", "arguments", "layout"), named(COMPLETE, *LAYOUTS))
sparse = pytest.mark.parametrize(("name", "arguments"), named(SMALL))


def build(name: str, arguments: dict, heads: int = HEADS) -> Mechanism:
    kind = ATTENTION.get(name)
    sizes = {"dim": heads * DIM, "heads": heads}
    torch.manual_seed(0)
    return kind(**{s: v for s, v in sizes.items() if s in inspect.signature(kind).parameters}, **arguments)


def projections(layout: TokenLayout, batch: int = 2, heads: int = HEADS) -> list[Tensor]:
    """q, k, v and the input x."""
    generator = torch.Generator().manual_seed(layout.tokens)
    tokens = layout.views * layout.tokens
    qkv = torch.randn(3, batch, heads, tokens, DIM, generator=generator).unbind(0)
    return [*qkv, torch.randn(batch, tokens, heads * DIM, generator=generator)]


def finish(q: Tensor, k: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Stands for norm and rotation: whoever skips it gives other numbers."""
    return 2.0 * q.flip(-1), k.flip(-1) - 0.1


def attend(
    mechanism: Mechanism, layout: TokenLayout, q: Tensor, k: Tensor, v: Tensor, x: Tensor, mask: Tensor | None = None
) -> Tensor:
    return mechanism(Projected(x, q, k, v, finish, mask), layout)


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


def real(x: Tensor, mask: Tensor | None) -> Tensor:
    """The rows of tokens that count: [B, H, N, D] -> [M, H, D]."""
    return x.transpose(1, 2).flatten(0, 1) if mask is None else x.transpose(1, 2)[mask]


@complete
@pytest.mark.parametrize("masked", [False, True])
def test_equals_softmax_attention(name: str, arguments: dict, layout: str, masked: bool) -> None:
    mechanism, shape = build(name, arguments), LAYOUTS[layout]
    q, k, v, x = projections(shape)
    mask = padding(shape) if masked else None
    with torch.inference_mode():
        found = attend(mechanism, shape, q, k, v, x, mask)
    assert found.dtype == v.dtype
    assert_rms(real(found, mask), real(reference(q, k, v, mask), mask), 1e-5)


@pytest.mark.parametrize(("name", "arguments"), named(COMPLETE))
def test_camera_tokens_alone_suffice(name: str, arguments: dict) -> None:
    shape = TokenLayout(views=3, special=1, rows=0, cols=0)
    q, k, v, x = projections(shape)
    with torch.inference_mode():
        found = attend(build(name, arguments), shape, q, k, v, x, None)
    assert_rms(found, reference(q, k, v, None), 1e-5)


@complete
def test_gradients_equal_those_of_softmax_attention(name: str, arguments: dict, layout: str) -> None:
    mechanism, shape = build(name, arguments), LAYOUTS[layout]
    *inputs, x = projections(shape)
    inputs = [t.requires_grad_() for t in inputs]
    mask = padding(shape)
    weight = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(2)) * mask[:, None, :, None]
    found = torch.autograd.grad((attend(mechanism, shape, *inputs, x, mask) * weight).sum(), inputs)
    expected = torch.autograd.grad((reference(*inputs, mask) * weight).sum(), inputs)
    for ours, theirs in zip(found, expected, strict=True):
        assert_rms(ours, theirs, 1e-4)


@sparse
@pytest.mark.parametrize("layout", LAYOUTS)
def test_padding_has_no_influence_even_when_it_is_nan(name: str, arguments: dict, layout: str) -> None:
    mechanism, shape = build(name, arguments), LAYOUTS[layout]
    inputs = projections(shape)
    mask = padding(shape)
    hidden = ~mask
    spoiled = [t.masked_fill(hidden[:, None, :, None], torch.nan) for t in inputs[:3]]
    spoiled.append(inputs[3].masked_fill(hidden[:, :, None], torch.nan))
    with torch.inference_mode():
        plain, other = (real(attend(mechanism, shape, *t, mask), mask) for t in (inputs, spoiled))
    assert torch.equal(plain, other)
    gradients = []
    for given in (inputs, spoiled):
        leaves = [t.clone().requires_grad_() for t in given[:3]]
        out = real(attend(mechanism, shape, *leaves, given[3], mask), mask)
        assert_rms(out, plain, 1e-5)
        gradients.append(torch.autograd.grad(out.square().sum(), leaves))
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.equal(ours, theirs) and not ours[hidden[:, None, :, None].expand_as(ours)].any()


@sparse
def test_whoever_claims_not_to_read_the_input_does_not(name: str, arguments: dict) -> None:
    mechanism, shape = build(name, arguments), LAYOUTS["odd sizes"]
    if mechanism.reads_input:
        pytest.skip("reads the input of the block")
    *qkv, x = projections(shape)
    bytes_ = torch.full(x.shape, 255, dtype=torch.uint8)  # as SelfAttention passes on inputs that are rounded already
    with torch.inference_mode():
        for mask in (None, padding(shape)):
            assert torch.equal(*(attend(mechanism, shape, *qkv, given, mask) for given in (x, bytes_)))


@sparse
def test_scenes_do_not_mix_and_calls_repeat(name: str, arguments: dict) -> None:
    mechanism, shape = build(name, arguments), LAYOUTS["odd sizes"]
    inputs, mask = projections(shape), padding(shape)
    with torch.inference_mode():
        both = attend(mechanism, shape, *inputs, mask)
        assert torch.equal(both, attend(mechanism, shape, *inputs, mask))
        for scene in range(2):
            alone = attend(mechanism, shape, *(t[scene : scene + 1] for t in inputs), mask[scene : scene + 1])
            assert_rms(alone, both[scene : scene + 1], 1e-5)


@pytest.mark.parametrize(("name", "arguments", "tokens"), named(SMALL, *LENGTHS))
def test_any_length_in_any_type(name: str, arguments: dict, tokens: int) -> None:
    mechanism, shape = build(name, arguments, 1), LENGTHS[tokens]
    *inputs, x = projections(shape, 1, 1)
    leaves = [t.requires_grad_() for t in inputs]
    out = attend(mechanism, shape, *leaves, x)
    assert out.shape == inputs[0].shape and out.isfinite().all()
    assert all(g.isfinite().all() and g.any() for g in torch.autograd.grad(out.square().sum(), leaves))
    weights = [p for p in mechanism.parameters() if p.requires_grad]
    out = attend(mechanism, shape, *inputs, x)
    assert (
        all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), weights, allow_unused=False)) if weights else 1
    )
    for dtype in (torch.float16, torch.bfloat16) if tokens < 1000 else ():
        narrow = [t.detach().to(dtype) for t in (*inputs, x)]
        with torch.inference_mode():
            half = attend(mechanism.to(dtype), shape, *narrow)
        assert half.dtype == dtype and half.isfinite().all()


@sparse
def test_one_view_of_several_as_a_frame_block_sees_it(name: str, arguments: dict) -> None:
    """The layout speaks of all views, the call is about one of them: the result is that of a layout of one."""
    mechanism = build(name, arguments)
    alone = TokenLayout(views=1, special=2, rows=5, cols=3)
    inputs = projections(alone)
    with torch.inference_mode():
        expected = attend(mechanism, alone, *inputs)
        assert torch.equal(attend(mechanism, LAYOUTS["odd sizes"], *inputs), expected)


@sparse
def test_nan_in_a_query_spares_most_others(name: str, arguments: dict) -> None:
    mechanism, shape = build(name, arguments), LAYOUTS["odd sizes"]
    inputs = projections(shape)
    inputs[0][0, 0, -1] = torch.nan
    with torch.inference_mode():
        broken = attend(mechanism, shape, *inputs).isnan().any(-1)
    assert broken[0, 0, -1] and not broken[1].any() and not broken[0, 1].any()
    assert broken[0, 0].float().mean() < 0.5


@sparse
def test_reports_its_density(name: str, arguments: dict) -> None:
    mechanism, shape = build(name, arguments), LAYOUTS["odd sizes"]
    with recording() as log, torch.inference_mode():
        attend(mechanism, shape, *projections(shape))
    densities = [torch.as_tensor(r.values["density"]) for r in log if "density" in r.values]
    assert name == "dense" or (densities and all(((d > 0) & (d <= 1)).all() for d in densities))


@sparse
def test_survives_a_training_step_under_autocast(name: str, arguments: dict) -> None:
    mechanism, shape = build(name, arguments), LAYOUTS["odd sizes"]
    inputs = [t.requires_grad_() for t in projections(shape)]
    narrow = [t.bfloat16() for t in inputs]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attend(mechanism, shape, *narrow, padding(shape))
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.float().square().sum(), inputs[:3]))
    with torch.inference_mode():
        wide = attend(mechanism.eval(), shape, *(t.float() for t in narrow), padding(shape))
    assert rms_ratio(real(out, padding(shape)), real(wide, padding(shape))) < 0.3  # a near tie may fall the other way


@pytest.mark.parametrize("name", list(ATTENTION))
def test_declares_how_to_try_it(name: str) -> None:
    """What is sparse has settings in which it is not, or says by having none that it always leaves something out."""
    assert SMALL[name], "no settings to try it with"
    for arguments in (*SMALL[name], *COMPLETE[name]):
        Step("all blocks", name, arguments)


@pytest.mark.parametrize("name", list(ATTENTION))
def test_shows_its_choices(name: str) -> None:
    for arguments in COMPLETE[name]:
        text = repr(build(name, arguments))
        shown = {key: value for key, value in arguments.items() if key != "init_std"}
        assert all(f"{key}={value!r}" in text for key, value in shown.items()), text


INVALID = [
    *[("gsa", {"window": 2.5}), ("gsa", {"top_k": True}), ("gsa", {"every": 0}), ("dense", {"implementation": "x"})],
    *[("sla", {"block": 4097}), ("thu-sla", {"query_block": 2**31 - 1}), ("block_sparse", {"key_block": 2**31 - 1})],
]


@pytest.mark.parametrize(("name", "arguments"), INVALID)
def test_refuses_invalid_settings(name: str, arguments: dict) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(arguments))} is"):
        build(name, arguments)


def test_a_window_larger_than_the_picture_is_the_picture() -> None:
    layout = LAYOUTS["odd sizes"]
    *inputs, x = projections(layout)
    with torch.inference_mode():
        wide, whole = (attend(build("gsa", {"window": w}), layout, *inputs, x) for w in (1000, 5))
    assert torch.equal(wide, whole)
