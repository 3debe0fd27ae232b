"""Laws of the cache engine on a small random network: causality, one pass, save, restore, fork, bytes, refusals."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from contracts.tiny import tiny
from torch import Tensor

from lean3r.errors import InputError, UsageError
from lean3r.layers.frames import CachePolicy
from lean3r.models.lingbot import LingbotMap
from lean3r.stream.cache import CacheResult, CacheStream, cache_bytes
from lean3r.types import Views

POLICY = CachePolicy(anchors=2, window=3, reserve=4)
PARTS = ("cam_from_world", "intrinsics", "depth", "conf")
MANY = [
    POLICY,
    replace(POLICY, interval=3),
    replace(POLICY, motion_px=2.0, max_gap=3),
    replace(POLICY, pages="float8"),
    replace(POLICY, pages="bfloat16", camera_passes=1),
    replace(POLICY, top_pages=1, recent=1),
    replace(POLICY, top_pages=1, recent=0, pages="float8", motion_px=2.0),
    replace(POLICY, memory=1),
    replace(POLICY, memory=0),
]
each_policy = pytest.mark.parametrize("policy", MANY, ids=range(len(MANY)))


@pytest.fixture(scope="module")
def model() -> LingbotMap:
    return lively()


def lively(seed: int = 1) -> LingbotMap:
    """Weights with which every frame shows in the later ones."""
    found = copy.deepcopy(tiny("lingbot-map"))
    assert isinstance(found, LingbotMap)
    random = torch.Generator().manual_seed(seed)
    for name, parameter in found.named_parameters():
        if name.endswith(("_token", "pose_tokens", "pos_embed")):
            torch.nn.init.normal_(parameter, std=0.5, generator=random)
        elif name.endswith("_norm.weight"):
            torch.nn.init.normal_(parameter, 1.4, 0.1, generator=random)
        elif parameter.dim() > 1 and "pose_branch" not in name:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5, generator=random)
    return found


def pictures(count: int, height: int = 42, width: int = 56) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(7))


def run(stream: CacheStream, images: Tensor, *, end: bool = True) -> list[CacheResult]:
    return [r for image in images for r in stream.push(image)] + (stream.finish() if end else [])


def assert_identical(a: list[CacheResult], b: list[CacheResult]) -> None:
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        flags = [(r.index, r.is_anchor, r.is_keyframe, r.motion_px) for r in (one, other)]
        assert flags[0] == flags[1]
        assert all(torch.equal(getattr(one, part), getattr(other, part)) for part in PARTS), one.index


def assert_same_state(a: CacheStream, b: CacheStream) -> None:
    one, other = a.state(), b.state()
    assert one.keys() == other.keys()
    for name, value in one.items():
        twin = other[name]
        if isinstance(value, Tensor) and isinstance(twin, Tensor):
            assert torch.equal(value.contiguous().view(torch.uint8), twin.contiguous().view(torch.uint8)), name
        else:
            assert value == twin, name


@each_policy
def test_a_result_does_not_depend_on_later_frames(model: LingbotMap, policy: CachePolicy) -> None:
    images = pictures(12)
    whole = run(CacheStream(model, policy), images)
    assert [r.index for r in whole] == list(range(12))
    assert_identical(run(CacheStream(model, policy), images[:8]), whole[:8])


@pytest.mark.parametrize("interval", [1, 2, 3])
@pytest.mark.parametrize("memory", [0, 2, 6])
def test_a_stream_equals_the_single_pass(
    model: LingbotMap, interval: int, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = replace(POLICY, interval=interval, memory=memory)
    monkeypatch.setattr(model, "policy", policy)
    images = pictures(11)
    with torch.no_grad():
        once = model(Views(images[None]))
    for i, result in enumerate(run(CacheStream(model), images)):
        for part in PARTS:
            torch.testing.assert_close(getattr(result, part), getattr(once, part)[0, i], rtol=1e-4, atol=1e-5)


def test_scenes_and_padding_of_the_single_pass(model: LingbotMap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "policy", POLICY)
    images = pictures(14).unflatten(0, (2, 7))
    mask = torch.ones(2, 7, 42, 56, dtype=torch.bool)
    mask[:, 1::2, 28:] = False
    with torch.no_grad():
        both = model(Views(images, mask))
        for scene in range(2):
            alone = model(Views(images[scene, None], mask[scene, None]))
            torch.testing.assert_close(both.depth[scene, None], alone.depth, rtol=1e-4, atol=1e-5)
        plain = model(Views(images, torch.ones_like(mask)))
        torch.testing.assert_close(plain.depth, model(Views(images)).depth, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain.depth[:, 6], both.depth[:, 6], rtol=1e-4, atol=1e-5)


def test_the_order_of_frames_counts(model: LingbotMap) -> None:
    images = pictures(4)
    with torch.no_grad():
        found = [model(Views(images[None, order])).depth[0].sum((1, 2)) for order in ([0, 1, 2, 3], [0, 2, 1, 3])]
    assert not torch.allclose(found[0], found[1][[0, 2, 1, 3]], rtol=1e-6)


@each_policy
@pytest.mark.parametrize("at", [1, 4, 9])
def test_a_restored_stream_goes_on_as_if_never_stopped(model: LingbotMap, policy: CachePolicy, at: int) -> None:
    images = pictures(13)
    stream = CacheStream(model, policy)
    run(stream, images[:at], end=False)
    state = stream.state()
    later = run(stream, images[at:])
    other = CacheStream(model, policy)
    other.restore(dict(sorted(state.items(), reverse=True)))
    assert other.bytes == sum(v.nbytes for v in state.values() if isinstance(v, Tensor)) if at == 1 else other.bytes
    assert_identical(run(other, images[at:]), later)
    assert_same_state(stream, other)


@each_policy
def test_a_query_and_a_fork_leave_no_trace(model: LingbotMap, policy: CachePolicy) -> None:
    images, others = pictures(12), pictures(14)[12:]
    plain, asked = CacheStream(model, policy), CacheStream(model, policy)
    expected, found = run(plain, images[:5], end=False), run(asked, images[:5], end=False)
    for image in images[5:]:
        expected += plain.push(image)
        answer = asked.query(others[0])
        twin = asked.fork()
        run(twin, others)
        found += asked.push(image)
        assert answer.index == found[-1].index and not answer.is_keyframe
    assert_identical(found, expected)
    assert_same_state(asked, plain)


@each_policy
def test_bytes_are_those_of_the_formula(model: LingbotMap, policy: CachePolicy) -> None:
    stream = CacheStream(model, policy)
    assert stream.bytes == 0 == cache_bytes(model, policy, 0, 42, 56)
    for count, image in enumerate(pictures(25)):
        stream.push(image)
        if count == 0:
            assert stream.bytes == image.nbytes and stream.stored == 0
            continue
        held = stream._cache
        assert held is not None
        tensors = held.blocks.tensors + held.camera.tensors
        assert stream.bytes == sum(t.untyped_storage().nbytes() for t in tensors)
        assert stream.bytes == cache_bytes(model, policy, stream.stored, 42, 56)


def test_the_official_size_takes_what_the_authors_count() -> None:
    """98 304 bytes a token in the blocks and 262 144 bytes a frame in the camera head, in bfloat16 and float32."""
    with torch.device("meta"):
        model = LingbotMap()
    policy = CachePolicy(reserve=320)
    pages = (8 + 64 + 1) * 999
    found = cache_bytes(model, policy, 319, 378, 518, torch.bfloat16)
    assert found == 98_304 * (6 * 320 + pages) + 262_144 * 320
    needed = 98_304 * (6 * 20_000 + pages) + 262_144 * 20_000
    assert needed < cache_bytes(model, policy, 20_000, 378, 518, torch.bfloat16) < 1.25 * needed


def test_a_resting_camera_stores_nothing(model: LingbotMap) -> None:
    stream = CacheStream(model, replace(POLICY, motion_px=1e6, max_gap=1000))
    image = pictures(1)[0]
    run(stream, image.expand(3, -1, -1, -1), end=False)
    before, stored = stream.bytes, stream.stored
    results = run(stream, image.expand(20, -1, -1, -1), end=False)
    assert (stream.bytes, stream.stored) == (before, stored) == (before, 3)
    assert not any(r.is_keyframe for r in results)
    assert all(torch.equal(getattr(r, part), getattr(results[0], part)) for r in results for part in PARTS)


def test_motion_and_the_gap_make_keyframes(model: LingbotMap) -> None:
    images = pictures(12)
    every = run(CacheStream(model, replace(POLICY, motion_px=0.0)), images)
    assert all(r.is_keyframe for r in every) and all((r.motion_px is None) == r.is_anchor for r in every)
    seldom = run(CacheStream(model, replace(POLICY, motion_px=1e6, max_gap=4)), images)
    assert [r.index for r in seldom if r.is_keyframe] == [0, 1, 2, 6, 10]


def test_frames_without_a_place_leave_no_trace(model: LingbotMap) -> None:
    """The keyframes of a stream alone give what they give among others."""
    images = pictures(14)
    among = run(CacheStream(model, replace(POLICY, interval=3)), images)
    kept = [r.index for r in among if r.is_keyframe]
    alone = run(CacheStream(model, POLICY), images[kept])
    for one, other in zip([among[i] for i in kept], alone, strict=True):
        assert all(torch.equal(getattr(one, part), getattr(other, part)) for part in PARTS)


@pytest.mark.parametrize("pages", ["auto", "float8"])
def test_enough_pages_are_all_pages(model: LingbotMap, pages: str) -> None:
    images, policy = pictures(12), replace(POLICY, window=6, pages=pages)
    exact = run(CacheStream(model, policy), images)
    assert_identical(run(CacheStream(model, replace(policy, top_pages=5, recent=0)), images), exact)
    fewer = run(CacheStream(model, replace(policy, top_pages=1, recent=1)), images)
    assert not torch.equal(fewer[-1].depth, exact[-1].depth)
    assert_identical(fewer[:5], exact[:5])


@pytest.mark.parametrize(("pages", "decibels"), [("bfloat16", 30.0), ("float8", 20.0)])
def test_coarse_pages_are_close(model: LingbotMap, pages: str, decibels: float) -> None:
    images = pictures(12)
    exact, coarse = (run(CacheStream(model, replace(POLICY, pages=p)), images) for p in ("float32", pages))
    a, b = (torch.stack([r.depth.log() for r in rs]) for rs in (exact, coarse))
    assert 10 * torch.log10(a.square().mean() / (a - b).square().mean()) > decibels


@pytest.mark.parametrize("size", [(42, 56), (70, 14), (14, 98)])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_short_streams_and_odd_sizes(model: LingbotMap, count: int, size: tuple[int, int]) -> None:
    policy = replace(POLICY, anchors=3)
    stream = CacheStream(model, policy)
    results = run(stream, pictures(count, *size))
    assert [(r.index, r.is_anchor, r.is_keyframe) for r in results] == [(i, True, True) for i in range(count)]
    assert all(r.depth.shape == r.conf.shape == size for r in results)
    with pytest.raises(UsageError, match="finished"):
        stream.push(pictures(1, *size)[0])


def test_more_frames_than_the_official_table(model: LingbotMap) -> None:
    """The authors' rotary table ends at 1,024 stored frames. Here the memory of 8 frames, repeated, makes as many."""
    images, stream = pictures(11), CacheStream(model, POLICY)
    run(stream, images[:8], end=False)
    state = stream.state()
    for name, value in state.items():
        if name.endswith(".data"):
            assert isinstance(value, Tensor)
            memory = value[:, :, : 8 * (6 if "blocks" in name else 1)]
            state[name] = torch.cat([memory.repeat(1, 1, 127, 1), value], 2)
    stored = {"cache.blocks.stored": 1024, "cache.camera.stored": 1024, "index": 1024}
    stream.restore(state | stored)
    results = run(stream, images[8:])
    assert [r.index for r in results] == [1024, 1025, 1026] and stream.stored == 1027
    assert all(bool(getattr(r, part).isfinite().all()) for r in results for part in PARTS)
    assert stream.bytes == cache_bytes(model, POLICY, 1027, 42, 56)


def test_bytes_and_numbers_are_the_same_picture(model: LingbotMap) -> None:
    codes = (pictures(3) * 255).round().to(torch.uint8)
    as_bytes = run(CacheStream(model, POLICY), codes.permute(0, 2, 3, 1))
    as_arrays = run(CacheStream(model, POLICY), codes.float() / 255)
    assert_identical(as_bytes, as_arrays)
    stream = CacheStream(model, POLICY)
    assert stream.push(codes[0].permute(1, 2, 0).numpy()) == []


def test_half_precision(model: LingbotMap, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in bfloat16: so are the pages, but not what the camera head keeps."""
    images, exact = pictures(8), run(CacheStream(model, POLICY), pictures(8))
    monkeypatch.setattr(model, "origin", replace(model.origin, dtype=torch.bfloat16))
    stream = CacheStream(model, POLICY)
    results = run(stream, images)
    held = stream._cache
    assert held is not None
    assert {t.dtype for t in held.blocks.tensors} == {torch.bfloat16}
    assert {t.dtype for t in held.camera.tensors} == {torch.float32}
    assert stream.bytes == cache_bytes(model, POLICY, 8, 42, 56, torch.bfloat16)
    for one, other in zip(results, exact, strict=True):
        assert all(getattr(one, part).dtype == torch.float32 for part in PARTS)
        torch.testing.assert_close(one.depth, other.depth, rtol=0.1, atol=0.05)


def test_a_step_that_fails(model: LingbotMap, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that is not kept breaks nothing, the first call may be repeated, any other has to be restored."""
    images = pictures(8)
    expected = run(CacheStream(model, POLICY), images)
    fail = {"now": True}
    depth_maps = model.depth_maps

    def sometimes(tokens):
        if fail["now"]:
            raise MemoryError
        return depth_maps(tokens)

    monkeypatch.setattr(model, "depth_maps", sometimes)
    stream = CacheStream(model, POLICY)
    stream.push(images[0])
    with pytest.raises(MemoryError):
        stream.push(images[1])
    fail["now"] = False
    found = stream.finish() if stream.stored else stream.push(images[1])
    found += run(stream, images[2:5], end=False)
    state = stream.state()
    fail["now"] = True
    with pytest.raises(MemoryError):
        stream.query(images[5])
    fail["now"] = False
    found += stream.push(images[5])
    fail["now"] = True
    with pytest.raises(MemoryError):
        stream.push(images[6])
    fail["now"] = False
    for call in (stream.state, lambda: stream.push(images[6]), lambda: stream.query(images[6])):
        with pytest.raises(UsageError, match="restore"):
            call()
    stream.restore(state)
    found = found[:5] + run(stream, images[5:])
    assert_identical(found, expected)


def test_refusals(model: LingbotMap) -> None:
    stream = CacheStream(model, POLICY)
    with pytest.raises(UsageError, match="waits for 2 anchors"):
        stream.query(pictures(1)[0])
    stream.push(pictures(1)[0])
    for size in ((42, 42), (56, 42)):
        with pytest.raises(UsageError, match=r"picture 1 has .* the stream 56x42"):
            stream.push(pictures(1, *size)[0])
    with pytest.raises(UsageError, match="multiples of 14"):
        CacheStream(model, POLICY).push(torch.zeros(3, 15, 14))
    with pytest.raises(InputError, match="picture 1 has NaN"):
        stream.push(torch.full((3, 42, 56), torch.nan))
    with pytest.raises(UsageError, match="uint8"):
        stream.push(torch.zeros(42, 56, 3))
    stream.push(pictures(1)[0])
    with pytest.raises(UsageError, match="window 3; expected 4"):
        CacheStream(model, replace(POLICY, window=4)).restore(stream.state())
    with pytest.raises(UsageError, match="scale"):
        state = stream.state()
        plain = {name: v for name, v in state.items() if not name.endswith("scale")}
        CacheStream(model, replace(POLICY, pages="float8")).restore(plain | {"cache.blocks.0.scale": torch.zeros(1)})
    with pytest.raises(UsageError, match="no cache"):
        CacheStream(tiny("nano"))  # type: ignore[arg-type]
    official = CacheStream(model, replace(POLICY, camera_keeps_all=True))
    run(official, pictures(2), end=False)
    with pytest.raises(UsageError, match="leave a trace"):
        official.query(pictures(1)[0])
    with pytest.raises(UsageError, match="window is 0"):
        CachePolicy(window=0)
