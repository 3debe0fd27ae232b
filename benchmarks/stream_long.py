"""What a long stream holds and how long a frame takes, late as early; see stream.py.

The models have no knowledge or know the answer, so that what is measured is the stream's own. Times are those of the
processor, and leave out the making of frames.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from test_cache import lively
from walk import Knows, frame, walk
from walks import Walk

import lean3r
from lean3r.layers.frames import CachePolicy
from lean3r.models.lingbot import LingbotMap
from lean3r.pipeline.memory import used_bytes
from lean3r.stream import solver
from lean3r.stream.cache import CacheResult, CacheStream, cache_bytes
from lean3r.stream.cached import CachedEngine
from lean3r.stream.run import Stream

CPU = torch.device("cpu")
LAST = 500  # frames over which times are taken
WAY = 200  # frames to and as many fro


class Source:
    """Pictures along a wall, to and fro, and the processor time that the stream takes for each."""

    def __init__(self, count: int) -> None:
        there = [image for _, image in walk(WAY)]
        self._pictures = [*there, *there[-2:0:-1]]
        self._count = count
        self.network_s = 0.0  # grows with each frame
        self._frames: deque[tuple[float, float]] = deque(maxlen=LAST)

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        for index in range(self._count):
            image = self._pictures[index % len(self._pictures)]
            begun, before = time.process_time(), self.network_s
            yield index / 10, image
            self._frames.append((time.process_time() - begun, self.network_s - before))

    @property
    def figures(self) -> dict[str, float]:
        """Of the last frames: median, 95 %, 99 % and mean, in milliseconds; and the median outside the network."""
        ms, network = 1000 * np.array(self._frames).T
        (p50, p95, p99), outside = np.percentile(ms, [50, 95, 99]), np.median(ms - network)
        found = {"p50": p50, "p95": p95, "p99": p99, "mean": ms.mean(), "outside_network": outside}
        return {name: round(float(value), 3) for name, value in found.items()}


def of_long(numbers: list[int]) -> list[dict[str, Any]]:
    """Memory and time of a stream in windows after so many frames; nothing is stored. One frame in thirty or so
    completes a window: the 99 % are the time of one."""
    source, points = Source(max(numbers)), lean3r.PointOptions(max_points=20_000)
    options = lean3r.StreamOptions(window=6, overlap=3, keyframe_step=0.3)
    stream = lean3r.stream(Knows(), source, options=options, refine="off", points=points)
    rows = []
    for each in stream:
        if each.index + 1 in numbers:
            gc.collect()
            figures = stream.figures
            kept = {key: figures[key] for key in ("frames", "keyframes", "windows", "held_mb")}
            rows.append({**kept, "process_mb": round(used_bytes(CPU) / 1e6, 1), "frame_ms": source.figures})
    return rows


def of_rest(frames: int = 5000) -> dict[str, Any]:
    """A camera that rests: keyframes, drift, and memory early and late."""
    still = frame(0.5)
    options = lean3r.StreamOptions(window=8, overlap=3)
    stream = lean3r.stream(Knows(), ((i / 30, still) for i in range(frames)), options=options, refine="off")
    held, drift = {}, 0.0
    for each in stream:
        if each.index in (1000, frames - 1):
            held[each.index + 1] = stream.figures["held_mb"]
        drift = max(drift, float(np.abs(each.cam_from_world - np.eye(4)).max()))
    return {"frames": frames, "keyframes": stream.keyframes, "drift": drift, "held_mb": held}


def of_cache(numbers: list[int]) -> list[dict[str, Any]]:
    """Memory and time of a stream with a cache (a small random LingBot-Map) after so many frames: the bytes of its
    tensors against the formula, and the share of the time outside the network."""
    model, source = lively(), Source(max(numbers))
    options = lean3r.StreamOptions(window=16, overlap=1, keyframe_step=0.05)
    points = lean3r.PointOptions(max_points=20_000)
    stream, step = lean3r.stream(model, source, options=options, resolution=70, points=points), model.step

    def timed(*arguments: Any, **named: Any) -> Any:
        begun = time.process_time()
        found = step(*arguments, **named)
        source.network_s += time.process_time() - begun
        return found

    model.step = timed  # type: ignore[method-assign]
    rows = []
    for each in stream:
        if each.index + 1 in numbers:
            gc.collect()
            tensors, stored, formula = _cache_of(stream, model)
            rows.append(
                {
                    **{key: stream.figures[key] for key in ("frames", "keyframes", "windows", "held_mb")},
                    "stored": stored,
                    "cache_bytes": tensors,
                    "formula_bytes": formula,
                    "process_mb": round(used_bytes(CPU) / 1e6, 1),
                    "frame_ms": source.figures,
                }
            )
    return rows


def _cache_of(stream: Stream, model: LingbotMap) -> tuple[int, int, int]:
    """Bytes of the cache's tensors, frames that it holds, and the bytes that the formula gives for these."""
    engine = stream.engine
    assert isinstance(engine, CachedEngine) and engine._cache is not None and engine._size is not None
    held = engine._cache._cache
    if held is None:
        return 0, 0, 0
    tensors = sum(each.untyped_storage().nbytes() for each in held.blocks.tensors + held.camera.tensors)
    stored = engine._cache.stored
    height, width = engine._recent[-1].depth.shape
    return tensors, stored, cache_bytes(model, engine.policy_of(engine._size), stored, height, width)


def of_pages(frames: int = 48, seeds: int = 4) -> list[dict[str, Any]]:
    """What less of a cache changes: frames see the share of their window that is nearest to them, or all of it in less
    exact numbers, or a smaller window. Small random LingBot-Maps on a rendered walk: an error of the mechanism, not of
    a trained network."""
    exact = CachePolicy(anchors=2, window=16, recent=2)
    less: dict[str, CachePolicy] = {
        "bfloat16": replace(exact, pages="bfloat16"),
        "float8": replace(exact, pages="float8"),
        "nearest half": replace(exact, top_pages=8 - exact.recent),
        "nearest quarter": replace(exact, top_pages=4 - exact.recent),
        "three quarters": replace(exact, window=12),
        "half": replace(exact, window=8),
    }
    changes: dict[str, list[tuple[float, float, float]]] = {name: [] for name in less}
    for seed in range(seeds):
        pictures, model = Walk(frames, (56, 42), seed).render(range(frames)), lively(seed + 1)
        whole = _streamed(model, exact, pictures)
        assert _changes(_streamed(model, replace(exact, top_pages=exact.window), pictures), whole)[0] == 0
        for name, policy in less.items():
            changes[name].append(_changes(_streamed(model, policy, pictures), whole))
    rows = []
    for name, each in changes.items():
        depth, shift, turn = (float(np.median(values)) for values in zip(*each, strict=True))
        figures = {"depth_percent": 100 * depth, "position_percent": 100 * shift, "rotation_deg": turn}
        rows.append({"less": name, "frames": frames, "seeds": seeds, **figures})
    return rows


def _streamed(model: LingbotMap, policy: CachePolicy, pictures: np.ndarray) -> list[CacheResult]:
    stream = CacheStream(model, policy)
    return [result for picture in pictures for result in stream.push(picture)] + stream.finish()


def _changes(found: list[CacheResult], exact: list[CacheResult]) -> tuple[float, float, float]:
    """Medians over frames: relative change of depth, change of the position by the extent of the way, rotation in
    degrees."""
    depth = [float((a.depth / b.depth - 1).abs().median()) for a, b in zip(found, exact, strict=True)]
    poses = [np.stack([np.linalg.inv(r.cam_from_world.double().numpy()) for r in rs]) for rs in (found, exact)]
    extent = np.linalg.norm(np.ptp(poses[1][:, :3, 3], axis=0))
    shift = np.linalg.norm(poses[0][:, :3, 3] - poses[1][:, :3, 3], axis=1) / extent
    turn = poses[0][:, :3, :3].transpose(0, 2, 1) @ poses[1][:, :3, :3]
    angle = np.arccos(np.clip((np.trace(turn, axis1=1, axis2=2) - 1) / 2, -1, 1))
    return float(np.median(depth)), float(np.median(shift)), float(np.rad2deg(np.median(angle)))


def of_share(frames: int = 160) -> dict[str, Any]:
    """What a stream of nano takes beyond the reconstruction of its windows: keyframes, joins, the cloud."""
    pictures = [*Walk(frames)]
    whole, inside = solver.reconstruct, 0.0

    def timed(*arguments: Any, **named: Any) -> Any:
        nonlocal inside
        begun = time.process_time()
        try:
            return whole(*arguments, **named)
        finally:
            inside += time.process_time() - begun

    model = lean3r.load("nano")
    solver.reconstruct = timed  # type: ignore[assignment]
    try:
        begun = time.process_time()
        stream = lean3r.stream(model, pictures, refine="off")
        keyframes = sum("keyframe" in each.flags for each in stream)
        total = time.process_time() - begun
    finally:
        solver.reconstruct = whole
    return {
        "frames": frames,
        "keyframes": keyframes,
        "frame_ms": round(1000 * total / frames, 1),
        "outside_ms": round(1000 * (total - inside) / frames, 1),
        "outside_percent": round(100 * (total - inside) / total, 1),
    }
