"""What runs only while torch.export records a model computes what the usual code does: every model, many sizes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from contracts.tiny import tiny

from lean3r.deploy.graph import outputs_of
from lean3r.geometry.rotation import nearest_rotation
from lean3r.heads import sky
from lean3r.layers.vit import VisionTransformer
from lean3r.models import MODELS
from lean3r.types import Views

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
