"""MELT's row: neutral settings equal a cache for each loop, and bytes do not depend on the number of loops."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from lean3r.layers.looped import LoopedTrunk, positions
from lean3r.layers.melt import LoopMemory, MeltBlock, MeltTrunk, Rule, SharedRow
from lean3r.types import TokenLayout

DIM, ROWS, COLS = 32, 2, 3
GLOBAL = 2  # index of the looped global block


def trunk(rule: Rule = "gated") -> MeltTrunk:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = MeltTrunk(("frame", "frame", "global"), DIM, 2, looped_from=1, rule=rule)
        for name, parameter in found.named_parameters():
            if ".row." in name:
                torch.nn.init.normal_(parameter, std=0.3)
            elif ".out" in name:
                torch.nn.init.normal_(parameter, std=0.02)
    return found.eval()


def tokens(frames: int = 4) -> Tensor:
    return torch.randn(2, frames, 1 + ROWS * COLS, DIM, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def run(model: MeltTrunk, x: Tensor, loops: int, chunk: int, alpha: float) -> tuple[Tensor, LoopMemory]:
    """All chunks of so many frames, one after another."""
    memory, out = LoopMemory(alpha), []
    for part in x.split(chunk, 1):
        layout = TokenLayout(part.shape[1], 1, ROWS, COLS)
        for step in positions(loops):
            part = model.pass_with(part, layout, step, {GLOBAL: memory})
        memory.end()
        out.append(part)
    return torch.cat(out, 1), memory


@torch.no_grad()
def by_masks(model: MeltTrunk, x: Tensor, loops: int, chunk: int) -> Tensor:
    """A cache for each loop the slow way: the first n frames alone, as one chunk, with a mask over all pairs."""
    frames, count = x.shape[1], x.shape[2]
    chunk_of = torch.arange(frames).repeat_interleave(count) // chunk
    mask = chunk_of[:, None] >= chunk_of
    layout = TokenLayout(frames, 1, ROWS, COLS)
    block = model.blocks[GLOBAL]
    assert isinstance(block, MeltBlock)
    for step in positions(loops):
        scales = [scale(step) for scale in model.scales]
        x = model.blocks[1](x.flatten(0, 1), layout, None, scales[0]).unflatten(0, x.shape[:2])
        flat = x.flatten(1, 2)
        q, k, v = block.attn._heads(block.norm1(flat), layout)  # type: ignore[operator]
        scores = (q.double() @ k.double().mT * q.shape[-1] ** -0.5).masked_fill(~mask, -torch.inf)
        seen = (scores.softmax(-1) @ v.double()).float()
        attention, mlp, state = scales[1]
        flat = flat + attention * block.attn.proj(seen.transpose(1, 2).flatten(2))  # type: ignore[operator]
        x = (state * (flat + mlp * block.mlp(block.norm2(flat)))).unflatten(1, x.shape[1:3])
    return x


def test_without_the_row_it_is_a_cache_for_each_loop() -> None:
    model, x = trunk(), tokens()
    for chunk in (1, 2, 4):
        torch.testing.assert_close(run(model, x, 3, chunk, 0.0)[0], by_masks(model, x, 3, chunk), rtol=1e-4, atol=1e-5)
    plain = LoopedTrunk(("frame", "frame", "global"), DIM, 2, looped_from=1).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if ".row." not in k})
    layout, y = TokenLayout(4, 1, ROWS, COLS), x
    with torch.no_grad():
        for step in positions(3):
            y = plain.one_pass(y, layout, step)
    torch.testing.assert_close(run(model, x, 3, 4, 0.0)[0], y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["gated", "diagonal"])
def test_closed_and_open_gates_are_the_last_and_the_first_loop(rule: Rule) -> None:
    """A bias of -30 shuts out the old row: the last loop only. One of 30 keeps it: the first loop's, frozen."""
    gate, x = SharedRow(DIM, rule), tokens()
    model, last = trunk(rule), trunk("last")
    block = model.blocks[GLOBAL]
    assert isinstance(block, MeltBlock)
    for parameter in block.row.parameters():
        parameter.data.zero_()
    block.row.bias.data.fill_(-30)
    last.load_state_dict({k: v for k, v in model.state_dict().items() if ".row." not in k})
    ours, theirs = (run(m, x, 4, 1, 1.0)[0] for m in (model, last))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    gate.bias.data.fill_(30)
    torch.testing.assert_close(gate(x, 2 * x, 3), 2 * x)
    block.row.bias.data.fill_(0)
    assert not torch.allclose(run(model, x, 4, 1, 1.0)[0], theirs, atol=1e-3)


def test_rows_by_their_definition() -> None:
    inputs = tokens().unbind(1)
    for rule, expected in (
        ("mean", torch.stack(inputs).mean(0)),
        ("last", inputs[-1]),
        ("average", 0.512 * inputs[0] + 0.128 * inputs[1] + 0.16 * inputs[2] + 0.2 * inputs[3]),
    ):
        row, found = SharedRow(DIM, rule), None  # type: ignore[arg-type]
        for loop, x in enumerate(inputs):
            found = row(x, found, loop)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("rule", ["gated", "diagonal", "mean", "average"])
def test_bytes_do_not_depend_on_the_loops(rule: Rule) -> None:
    model, x = trunk(rule), tokens()
    one_row = 2 * x.numel() * x.element_size()
    assert [run(model, x, loops, 2, 1.0)[1].bytes for loops in (1, 2, 5)] == [one_row] * 3
    assert [run(model, x, loops, 2, 0.0)[1].bytes for loops in (1, 2, 5)] == [one_row, 2 * one_row, 5 * one_row]


def test_one_chunk_is_bidirectional_and_later_chunks_do_not_count() -> None:
    model, x = trunk(), tokens()
    whole = run(model, x, 3, 2, 1.0)[0]
    torch.testing.assert_close(run(model, x[:, :2], 3, 2, 1.0)[0], whole[:, :2])
    torch.testing.assert_close(run(model, x, 3, 4, 1.0)[0], run(model, x, 3, 100, 1.0)[0])
    assert not torch.allclose(run(model, x, 3, 4, 1.0)[0][:, :2], whole[:, :2], atol=1e-3)
    changed = x.clone()
    changed[:, 0] += 1
    assert not torch.allclose(run(model, changed, 3, 2, 1.0)[0][:, 2:], whole[:, 2:], atol=1e-3)


def test_gradients_reach_the_gate_through_past_chunks() -> None:
    model, x = copy.deepcopy(trunk()), tokens()
    memory = LoopMemory()
    for part in x.split(2, 1):
        for step in positions(3):
            part = model.pass_with(part, TokenLayout(2, 1, ROWS, COLS), step, {GLOBAL: memory})
        assert len(memory.outputs) == 3
        memory.end()
    part.square().mean().backward()
    block = model.blocks[GLOBAL]
    assert isinstance(block, MeltBlock)
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in block.row.parameters())
