"""Mechanisms in encoders and camera heads: what they see, that they can be exact, and that distillation reads them."""

from __future__ import annotations

import pytest
import torch

from lean3r.attention.base import recording
from lean3r.attention.sla import SLA
from lean3r.compress import CompressionPlan, compress
from lean3r.compress.distill import attention_outputs
from lean3r.models import MODELS
from lean3r.models.base import Backbone
from lean3r.testing import assert_rms
from lean3r.types import Known, Views

VIEWS, SIDES = 3, (28, 42)
EVERYWHERE = "every attention layer"


def small(name: str) -> Backbone:
    torch.manual_seed(0)
    kind = MODELS.get(name)
    return kind(kind.SMALLEST).eval()


def views(known: bool = False) -> Views:
    height, width = SIDES
    images = torch.rand(1, VIEWS, 3, *SIDES, generator=torch.Generator().manual_seed(1))
    intrinsics = torch.tensor([[30.0, 0, width / 2], [0, 30.0, height / 2], [0, 0, 1]])
    cameras = Known(intrinsics.expand(1, VIEWS, 3, 3), torch.eye(4).expand(1, VIEWS, 4, 4))
    return Views(images, known=cameras if known else None)


def sla(**settings: object) -> CompressionPlan:
    return CompressionPlan.from_dict({"steps": [{"target": EVERYWHERE, "mechanism": "sla", "settings": settings}]})


@pytest.mark.parametrize("settings", [{"mode": "token"}, {"block": 4}, {"block": 4, "window": 2}], ids=str)
@pytest.mark.parametrize("name", ["vggt", "da3-large"])
def test_keeping_everything_is_dense_attention_everywhere(name: str, settings: dict) -> None:
    model = small(name)
    sparse = compress(model, sla(keep=1.0, init_std=0.0, **settings))
    assert all(isinstance(m.mechanism, SLA) for m in sparse.modules() if hasattr(m, "mechanism"))
    with torch.no_grad():
        expected, found = (net(views(known=name != "vggt")) for net in (model, sparse))
    assert_rms(found.depth, expected.depth, 1e-4)
    assert_rms(found.cam_from_world, expected.cam_from_world, 1e-4)


def test_in_the_encoder_a_mechanism_sees_one_view_and_in_the_camera_head_all() -> None:
    model = compress(small("vggt"), sla(mode="token", keep=0.3))
    with recording() as log, torch.no_grad():
        model(views())
    tokens = 1 + 4 + (SIDES[0] // 14) * (SIDES[1] // 14)
    seen = {record.mechanism: record.density for record in log}
    by_layer = {name: seen[m] for name, m in model.named_modules() if isinstance(m, SLA)}
    kept = int(0.3 * tokens) / tokens
    assert by_layer["encoder.blocks.0.attn.mechanism"] == by_layer["trunk.blocks.0.attn.mechanism"] == kept
    assert by_layer["trunk.blocks.1.attn.mechanism"] == int(0.3 * VIEWS * tokens) / (VIEWS * tokens)
    assert by_layer["camera.trunk.0.attn.mechanism"] == 1 / VIEWS


@pytest.mark.parametrize("chunk_bytes", [1, 1 << 28])
@pytest.mark.parametrize(("name", "pairs"), [("vggt", 1 + 2 * 4 + 4 * 4), ("da3-large", 6)])
def test_distillation_pairs_follow_the_release_whatever_the_chunks(name: str, pairs: int, chunk_bytes: int) -> None:
    """Each block once, and those of VGGT's camera head at each of four iterations: 88 and 24 at full size."""
    model = small(name)
    model.set_chunk_bytes(chunk_bytes)
    with attention_outputs(model) as outputs, torch.no_grad():
        for _ in range(2):
            outputs.clear()
            model(views())
    assert len(outputs) == pairs
    assert len(outputs[0]) == VIEWS and {len(output) for output in outputs} == {1, VIEWS}
