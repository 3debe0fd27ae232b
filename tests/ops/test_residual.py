"""Norm and next sum of the residual stream, each as one kernel, against torch; and that the layers use them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lean3r.layers import block, linear
from lean3r.layers.block import Block, LayerScale
from lean3r.ops.residual import add_scaled, in_one_kernel, norm_to
from lean3r.testing import assert_rms
from lean3r.types import TokenLayout

LIMIT = {torch.float32: 1e-6, torch.float16: 5e-4}
each_shape = pytest.mark.parametrize("shape", [(1, 1), (2, 3, 40), (5, 1000)], ids=str)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + 0.5


@each_shape
@pytest.mark.parametrize("kind", LIMIT)
def test_norms(shape: tuple[int, ...], kind: torch.dtype, kernel_device: torch.device) -> None:
    x, gain, offset = draw(*shape), draw(shape[-1], seed=1), draw(shape[-1], seed=2)
    expected = F.layer_norm(x, shape[-1:], gain, offset, 1e-6)
    for how, device in (("reference", torch.device("cpu")), ("triton", kernel_device)):
        given = (t.to(device) for t in (x, gain, offset))
        found = norm_to(*given, 1e-6, kind, implementation=how)  # type: ignore[arg-type]
        assert found.dtype == kind and found.shape == x.shape
        assert_rms(found.cpu().float(), expected, LIMIT[kind])


@each_shape
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("kind", LIMIT)
def test_sums(shape: tuple[int, ...], scaled: bool, kind: torch.dtype, kernel_device: torch.device) -> None:
    x, branch, gamma = draw(*shape), draw(*shape, seed=1).to(kind), draw(shape[-1], seed=2) if scaled else None
    expected = x + branch.float() * (1 if gamma is None else gamma)
    for how, device in (("reference", torch.device("cpu")), ("triton", kernel_device)):
        ours, more, by = (None if t is None else t.to(device, copy=True) for t in (x, branch, gamma))
        assert ours is not None and more is not None
        assert_rms(add_scaled(ours, more, by, implementation=how).cpu(), expected, 1e-6)  # type: ignore[arg-type]
        found = add_scaled(ours, more, by, out=ours, implementation=how)  # type: ignore[arg-type]
        assert found is ours
        assert_rms(ours.cpu(), expected, 1e-6)


def test_rows_apart_in_memory(kernel_device: torch.device) -> None:
    """Columns of a wider tensor, and rows that are columns."""
    wide, gain = draw(6, 40).to(kernel_device), draw(17, seed=1).to(kernel_device)
    x, turned = wide[:, 5:22], draw(17, 6, seed=2).to(kernel_device).T
    for one in (x, turned):
        expected = F.layer_norm(one, (17,), gain, gain, 1e-6)
        assert_rms(norm_to(one, gain, gain, 1e-6, torch.float32, implementation="triton"), expected, 1e-6)
        assert_rms(add_scaled(one, turned, gain, implementation="triton"), one + turned * gain, 1e-6)


def test_no_rows(kernel_device: torch.device) -> None:
    x, gain = torch.empty(0, 8, device=kernel_device), torch.ones(8, device=kernel_device)
    assert norm_to(x, gain, gain, 1e-6, torch.float16, implementation="triton").shape == (0, 8)
    assert add_scaled(x, x, gain, implementation="triton").shape == (0, 8)


def test_a_sum_in_the_widest_type() -> None:
    half, wide = torch.ones(2, 3, dtype=torch.bfloat16), torch.ones(3)
    assert add_scaled(half, half, None).dtype == torch.bfloat16
    assert add_scaled(half, half, wide).dtype == torch.float32


@pytest.mark.parametrize("layer_scale", [None, 0.5])
def test_blocks_take_both(layer_scale: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU under autocast: what a block says stays, and its products get half precision."""
    torch.manual_seed(0)
    layer = Block(32, 2, layer_scale=layer_scale).eval()
    nn.init.normal_(layer.norm1.weight)
    x, layout = draw(1, 2 * 7, 32), TokenLayout(2, 1, 2, 3)
    seen: list[torch.dtype] = []
    for reader in (layer.attn.qkv, layer.mlp.fc1):
        reader.register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = layer(x, layout)
        for module in (linear, block):
            monkeypatch.setattr(module, "in_one_kernel", lambda *_: True)
        found = layer(x, layout)
    assert seen == [torch.float32] * 2 + [torch.bfloat16] * 2
    assert found.dtype == expected.dtype == torch.float32
    assert_rms(found, expected, 1e-3)


def test_when_they_are_left_out() -> None:
    with torch.no_grad():  # torch knows no autocast there
        assert Block(32, 2).to("meta")(torch.empty(1, 6, 32, device="meta"), TokenLayout(1, 0, 2, 3)).is_meta
    assert not in_one_kernel(torch.zeros(2, 3))
    watched = LayerScale(3, 1.0)
    watched.register_forward_hook(lambda *_: None)
    x, branch = torch.ones(2, 3), torch.ones(2, 3)
    assert torch.equal(block.add_scaled(x, watched, branch), x + branch)
