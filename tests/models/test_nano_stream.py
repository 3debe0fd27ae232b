"""nano-stream: nano where every frame is an anchor; else a causal network whose steps are its single pass."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from contracts.tiny import tiny
from stream.test_cache import PARTS, assert_identical, assert_same_state, run
from stream.walk import HEIGHT, WIDTH, frame, walk
from torch import Tensor

import lean3r
from lean3r.data.world.synthetic import SyntheticWorld
from lean3r.errors import UsageError
from lean3r.geometry.pose import camera_centers, invert_pose, make_pose
from lean3r.geometry.rotation import so3_exp
from lean3r.layers.frames import CachePolicy
from lean3r.models.nano import Nano
from lean3r.models.nano_stream import NanoStream
from lean3r.stream.cache import CacheStream, cache_bytes
from lean3r.train.losses.nano import nano_loss
from lean3r.train.losses.streamed import in_walking_order, streamed_loss
from lean3r.types import Views

POLICY = CachePolicy(anchors=1, window=3, memory=1, reserve=4)
MANY = [
    POLICY,
    replace(POLICY, anchors=3, window=2),
    replace(POLICY, window=1),
    replace(POLICY, motion_px=1.0, max_gap=3),
    replace(POLICY, pages="float8", memory=0),
    replace(POLICY, top_pages=1, recent=1),
]
each_policy = pytest.mark.parametrize("policy", MANY, ids=range(len(MANY)))


@pytest.fixture(scope="module")
def model() -> NanoStream:
    """Weights with which every frame shows in the later ones, and every part does something."""
    found = copy.deepcopy(tiny("nano-stream"))
    assert isinstance(found, NanoStream)
    random = torch.Generator().manual_seed(1)
    for name, parameter in found.named_parameters():
        if name.startswith(("anchor", "told")):
            torch.nn.init.normal_(parameter, std=0.1, generator=random)
        elif name.startswith("cameras") and parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.4, generator=random)
    return found


def pictures(count: int, height: int = 48, width: int = 64) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("interval", [1, 3])
@pytest.mark.parametrize("policy", [*MANY[:3], replace(POLICY, memory=0)], ids=range(4))
def test_a_stream_equals_the_single_pass(
    model: NanoStream, policy: CachePolicy, interval: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "policy", replace(policy, interval=interval))
    images = pictures(11)
    with torch.no_grad():
        once = model(Views(images[None]))
    for i, result in enumerate(run(CacheStream(model), images)):
        for part in PARTS:
            torch.testing.assert_close(getattr(result, part), getattr(once, part)[0, i], rtol=1e-5, atol=1e-5)
    first = once.cam_from_world[0, 0]
    torch.testing.assert_close(first, torch.eye(4), rtol=0, atol=1e-5)


def test_with_every_frame_an_anchor_it_is_nano(model: NanoStream, monkeypatch: pytest.MonkeyPatch) -> None:
    images, plain = pictures(5)[None], Nano(NanoStream.SMALLEST).eval()
    monkeypatch.setattr(model, "policy", replace(POLICY, anchors=5))
    state = {k: v for k, v in model.state_dict().items() if not k.startswith(("anchor", "told"))}
    plain.load_state_dict(state)
    zero = copy.deepcopy(model)
    for name, parameter in zero.named_parameters():
        if name.startswith(("anchor", "told")):
            parameter.data.zero_()
    with torch.no_grad():
        ours, theirs, other = zero(Views(images)), plain(Views(images)), model(Views(images))
    for part in PARTS:
        torch.testing.assert_close(getattr(ours, part), getattr(theirs, part), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(other.depth, ours.depth, rtol=1e-4)


@each_policy
def test_a_result_does_not_depend_on_later_frames(model: NanoStream, policy: CachePolicy) -> None:
    images = pictures(12)
    whole = run(CacheStream(model, policy), images)
    assert_identical(run(CacheStream(model, policy), images[:8]), whole[:8])
    changed = images.clone()
    changed[1 if policy.anchors == 1 else 0] = 0.5
    assert not torch.equal(run(CacheStream(model, policy), changed)[3].depth, whole[3].depth)


@each_policy
@pytest.mark.parametrize("at", [1, 4, 9])
def test_state_query_and_fork_leave_no_trace(model: NanoStream, policy: CachePolicy, at: int) -> None:
    images, others = pictures(13), pictures(15)[13:]
    stream = CacheStream(model, policy)
    expected = run(stream, images[:at], end=False)
    state = stream.state()
    expected = run(stream, images[at:])
    other = CacheStream(model, policy)
    other.restore(state)
    found = []
    for image in images[at:]:
        if other.stored:
            other.query(others[0])
            run(other.fork(), others)
        found += other.push(image)
    assert_identical(found + other.finish(), expected)
    assert_same_state(stream, other)


@each_policy
def test_bytes_are_those_of_the_formula(model: NanoStream, policy: CachePolicy) -> None:
    stream = CacheStream(model, policy)
    assert stream.bytes == 0 == cache_bytes(model, policy, 0, 48, 64)
    for image in pictures(25):
        stream.push(image)
        if stream.stored:
            assert stream.bytes == cache_bytes(model, policy, stream.stored, 48, 64)
    big = NanoStream()
    size = cache_bytes(big, big.policy, big.LONGEST, 240, 240)
    slots, patches = big.policy.anchors + big.policy.window + 1, 225
    kept = 2 * 3 * 128 * (slots * patches + 32) + slots * (patches * (64 + 128 + 2) + 3 * 17 + 2 * 13)
    assert size == 4 * kept


def test_a_state_of_other_sizes_is_refused(model: NanoStream) -> None:
    stream = CacheStream(model, POLICY)
    run(stream, pictures(3), end=False)
    state = {k: v[..., :3, :] if k.endswith("other") else v for k, v in stream.state().items()}  # type: ignore[index]
    with pytest.raises(UsageError, match="other of shape"):
        CacheStream(model, POLICY).restore(state)
    with pytest.raises(UsageError, match="nano keeps no cache"):
        CacheStream(tiny("nano"))  # type: ignore[arg-type]


def of_stream(model: NanoStream, source: Any, step: float = 0.005) -> Any:
    stream = lean3r.stream(model, source, options=lean3r.StreamOptions(window=4, keyframe_step=step), resolution=64)
    return list(stream), stream


def test_the_stream_command_s_engine_takes_it(model: NanoStream, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every frame has its estimate at once; past its length it begins anew, joined by more keyframes than anchors."""
    monkeypatch.setattr(model, "LONGEST", 8)
    monkeypatch.setattr(model, "BRIDGE", 3)
    found, stream = of_stream(model, walk(24))
    assert [each.index for each in found] == list(range(24)) and all(each.depth is not None for each in found)
    assert np.allclose(found[0].cam_from_world, np.eye(4), atol=1e-5)
    assert stream.reports and all(report["join"]["shared"] == 3 for report in stream.reports)
    still, _ = of_stream(model, [frame(0.5)] * 12, 0.1)
    assert not any("keyframe" in each.flags for each in still[4:])
    assert (found[0].width, found[0].height) == (WIDTH, HEIGHT)


def test_the_objective_is_nano_s_in_units_of_the_first_frame(model: NanoStream) -> None:
    batch = in_walking_order(SyntheticWorld(seed=3).batch(0, 2, views=5, height=32, width=40))
    learner = copy.deepcopy(model).train()
    before = learner.policy
    loss, parts = streamed_loss(learner, batch, 1.0)
    again, _ = streamed_loss(learner, batch, 1.0)
    other, _ = streamed_loss(learner, batch, 5.0)
    assert learner.policy == before and torch.equal(loss, again) and not torch.equal(loss, other)
    loss.backward()
    silent = [n for n, p in learner.named_parameters() if p.grad is None and not n.startswith("upsampler")]
    assert silent == [] and set(parts) >= {"match", "rotation", "depth"}
    learner.policy = replace(before, anchors=5)
    whole, _ = nano_loss(learner, batch)
    anchored, _ = streamed_loss(learner, batch, 1.0)
    torch.testing.assert_close(whole, anchored)


def test_walking_order_goes_to_the_nearest_view() -> None:
    batch = SyntheticWorld(seed=3).batch(1, 1, views=6, height=16, width=16)
    poses = torch.eye(4).repeat(1, 6, 1, 1)
    poses[0, :, 0, 3] = -torch.tensor([3.0, 0.0, 5.0, 1.0, 4.0, 2.0])
    mixed = replace(batch, cam_from_world=poses)
    walked = in_walking_order(mixed)
    at = camera_centers(walked.cam_from_world)[0, :, 0].tolist()
    assert at in ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0])
    first = poses[0, :, 0, 3].tolist().index(-at[0])
    assert torch.equal(walked.images[0, 0], batch.images[0, first])


def test_the_origin_of_a_stream_is_exact_in_half_precision(model: NanoStream, monkeypatch: pytest.MonkeyPatch) -> None:
    images, given = pictures(3), list[Tensor]()
    turned = make_pose(so3_exp(torch.tensor([0.3, -0.2, 0.5])), torch.tensor([1.0, -2.0, 3.0]))
    cache = model.new_cache(POLICY, *images.shape[-2:])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model.step(Views(images[None, :1]), cache)
        cache.frames.values[f"cam_from_world.{model.rounds - 1}"][:1] = turned
        monkeypatch.setattr(model, "predict", lambda _tokens, origin, **_: given.append(origin))
        model.step(Views(images[None, 1:2]), cache)
    assert torch.equal(given[0], invert_pose(turned)[None, None])
