"""What runs only while torch.export records a model computes what the usual code does: every model, many sizes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from contracts.tiny import tiny
from torch import Tensor, nn
from torch.export import Dim

from lean3r.attention.coarse_fine import Gsa
from lean3r.compress import SCHEMES, CompressionPlan, compress
from lean3r.compress.plan import QuantizeStep
from lean3r.deploy.graph import outputs_of
from lean3r.geometry.rotation import nearest_rotation
from lean3r.heads import sky
from lean3r.layers.attention import SelfAttention
from lean3r.layers.causal import CausalTrunk, FrameSight
from lean3r.layers.frames import CachePolicy, FrameTable
from lean3r.layers.trunk import Trunk
from lean3r.layers.vit import VisionTransformer
from lean3r.models import MODELS
from lean3r.types import TokenLayout, Views

Traced = Callable[[bool], None]


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Traced:
    """A switch: from now on the code believes that it is recorded."""
    return lambda on: monkeypatch.setattr(torch.compiler, "is_exporting", lambda: on)


@pytest.mark.parametrize("name", list(MODELS))
def test_traced_model_predicts_the_same(name: str, traced: Traced) -> None:
    model = tiny(name)
    grids = [(4, 4), (3, 5)]  # the side of the smallest position embeddings, which are then not resized, and another
    for views, (rows, cols) in ((1, grids[1]), (2, grids[0]), (5, grids[1])):
        images = torch.rand(1, views, 3, rows * model.patch, cols * model.patch)
        with torch.no_grad():
            traced(False)
            expected = outputs_of(model(Views(images)))
            traced(True)
            found = outputs_of(model(Views(images)))
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-4, msg=f"{key}, {views} views")


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 3},
        {"top_k": 3, "fill": "repeat_last"},
        {"top_k": 40, "special": "pooled"},
        {"top_k": 3, "kv": "fp8", "gate": "one"},
        {"window": 2, "top_k": 4},
    ],
)
def test_traced_sparse_attention_chooses_the_same(settings: dict, traced: Traced) -> None:
    attention = SelfAttention(64, 2)
    attention.mechanism = Gsa(64, 2, **settings)
    for rows, cols, views, special, window in (
        (3, 9, 1, 1, None),
        (7, 4, 3, 5, 4),
        (4, 4, 3, 0, None),
        (9, 7, 2, 1, 2),
    ):
        layout = TokenLayout(views, special, rows, cols, window=window)
        x = torch.randn(2, views * layout.tokens, 64)
        with torch.no_grad():
            traced(False)
            expected = attention(x, layout)
            traced(True)
            torch.testing.assert_close(attention(x, layout), expected, rtol=0, atol=1e-5)


class SparseTrunk(nn.Module):
    """Frame and global blocks, the latter sparse, over patches [1, S, H, W, C] with a special token."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk(("frame", "global"), 32, 2)
        self.trunk.blocks[1].get_submodule("attn").mechanism = gsa = Gsa(32, 2, top_k=3, window=2)
        assert gsa.gate is not None
        nn.init.normal_(gsa.gate.weight)

    def forward(self, x: Tensor) -> Tensor:
        views, rows, cols, dim = x.shape[1:]
        x = torch.cat([x.new_ones(1, views, 1, dim), x.flatten(2, 3)], 2)
        return self.trunk(x, TokenLayout(views, 1, rows, cols))[0]


class OrderedTrunk(nn.Module):
    """The same with blocks that see frames in order: one anchor, two last frames, one token of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = CausalTrunk(("frame", "global"), 32, 2, roles={"global": {"rope": "time"}})

    def forward(self, x: Tensor) -> Tensor:
        views, rows, cols, dim = x.shape[1:]
        sight = FrameSight(FrameTable.of(CachePolicy(anchors=1, window=2, interval=2), views), 1)
        x = torch.cat([x.new_ones(1, views, 1, dim), x.flatten(2, 3)], 2)
        return self.trunk(x, TokenLayout(views, 1, rows, cols), extra={1: sight})[0]


@pytest.mark.parametrize("kind", [SparseTrunk, OrderedTrunk])
def test_one_graph_serves_all_numbers_of_views_and_patches(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    sizes = {1: Dim("views", min=2, max=100), 2: Dim("rows", min=3, max=100), 3: Dim("cols", min=3, max=100)}
    with torch.no_grad():
        program = torch.export.export(model, (torch.randn(1, 3, 6, 8, 32),), dynamic_shapes={"x": sizes}).module()
        for views, rows, cols in ((3, 8, 6), (2, 6, 8), (9, 5, 7), (4, 3, 3)):
            x = torch.randn(1, views, rows, cols, 32)
            torch.testing.assert_close(program(x), model(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_one_graph_of_rounded_layers_serves_all_numbers_of_tokens(scheme: str) -> None:
    """That of int8-dynamic was for as many tokens as it was recorded with: no model of it could be exported."""
    model = compress(
        nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 16, bias=False)),
        CompressionPlan((QuantizeStep(scheme, "every linear"),)),
    )
    sizes = ({0: Dim("views", min=2, max=99), 1: Dim("tokens", min=2, max=999)},)
    with torch.no_grad():
        program = torch.export.export(model, (torch.randn(3, 5, 32),), dynamic_shapes=sizes).module()
        for shape in ((7, 9, 32), (2, 500, 32)):
            x = torch.randn(shape)
            error = (program(x) - model(x)).abs()
            # An activation halfway between two codes may be rounded either way: then a token is a step off.
            assert (error > 1e-5).any(-1).float().mean() < 0.05 and error.max() < 0.02


def test_traced_rotation_is_the_nearest_one(traced: Traced) -> None:
    matrices = torch.randn(1000, 3, 3)
    matrices[0], matrices[1] = torch.eye(3), torch.diag(torch.tensor([-1.0, 3.0, 2.0]))
    matrices = torch.cat([matrices, torch.eye(3) + 1e-3 * torch.randn(50, 3, 3)])
    expected = nearest_rotation(matrices.double())
    traced(True)
    found = nearest_rotation(matrices)
    values = torch.linalg.svdvals(matrices.double())
    unique = values[:, 1] + torch.linalg.det(matrices.double()).sign() * values[:, 2] > 1e-2 * values[:, 0]
    torch.testing.assert_close(found[unique], expected[unique].float(), rtol=0, atol=1e-5)
    assert bool(unique.float().mean() > 0.9)


@pytest.mark.parametrize("resize", ["antialias", "offset"])
def test_traced_position_embedding_is_resized_alike(resize, traced: Traced) -> None:
    encoder = VisionTransformer(8, 1, 2, grid=9, resize=resize)
    for rows, cols in ((9, 9), (9, 5), (4, 30), (30, 9), (2, 3)):
        traced(False)
        expected = encoder.positions(rows, cols)
        traced(True)
        torch.testing.assert_close(encoder.positions(rows, cols), expected, rtol=0, atol=1e-5)


def test_traced_sky_follows_the_same_rules(traced: Traced) -> None:
    depth, conf, metres = torch.rand(3, 1, 2, 12, 16) + 0.1
    some = torch.rand(depth.shape) < 0.3
    none, few, whole = torch.zeros_like(some), torch.zeros_like(some), torch.ones_like(some)
    few.view(-1)[:5] = True
    for mask in (some, none, few, ~few, whole):
        results = []
        for on in (False, True):
            traced(on)
            scale = sky.metric_scale(depth[0], conf[0], metres[0], mask[0])
            results.append(
                (
                    sky.fill_sky(depth, mask),
                    sky.sky_depth(depth[0], mask[0], 0.9),
                    torch.ones(()) if scale is None else scale,
                )
            )
        for found, expected in zip(results[1], results[0], strict=True):
            torch.testing.assert_close(found, expected)
