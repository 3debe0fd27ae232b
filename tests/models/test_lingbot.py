"""LingBot-Map among the other networks: plans, the reference view, looking inside, checkpoints."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from contracts.tiny import tiny
from torch import Tensor

import lean3r
from lean3r.errors import UsageError, WeightsError
from lean3r.layers.frames import CachePolicy
from lean3r.layers.time_rope import TimeRope, axes, rotate_pairs, time_angles
from lean3r.models.checkpoint import save_weights
from lean3r.models.lingbot import LingbotConfig, LingbotMap
from lean3r.models.sources import official_source
from lean3r.types import Prediction, TokenLayout, Views

POLICY = CachePolicy(anchors=2, window=2, interval=2, reserve=3)


def model(**sizes: bool) -> LingbotMap:
    if sizes:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            found = LingbotMap(replace(LingbotMap.SMALLEST, policy=POLICY, **sizes)).eval()
    else:
        found = copy.deepcopy(tiny("lingbot-map"))
        assert isinstance(found, LingbotMap)
    found.policy = POLICY
    return found


def pictures(count: int = 9) -> Tensor:
    return torch.rand(1, count, 3, 56, 42, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def by_steps(found: LingbotMap, images: Tensor) -> list[Prediction]:
    cache = found.new_cache(POLICY, *images.shape[-2:])
    results = [found.step(Views(images[:, :2]), cache)]
    for t in range(2, images.shape[1]):
        results.append(found.step(Views(images[:, t, None]), cache, keep=POLICY.is_keyframe(t)))
    return results


@pytest.mark.parametrize(
    "steps",
    [
        [{"target": "frame blocks", "mechanism": "gsa", "settings": {"window": 2, "top_k": 2}}],
        [{"quantize": "fp8", "target": "every linear"}],
        [],
    ],
    ids=["gsa in frame blocks", "fp8", "plain"],
)
def test_a_plan_holds_for_both_ways(steps: list[dict]) -> None:
    found = lean3r.compress(model(), {"steps": steps}) if steps else model(time_rope=False)
    images = pictures()
    with torch.no_grad():
        once = found(Views(images))
    for name in ("cam_from_world", "intrinsics", "depth", "conf"):
        streamed = torch.cat([getattr(p, name) for p in by_steps(found, images)], 1)
        torch.testing.assert_close(streamed, getattr(once, name), rtol=2e-3, atol=1e-3)


@torch.no_grad()
def test_cameras_are_decoded_alike_in_half_precision() -> None:
    found = model()
    for parameter in found.camera.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(0))
    tokens = found.encode(Views(pictures(3)))
    exact = found.decode(tokens, dense=False)
    with torch.autocast("cpu", torch.bfloat16):
        half = found.decode(tokens, dense=False)
    assert exact.cam_from_world[..., :3, 3].abs().max() > 1e-2
    assert torch.equal(half.cam_from_world, exact.cam_from_world)


def test_what_a_frame_sees_cannot_be_exchanged() -> None:
    for target in ("global blocks", "camera head", "every block"):
        with pytest.raises(UsageError, match="cannot be exchanged: it sees frames in order"):
            lean3r.compress(model(), {"steps": [{"target": target, "mechanism": "block_sparse"}]})
    with pytest.raises(UsageError, match="cannot be removed"):
        lean3r.compress(model(), {"steps": [{"remove": "global blocks 1"}]})


def test_there_is_no_reference_view_to_choose() -> None:
    with pytest.raises(UsageError, match="its first views always serve as such"):
        model()(Views(pictures()), reference=1)


def test_the_official_file_has_a_name_of_its_own() -> None:
    assert official_source("lingbot-map") == "hf:robbyant/lingbot-map/lingbot-map.pt"
    assert official_source("vggt") == "hf:facebook/VGGT-1B"


def test_a_checkpoint_is_told_by_its_scale_token(tmp_path: Path) -> None:
    with torch.device("meta"):
        official = LingbotMap(LingbotConfig(encoder_depth=1, pairs=1, keep=(0, 0, 0, 0), camera_depth=1))
    names = official.KEY_MAP.write(official.state_dict())
    assert "aggregator.scale_token" in names and not any(name.startswith("point_head") for name in names)
    found = model()
    path = tmp_path / "small.safetensors"
    save_weights(found.KEY_MAP.write(found.state_dict()), path, {})
    with pytest.raises(WeightsError, match=r"aggregator\.scale_token"):
        lean3r.load("vggt", weights=path)


def test_rotary_time_is_computed() -> None:
    """For any time, and relative in it: what two frames see of each other depends on their distance only."""
    assert axes(64) == (20, 22, 22) and sum(axes(16)) == 16
    layout = TokenLayout(1, 2, 2, 3)
    x, y = torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(0)).double()

    def seen(early: int, late: int) -> Tensor:
        turned = []
        for value, time in ((x, early), (y, late)):
            angles = time_angles(layout, (time,), 64)[0]
            turned.append(rotate_pairs(value, angles.cos(), angles.sin()))
        return turned[0] @ turned[1].T

    torch.testing.assert_close(seen(3, 10), seen(100_003, 100_010))
    assert not torch.allclose(seen(3, 10), seen(3, 11))
    cos, sin = TimeRope([7, 1_000_000]).table(layout, 64, torch.device("cpu"))
    angles = time_angles(layout, (7, 1_000_000), 64).flatten(0, 1)
    torch.testing.assert_close(cos, angles.cos().float())
    torch.testing.assert_close(sin, angles.sin().float())
