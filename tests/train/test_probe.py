"""The gradient probe: finds the blocks that alone can help, adds over batches, knows no group size, leaves no trace."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lean3r.errors import LeanError, UsageError
from lean3r.layers.trunk import Trunk
from lean3r.models.nano import Nano, NanoConfig
from lean3r.models.nano_looped import LoopedConfig, NanoLooped
from lean3r.train.probe import Score, Unit, gradient_scores, report, strongest, units_of
from lean3r.types import TokenLayout


class Planted(nn.Module):
    """Eight blocks; the output is built from what three of them do alone, the others only pass through."""

    HELPFUL = (1, 4, 6)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = Trunk(("frame", "global") * 4, 16, 2, qk_norm=False)

    def forward(self, x: Tensor) -> Tensor:
        layout = TokenLayout(1, 0, 2, 2)
        out = torch.zeros_like(x)
        for index in range(8):
            new = self.trunk(x, layout, start=index, stop=index + 1)[0]
            out = out + (1.0 if index in self.HELPFUL else 1e-3) * (new - x)
            x = new.detach()
        return out


def planted_loss(model: nn.Module, batch: Tensor) -> Tensor:
    return (model(batch) - batch.flip(-1)).square().mean()


def batches(count: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(1, 1, 4, 16, generator=generator) for _ in range(count)]


def test_the_planted_blocks_are_chosen() -> None:
    scores = gradient_scores(Planted(), batches(), planted_loss)
    assert [score.unit.index for score in scores] == list(range(8))
    assert tuple(unit.index for unit in strongest(scores, 3 / 8, by_role=False)) == Planted.HELPFUL
    apart = strongest(scores, 0.5)
    assert [unit.role for unit in apart].count("frame") == [unit.role for unit in apart].count("global") == 2
    assert set(Planted.HELPFUL) <= {unit.index for unit in apart}
    found = report(scores)
    assert found["lowest_index"] == min(unit.index for unit in apart)
    assert found["share_of_parameters"] == pytest.approx(0.5)
    assert [unit["chosen"] for unit in found["units"]] == [i in {u.index for u in apart} for i in range(8)]


def test_scores_add_over_batches_whatever_their_grouping() -> None:
    model, data = Planted(), batches(3)
    whole = [s.score for s in gradient_scores(model, data, planted_loss)]
    for group in (1, 3, 100):
        assert [s.score for s in gradient_scores(model, data, planted_loss, group=group)] == pytest.approx(whole)
    single = [[s.score for s in gradient_scores(model, [batch], planted_loss)] for batch in data]
    assert [sum(column) for column in zip(*single, strict=True)] == pytest.approx(whole)


def test_a_score_is_the_sum_of_norms_of_tensors() -> None:
    model, (batch,) = Planted(), batches(1)
    planted_loss(model, batch).backward()
    expected = [
        sum(float(p.grad.norm()) for p in block.parameters() if p.grad is not None) for block in model.trunk.blocks
    ]
    model.zero_grad(set_to_none=True)
    found = gradient_scores(model, [batch], planted_loss)
    assert [s.score for s in found] == pytest.approx(expected, rel=1e-5)
    assert all(p.grad is None for p in model.parameters())


def test_the_network_is_left_as_it_was() -> None:
    model = Planted().eval()
    model.trunk.blocks[2].requires_grad_(False)
    needs = {name: p.requires_grad for name, p in model.named_parameters()}
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    gradient_scores(model, batches(1), planted_loss)
    assert not model.training and {name: p.requires_grad for name, p in model.named_parameters()} == needs
    assert all(torch.equal(p, values[name]) for name, p in model.named_parameters())


def test_units_of_networks() -> None:
    units = units_of(Nano(NanoConfig(width=32, heads=2, pairs=2)))
    assert [unit.target for unit in units] == [
        "frame blocks 0",
        "frame blocks 1",
        "global blocks 0",
        "frame blocks 2",
        "global blocks 1",
    ]
    looped = NanoLooped(LoopedConfig(width=32, heads=2))
    targets = [unit.target for unit in units_of(looped)]
    assert targets[0] == "frame blocks 0" and "named trunk.blocks.2.attn.proj" in targets and len(targets) == 9
    images = torch.rand(1, 2, 3, 32, 32)
    scores = gradient_scores(looped, [images], lambda _, batch: looped.iterate(batch).tokens.square().mean(), group=2)
    assert all(math.isfinite(score.score) and score.score > 0 for score in scores)


def test_ties_and_small_shares() -> None:
    scores = [Score(Unit(i, "frame", f"frame blocks {i}", str(i)), 1.0, 1) for i in range(3)]
    assert [unit.index for unit in strongest(scores, 0.1)] == [0], "one at least"
    assert [unit.index for unit in strongest(scores, 0.5)] == [0], "half of three, rounded down"


def test_refusals() -> None:
    model = Planted()
    with pytest.raises(UsageError, match="no batches"):
        gradient_scores(model, [], planted_loss)
    with pytest.raises(UsageError, match="groups of 0"):
        gradient_scores(model, batches(1), planted_loss, group=0)
    with pytest.raises(UsageError, match="all gradients are zero"):
        gradient_scores(model, batches(1), lambda m, b: (b * 0).sum())
    with pytest.raises(LeanError, match=r"batch 1: the gradient at trunk\.blocks\.0 is not finite"):
        gradient_scores(model, [*batches(1), torch.full((1, 1, 4, 16), torch.nan)], planted_loss)
    with pytest.raises(UsageError, match="no encoder or trunk blocks"):
        units_of(nn.Linear(3, 3))
    with pytest.raises(UsageError, match="share of blocks is 0"):
        strongest([], 0)
