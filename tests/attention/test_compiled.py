"""torch.compile takes a block with sparse attention as one graph: operators and tables are single nodes."""

from __future__ import annotations

import pytest
import torch

from lean3r.attention import ATTENTION
from lean3r.layers.block import Block
from lean3r.types import TokenLayout

DIM, HEADS, VIEWS = 128, 4, 2


def sparse_block(name: str, **settings: object) -> Block:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = Block(DIM, HEADS).eval()
        sizes = () if name == "block_sparse" else (DIM, HEADS)
        block.attn.mechanism = ATTENTION.get(name)(*sizes, **settings)
    return block


@pytest.mark.parametrize(
    ("name", "settings", "window"),
    [
        ("gsa", {"top_k": 3, "reference": True}, 4),
        ("gsa", {"top_k": 3, "window": 3}, None),  # windows cut off by the edge
        ("sla", {"mode": "block", "keep": 0.4, "block": 16}, None),
        ("sla", {"mode": "block", "keep": 0.4, "block": 16, "special": "dense"}, None),
        ("sla", {"mode": "three-way", "critical": 0.3, "block": 16}, 4),
        ("block_sparse", {"sparsity": 0.5, "query_block": 16, "key_block": 16}, None),
    ],
)
def test_one_graph_without_a_break(name: str, settings: dict[str, object], window: int | None) -> None:
    block, layout = sparse_block(name, **settings), TokenLayout(VIEWS, 1, 8, 8, window=window)
    x = torch.randn(1, VIEWS * layout.tokens, DIM, generator=torch.Generator().manual_seed(1))

    def run(x: torch.Tensor) -> torch.Tensor:
        return block(x, layout)

    torch._dynamo.reset()
    with torch.no_grad():
        found = torch._dynamo.explain(run)(x)
        assert found.graph_break_count == 0, found.break_reasons
        (graph,) = found.graphs
        calls = {str(node.target) for node in graph.graph.nodes}
        assert "lean3r.table.default" in calls and len([call for call in calls if call.startswith("lean3r.")]) > 1
        compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), run(x))


def test_gradients_through_a_compiled_block() -> None:
    block, layout = sparse_block("gsa", top_k=3), TokenLayout(VIEWS, 1, 8, 8, window=4)
    x = torch.randn(1, VIEWS * layout.tokens, DIM, generator=torch.Generator().manual_seed(1), requires_grad=True)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: block(x, layout), backend="aot_eager", fullgraph=True)
    leaves = [x, *block.parameters()]
    expected, found = (
        torch.autograd.grad(run(x).square().sum(), leaves) for run in (lambda x: block(x, layout), compiled)
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
