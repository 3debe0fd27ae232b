"""Looped blocks: positions of the passes, and factors that start at exactly 1."""

from __future__ import annotations

import pytest
import torch

from lean3r.layers.block import Block
from lean3r.layers.looped import LoopedTrunk, ScaledBlock, StepScales, positions
from lean3r.types import TokenLayout


def test_positions_go_from_0_to_1() -> None:
    assert positions(1) == [(0.0, 1.0)]
    assert positions(3) == [(0.0, 0.5), (0.5, 1.0), (1.0, 1.0)]
    assert all(p[k][1] == p[k + 1][0] for p in (positions(9),) for k in range(8))


def test_factors_start_at_exactly_one_and_then_depend_on_the_position() -> None:
    scales = StepScales(8)
    assert all(torch.equal(scales(step), torch.ones(3, 8)) for step in positions(5))
    torch.nn.init.normal_(scales.out)
    found = [scales(step) for step in positions(5)]
    assert all(not torch.allclose(a, b) for i, a in enumerate(found) for b in found[:i])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(scales((0.0, 0.25)), found[0]), "in float32 whatever the dtype of the rest"


@pytest.mark.parametrize("gradients", [True, False])
def test_a_block_with_factors_of_one_is_a_plain_block(gradients: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    block, layout, x = ScaledBlock(32, 2), TokenLayout(2, 1, 3, 4), torch.randn(2, 26, 32)
    plain = Block(32, 2)
    plain.load_state_dict(block.state_dict())
    factors = torch.rand(3, 32) + 0.5
    a, m, s = factors
    with torch.set_grad_enabled(gradients):
        assert torch.equal(block(x, layout, None, torch.ones(3, 32)), plain(x, layout))
        assert torch.equal(block(x, layout), plain(x, layout))
        middle = x + a * block.attn(block.norm1(x), layout)
        expected = s * (middle + m * block.mlp(block.norm2(middle)))
        torch.testing.assert_close(block(x, layout, None, factors), expected)
        monkeypatch.setattr("lean3r.layers.looped.MLP_ELEMENTS", 200)
        torch.testing.assert_close(block(x, layout, None, factors), expected, msg="in pieces")


def test_a_pass_runs_only_the_looped_blocks() -> None:
    torch.manual_seed(0)
    trunk, layout = LoopedTrunk(("frame", "global", "frame", "global"), 16, 2, looped_from=2), TokenLayout(2, 1, 2, 3)
    x = torch.randn(1, 2, 7, 16)
    with torch.no_grad():
        first, _ = trunk(x, layout, stop=2)
        assert torch.equal(trunk.one_pass(first, layout, (0.0, 1.0)), trunk(x, layout)[0]), "factors are 1 at first"
        torch.nn.init.normal_(trunk.scales[1].out)  # type: ignore[arg-type]
        passes = [trunk.one_pass(first, layout, step) for step in ((0.0, 1.0), (0.0, 0.5))]
    assert not torch.allclose(*passes) and len(trunk.scales) == 2
