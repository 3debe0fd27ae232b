"""Attention to runs of rows: the kernel and the reference against softmax over rows picked one by one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from lean3r.errors import KernelError, UsageError
from lean3r.ops.span_attention import span_attention
from lean3r.testing import assert_rms

HOW = ("reference", "triton")
SPANS = ((3, 130), (200, 0), (201, 64), (140, 1), (400, 65), (300, 63))  # of 500 rows


def draw(count: int, dim: int, spans: object = SPANS, rows: int = 500) -> tuple[Tensor, Tensor, Tensor]:
    """q [3, count, dim], keys and values of one buffer [2, 3, rows, dim], NaN outside of the runs, and the runs."""
    random = torch.Generator().manual_seed(count + dim)
    q, cache = torch.randn(3, count, dim, generator=random), torch.randn(2, 3, rows, dim, generator=random)
    listed = torch.tensor(spans, dtype=torch.int32)
    cache[:, :, ~torch.isin(torch.arange(rows), rows_of(listed))] = torch.nan
    return q, cache, listed


def rows_of(spans: Tensor) -> Tensor:
    return torch.cat([first + torch.arange(int(count)) for first, count in spans])


def exact(q: Tensor, cache: Tensor, spans: Tensor, scale: float | None = None) -> Tensor:
    k, v = cache.double()[:, :, rows_of(spans)]
    scores = q.double() @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(("count", "dim", "scale"), [(1, 128, None), (3, 64, 0.3), (70, 20, None), (70, 64, None)])
def test_runs_are_attended_and_nothing_else(
    how: str, count: int, dim: int, scale: float | None, kernel_device: torch.device
) -> None:
    q, cache, spans = draw(count, dim)
    there, held, listed = (x.to(kernel_device) for x in (q, cache, spans))
    found = span_attention(there, *held, listed, scale=scale, implementation=how)  # type: ignore[arg-type, misc]
    assert found.is_contiguous()
    assert_rms(found.cpu().double(), exact(q, cache, spans, scale), 2e-6)
    turned = span_attention(there, *held, listed.flip(0), scale=scale, implementation=how)  # type: ignore[arg-type, misc]
    assert_rms(turned.cpu(), found.cpu(), 2e-6)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(("kind", "limit"), [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_half_precision(how: str, kind: torch.dtype, limit: float, kernel_device: torch.device) -> None:
    if how == "triton" and kind == torch.bfloat16 and kernel_device.type == "cpu":
        pytest.skip("Triton's interpreter multiplies bfloat16 wrongly")
    q, cache, spans = draw(70, 64)
    q, cache = q.to(kind), cache.to(kind)
    there, held, listed = (x.to(kernel_device) for x in (q, cache, spans))
    found = span_attention(there, *held, listed, implementation=how)  # type: ignore[arg-type, misc]
    assert found.dtype == kind
    assert_rms(found.cpu().double(), exact(q, cache, spans), limit)


@pytest.mark.parametrize("how", HOW)
def test_any_strides_but_those_of_numbers(how: str, kernel_device: torch.device) -> None:
    """Heads behind rows, every other row, keys and values in different places, and queries laid out otherwise."""
    q, cache, spans = draw(5, 64)
    k = cache[0].transpose(0, 1).contiguous().transpose(0, 1)
    v = cache[1].repeat_interleave(2, 1)[:, ::2]
    given = (x.to(kernel_device) for x in (q.mT.contiguous().mT, k, v, spans))
    found = span_attention(*given, implementation=how)  # type: ignore[arg-type, misc]
    assert found.is_contiguous()
    assert_rms(found.cpu().double(), exact(q, cache, spans), 2e-6)


def recorded(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    run()  # tunes, which a graph could not hold
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()

    def replay() -> Tensor:
        graph.replay()
        return out.clone()

    return replay


def test_runs_stay_on_the_device(kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel follows what is written into the same tensor later, in a CUDA graph that is replayed as well."""
    q, cache, listed = (x.to(kernel_device) for x in draw(5, 32, [(0, 100), (100, 100), (200, 100)], 300))
    moved = [torch.tensor(runs).int() for runs in ([(0, 65), (299, 1), (9, 0)], [(7, 0), (200, 99), (3, 64)])]
    found = []
    with monkeypatch.context() as patch:
        for name in ("tolist", "item", "__int__", "__index__", "__bool__"):
            patch.setattr(Tensor, name, lambda *_: pytest.fail("the host reads a tensor"))
        run = partial(span_attention, q, *cache, listed, implementation="triton")
        run = recorded(run) if kernel_device.type == "cuda" else run
        for runs in moved:
            listed.copy_(runs)
            found.append(run())
    for runs, one in zip(moved, found, strict=True):
        assert_rms(one.cpu().double(), exact(q.cpu(), cache.cpu(), runs), 2e-6)


@pytest.mark.parametrize("how", HOW)
def test_gradients_come_of_the_reference(how: str, kernel_device: torch.device) -> None:
    q, cache, spans = (x.to(kernel_device) for x in draw(4, 32, [(40, 60), (2, 9)], 100))
    k, v = cache.nan_to_num()
    leaves = [x.requires_grad_() for x in (q, k.clone(), v.clone())]
    span_attention(*leaves, spans, implementation=how).sum().backward()  # type: ignore[arg-type]
    assert all(x.grad is not None and x.grad.isfinite().all() for x in leaves)


def test_what_does_not_fit_is_named(kernel_device: torch.device) -> None:
    q, cache, spans = draw(4, 32)
    k, v = cache
    bad = [
        *((q[:2], k, v, spans), (q[..., :16], k, v, spans), (q, k[:, :9], v, spans), (q[None], k, v, spans)),
        *((q.half(), k, v, spans), (q, k.mT.contiguous().mT, v, spans), (q, k, v, spans.long())),
        *((q, k, v, spans[:0]), (q, k, v, spans.flatten()), (q, k, v, spans.to("meta"))),
    ]
    for given in bad:
        with pytest.raises(UsageError, match=r"span_attention expects q \[H, N, D\].* got q \["):
            span_attention(*given)
    with pytest.raises(UsageError, match="a scale above 0, got -1"):
        span_attention(q, k, v, spans, scale=-1)
    wide = torch.zeros(1, 2, 130, device=kernel_device)
    with pytest.raises(KernelError, match="head_dim 130 is above 128"):
        span_attention(wide, wide, wide, spans.to(kernel_device), implementation="triton")
