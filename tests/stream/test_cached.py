"""Streams through a network with a cache: every frame at once, in bounded memory, resumed, begun anew and joined."""

from __future__ import annotations

import importlib
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.tiny import tiny
from PIL import Image

import lean3r
from lean3r.errors import OutOfMemoryError, UsageError
from lean3r.inputs.views import network_size
from lean3r.models.lingbot import LingbotMap
from lean3r.pipeline.memory import Setting
from lean3r.pipeline.observer import Observer
from lean3r.stream.cache import CacheStream, cache_bytes
from lean3r.stream.cached import CachedEngine
from lean3r.stream.engine import Engine, Estimate, Settings
from lean3r.stream.join import Join
from lean3r.stream.options import StreamOptions
from lean3r.stream.pace import QUEUE
from lean3r.stream.windows import WindowEngine
from stream.walk import HEIGHT, WIDTH, frame, walk

SIDE = 70  # of network pictures: five patches
OPTIONS = lean3r.StreamOptions(window=4, keyframe_step=0.1)


@pytest.fixture(scope="module")
def model() -> LingbotMap:
    found = tiny("lingbot-map")
    assert isinstance(found, LingbotMap)
    return found


def run(model: LingbotMap, source: Any, out: Path | None = None, **more: Any) -> list[Estimate]:
    return list(lean3r.stream(model, source, out, options=OPTIONS, resolution=SIDE, **more))


def test_every_frame_has_its_estimate_with_depth_as_soon_as_it_comes(model: LingbotMap) -> None:
    pushed, delays = 0, []

    def source():
        nonlocal pushed
        for each in walk(30):
            pushed += 1
            yield each

    found = []
    for each in lean3r.stream(model, source(), options=OPTIONS, resolution=SIDE):
        found.append(each)
        delays.append(pushed - 1 - each.index)
    assert [each.index for each in found] == list(range(30))
    assert delays[0] == model.policy.anchors - 1 and not any(delays[8:])
    assert found[0].flags == {"anchor", "keyframe"} and all(each.depth is not None for each in found)
    assert np.allclose(found[0].cam_from_world, np.eye(4), atol=1e-5)
    assert 8 < sum("keyframe" in each.flags for each in found) < 30


def test_the_sky_of_keyframes_has_no_depth(model: LingbotMap) -> None:
    frames = [(time_s, image.copy()) for time_s, image in walk(12)]
    for _, image in frames:
        image[: HEIGHT // 3] = (150, 190, 250)
    kept, found = (run(model, frames, points=lean3r.PointOptions(keep_sky=keep)) for keep in (True, False))
    for whole, each in zip(kept, found, strict=True):
        assert whole.depth is not None and each.depth is not None and (whole.depth > 0).all()
        is_left = each.depth == whole.depth
        assert is_left[len(is_left) // 2 :].all() and (each.depth[~is_left] == 0).all()
        assert is_left[: len(is_left) // 5].any() == ("keyframe" not in each.flags)


def test_the_estimates_are_those_of_the_cache(model: LingbotMap) -> None:
    found = run(model, walk(14))
    policy = CachedEngine(model, Settings(window=4, step=0.1, resolution=SIDE)).policy_of((WIDTH, HEIGHT))
    plain = CacheStream(model, policy)
    results = [result for each in found if each.image is not None for result in plain.push(each.image)]
    first = np.linalg.inv(results[0].cam_from_world.double().numpy())
    for each, result in zip(found, results, strict=True):
        assert np.allclose(each.cam_from_world, result.cam_from_world.numpy() @ first, atol=1e-5)
        assert each.depth is not None and np.allclose(each.depth, result.depth.numpy(), rtol=1e-5)
        assert ("keyframe" in each.flags) == result.is_keyframe


@pytest.mark.parametrize("at", [5, 17])
def test_a_stream_that_was_stopped_goes_on_with_the_same_result(model: LingbotMap, at: int, tmp_path: Path) -> None:
    for index, (_, picture) in enumerate(walk(36)):
        Image.fromarray(picture).save(tmp_path / f"{index:03d}.png")
    folder = str(tmp_path)
    whole = run(model, folder, tmp_path / "whole")
    stream = lean3r.stream(model, folder, tmp_path / "cut", options=OPTIONS, resolution=SIDE)
    assert len(list(itertools.islice(stream, at))) == at
    del stream
    run(model, folder, tmp_path / "cut", resume=True)
    for name in ("trajectory_tum.txt", "cameras.json", "points.ply", "frames.bin"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert len(list((tmp_path / "whole" / "keyframes").iterdir())) == sum("keyframe" in e.flags for e in whole)


def test_past_the_trained_length_a_new_cache_is_joined_to_the_old_one(
    model: LingbotMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "LONGEST", 12)
    stream = lean3r.stream(model, walk(40), options=OPTIONS, resolution=SIDE)
    found = list(stream)
    assert stream.figures["windows"] > 1 and [each.index for each in found] == list(range(40))
    joins = [report["join"] for report in stream.reports]
    # What the command line prints of every window, whatever the engine.
    assert all({"window", "first", "last", "keyframes", "certain"} <= report.keys() for report in stream.reports)
    assert joins and all(each["shared"] == model.policy.anchors for each in joins)
    assert found[-1].flags & {"joined", "lost"} and found[-1].window == len(joins)


def test_frames_stay_lost_however_often_a_cache_begins_anew(model: LingbotMap, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches are joined to each other, but not to the first one."""
    sound = Join(np.eye(4), 0.0, 0.0, 0.0, 0.0, 2, 2)
    monkeypatch.setattr(importlib.import_module("lean3r.stream.cached"), "join_results", lambda pairs: sound)
    monkeypatch.setattr(model, "LONGEST", 12)
    wide, high = [list(walk(30)), [(3 + t, np.ascontiguousarray(np.rot90(image))) for t, image in walk(30)]]
    found = run(model, wide + high)
    assert "joined" in found[29].flags and "joined" in found[59].flags
    assert [each.index for each in found if {"lost", "uncertain"} <= each.flags] == list(range(30, 60))


def test_a_resting_camera_stores_nothing(model: LingbotMap) -> None:
    still = frame(0.5)
    stream = lean3r.stream(model, ((i / 30, still) for i in range(60)), options=OPTIONS, resolution=SIDE)
    held = [(each.flags, stream.figures["held_mb"]) for each in stream]
    assert sum("keyframe" in flags for flags, _ in held) <= model.policy.anchors + 1
    assert held[20][1] == held[-1][1]


def test_short_streams_black_frames_and_other_sizes(model: LingbotMap) -> None:
    assert [sorted(each.flags) for each in run(model, walk(1))] == [["anchor", "keyframe"]]
    black = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pictures = [black, *(frame(0.1 * i) for i in range(4)), black, *(frame(0.1 * i) for i in range(4, 12)), black]
    found = run(model, pictures)
    assert [each.index for each in found] == list(range(len(pictures)))
    assert [i for i, each in enumerate(found) if "no-content" in each.flags] == [0, 5, 14]
    turned = [np.ascontiguousarray(np.rot90(frame(0.1 * i))) for i in range(10)]
    found = run(model, [*(frame(0.1 * i) for i in range(10)), *turned])
    assert not any("lost" in each.flags for each in found[:10]) and all("lost" in each.flags for each in found[10:])
    assert (found[10].width, found[10].height) == (HEIGHT, WIDTH)
    assert np.allclose(found[10].cam_from_world, found[9].cam_from_world, atol=1e-5)


@pytest.mark.parametrize(
    "asked",
    [
        {"intrinsics": (140.0, 140.0, 80.0, 56.0)},
        {"refine": "on"},
        {"refine": lean3r.RefineOptions(lens="pinhole")},
        {"dense": "stereo"},
        {"options": lean3r.StreamOptions(overlap=1)},
    ],
)
def test_what_a_network_with_a_cache_cannot_do_is_refused(model: LingbotMap, asked: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="has no effect on a stream of lingbot-map"):
        lean3r.stream(model, walk(2), **asked)


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process and the network take 100 bytes a pixel, on every machine."""

    class Hundred:
        def __init__(self, *terms: Any) -> None: ...

        def peak(self, setting: Setting) -> int:
            return 100 * setting.views * setting.height * setting.width

    monkeypatch.setattr(importlib.import_module("lean3r.stream.cached"), "Predictor", Hundred)


def test_less_memory_takes_less_exact_numbers_then_smaller_windows_then_smaller_pictures(
    model: LingbotMap, predicted: None
) -> None:
    def fit(memory: int, **asked: Any) -> tuple[Settings, str]:
        return CachedEngine.fit(model, Settings(points=points), StreamOptions(**asked), (HEIGHT, WIDTH, 3), memory, 0)

    def needs(settings: Settings) -> int:
        width, height = network_size(WIDTH, HEIGHT, settings.resolution or 0, model.patch)
        policy = replace(model.policy, window=settings.window, pages=settings.pages)
        network = 100 * policy.anchors * height * width
        return network + cache_bytes(model, policy, model.LONGEST, height, width) + 140 * points.max_points

    points, taken, memory = lean3r.PointOptions(max_points=1000), [], 10**12
    while True:
        try:
            settings, text = fit(memory)
        except OutOfMemoryError as error:
            refused = str(error)
            break
        assert needs(settings) <= memory and f"{settings.window} keyframes" in text
        assert ("float32" if settings.pages == "auto" else settings.pages) in text
        taken.append((settings.resolution, settings.window, -["auto", "bfloat16", "float8"].index(settings.pages)))
        memory = needs(settings) - 1
    assert taken == sorted(taken, reverse=True) and [each[1:] for each in taken[:3]] == [(48, 0), (48, -1), (48, -2)]
    assert len({side for side, *_ in taken}) > 1 and len({window for _, window, _ in taken}) > 2
    least = int(refused.partition("--memory ")[2].partition("MB")[0]) * 10**6
    assert fit(least)[0].window == min(taken)[1]
    usual = lean3r.stream(model, walk(2), points=points, resolution=model.resolution, memory=least)
    with pytest.raises(OutOfMemoryError, match="a smaller --resolution"):  # which was asked for, though it is the usual
        next(iter(usual))
    assert {fit(memory, window=8)[0].window for memory in (10**12, needs(replace(settings, window=8)))} == {8}


def test_a_stream_with_less_exact_numbers_in_its_cache_goes_on_with_them(
    model: LingbotMap, predicted: None, tmp_path: Path
) -> None:
    told: list[str] = []

    class Listener(Observer):
        def fitted(self, text: str) -> None:
            told.append(text)

    _, text = CachedEngine.fit(model, Settings(resolution=SIDE), OPTIONS, (HEIGHT, WIDTH, 3), 10**12, 0)
    policy = CachedEngine(model, Settings(window=4, resolution=SIDE, pages="float8")).policy_of((WIDTH, HEIGHT))
    memory = 100 * policy.anchors * SIDE**2 + cache_bytes(model, policy, model.LONGEST, SIDE, SIDE) + 140 * 10**6
    whole = run(model, walk(24), memory=memory, observer=Listener())
    assert "as float32" in text and "as float8" in told[0]
    exact = run(model, walk(24))
    assert 0 < max(np.abs(a.cam_from_world - b.cam_from_world).max() for a, b in zip(whole, exact, strict=True)) < 0.2
    first = lean3r.stream(model, walk(24), tmp_path / "out", options=OPTIONS, resolution=SIDE, memory=memory)
    for each in first:
        if each.index == 18:
            break
    rest = lean3r.stream(
        model, walk(24), tmp_path / "out", options=OPTIONS, resolution=SIDE, memory=memory, resume=True
    )
    for each in rest:
        assert np.array_equal(each.cam_from_world, whole[each.index].cam_from_world)
    assert rest.settings.pages == "float8" and 'pages = "float8"' in (tmp_path / "out/config.toml").read_text()


def test_a_limit_on_memory_that_no_setting_meets_is_refused(model: LingbotMap) -> None:
    with pytest.raises(OutOfMemoryError, match="at least"):
        run(model, walk(9), memory="1MB")


def test_frames_that_wait_under_drop_count_as_memory(model: LingbotMap) -> None:
    def least(engine: type[Engine], queue: int) -> float:
        with pytest.raises(OutOfMemoryError, match=r"fewer --max-points(, or --drop off)?\.$") as refused:
            engine.fit(model, Settings(), StreamOptions(window=4), (1080, 1920, 3), 1, queue)
        assert ("--drop off" in str(refused.value)) == (queue > 0)
        return float(str(refused.value).partition("--memory ")[2].partition("MB")[0])

    for engine in (WindowEngine, CachedEngine):
        assert 300 < least(engine, 64) - least(engine, 0) < 500  # 64 frames of 6.2 MB

    asked: list[int] = []

    def fit(*terms: Any) -> tuple[Settings, str]:
        asked.append(terms[-1])
        return terms[1], ""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CachedEngine, "fit", staticmethod(fit))
        for drop in ("on", "off"):
            list(lean3r.stream(model, walk(3), memory="9GB", options=StreamOptions(drop=drop)))
    assert asked == [QUEUE, 0]
