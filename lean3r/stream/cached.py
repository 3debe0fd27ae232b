"""The engine of causal networks: every frame through the network once, with a cache of what it saw before.

Each frame has its estimate at once, with depth. Frames whose picture has moved are keyframes: the cache keeps them.
When it holds as many as the network was trained with, a new cache starts with the last keyframes, which join both
(join.py).
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lean3r.errors import OutOfMemoryError
from lean3r.geometry.content import sky
from lean3r.inputs.views import Picture, network_size
from lean3r.layers.frames import CachePolicy, Pages
from lean3r.layers.kv_buffer import DTYPES
from lean3r.models.base import Backbone
from lean3r.models.causal import as_causal
from lean3r.pipeline.budget import CHUNKS
from lean3r.pipeline.memory import Predictor, Setting, in_units, parse_memory, used_bytes
from lean3r.stream import sim3
from lean3r.stream.budget import CLOUD_BYTES, or_wait, sides_of
from lean3r.stream.cache import CacheResult, CacheStream, cache_bytes
from lean3r.stream.confirm import confirmed
from lean3r.stream.engine import Estimate, Frame, Settings, place
from lean3r.stream.options import StreamOptions
from lean3r.stream.pictures import Keyframe, has_content, picture_of
from lean3r.stream.result import Result, join_results

logger = logging.getLogger("lean3r")

NEVER = 1 << 60  # frames until a keyframe without motion: a resting camera stores nothing, however long it rests
WINDOWS = (4, 8, 16, 24, 32, 48, 64, 96, 128)


class CachedEngine:
    """See the module and Engine. The network sees the last `settings.window` keyframes in full, besides the anchors."""

    version, rejoined, bends = 0, (), MappingProxyType({})  # what has been given out is never revised

    def __init__(self, model: Backbone, settings: Settings) -> None:
        self.model, self.settings = as_causal(model), settings
        self._cache: CacheStream | None = None
        self._size: tuple[int, int] | None = None  # width and height of the frames
        self._waiting: list[tuple[Keyframe, Picture | None]] = []  # for anchors; None: nothing can be seen in them
        self._recent: deque[Result] = deque(maxlen=self.model.BRIDGE or self.model.policy.anchors)
        self._placements: list[np.ndarray] = []
        self._origin = np.eye(4)  # cam_from_world at which a cache begins that nothing joins to others
        self._is_fresh = True  # such a cache has no result yet
        self._has_anchor = False
        self._standing: frozenset[str] = frozenset()
        self._last = np.eye(4), np.full((3, 3), np.nan)  # pose in the window and intrinsics of the last frame
        self._reports: list[dict[str, Any]] = []

    @staticmethod
    def fit(
        model: Backbone,
        settings: Settings,
        options: StreamOptions,
        shape: Sequence[int],
        memory: str | int,
        queue: int,
    ) -> tuple[Settings, str]:
        """As `fit_stream` of the windows, with all that the cache ever holds: the largest pictures that fit, of these
        the most keyframes in full, of these the most exact numbers (FP8 keys and values change less than a window that
        is a quarter smaller: `benchmarks/stream.py --only pages`)."""
        causal = as_causal(model)
        budget, device = parse_memory(memory), next(model.parameters()).device
        cloud = CLOUD_BYTES * settings.points.max_points if device.type == "cpu" else 0
        waiting = queue * math.prod(shape) if device.type == "cpu" else 0
        dtype = model.origin.dtype
        predictor = Predictor(model, device, lambda: used_bytes(device))
        windows = [options.window] if options.window else [n for n in WINDOWS[::-1] if n <= settings.window]
        least = None
        for side in sides_of(model, settings):
            width, height = network_size(shape[1], shape[0], side, model.patch)
            # The most is all anchors at once; what graphs of single frames keep on a GPU (layers/kv_cache.py) is below.
            network = predictor.peak(Setting(causal.policy.anchors, height, width, CHUNKS[-1], dtype))
            for window, pages in product(windows, types_of(dtype)):
                window = min(window, causal.WIDEST or window)
                policy = replace(causal.policy, window=window, pages=pages)
                kept = cache_bytes(causal, policy, causal.LONGEST, height, width, dtype)
                total = network + kept + waiting + cloud
                least = total if least is None else min(least, total)
                numbers = str(dtype)[6:] if pages == "auto" else pages
                text = (
                    f"{window} keyframes of {width}x{height} in full, as {numbers}: "
                    f"process and network {in_units(network)} + cache {in_units(kept)} + waiting frames "
                    f"{in_units(waiting)} + cloud {in_units(cloud)} = {in_units(total)} of {in_units(budget)}"
                )
                if total <= budget:
                    return replace(settings, window=window, pages=pages, resolution=side), text
        assert least is not None
        raise OutOfMemoryError(
            f"{in_units(budget)} of memory cannot hold this stream, which takes {in_units(least)} at least. Give "
            f"--memory {least // 10**6 + 1}MB or more, a smaller --resolution or fewer --max-points{or_wait(queue)}."
        )

    def push(self, frame: Frame) -> list[Estimate]:
        """See Engine."""
        keyframe = Keyframe.of(frame)
        known = []
        if self._size is not None and (frame.is_cut or keyframe.size != self._size):
            known = self._rest()
            self._begin_apart(frame.index)
        self._size = keyframe.size
        picture = self._picture(keyframe) if has_content(keyframe) else None
        self._waiting.append((keyframe, picture))
        results: list[CacheResult] = []
        if picture is not None:
            if self._cache is None:
                self._cache = CacheStream(self.model, self.policy_of(keyframe.size))
            results = self._cache.push(picture.pixels)
        if results or self._is_flowing:
            known += self._drain(results)
        if self._cache is not None and self._cache.stored >= self.model.LONGEST:
            self._begin_again()
        return known

    def finish(self) -> list[Estimate]:
        """See Engine."""
        return self._rest()

    @property
    def _resolution(self) -> int:
        return self.settings.resolution or self.model.resolution

    @property
    def _is_flowing(self) -> bool:
        """Whether no frame waits for anchors: none has begun to, or all are there."""
        return self._cache is None or bool(self._cache.stored)

    def _network_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return network_size(*size, self._resolution, self.model.patch)

    def policy_of(self, size: tuple[int, int]) -> CachePolicy:
        """What the cache keeps of frames of this width and height."""
        motion_px = self.settings.step * max(self._network_size(size))
        window = min(self.settings.window, self.model.WIDEST or self.settings.window)
        pages = self.model.policy.pages if self.settings.pages == "auto" else self.settings.pages
        return replace(self.model.policy, window=window, pages=pages, motion_px=motion_px, max_gap=NEVER)

    def locate(self, frame: Frame) -> Estimate | None:
        """See Engine: as if it were the next frame; `uncertain` if no keyframe of the last ones confirms it."""
        keyframe = Keyframe.of(frame)
        if self._cache is None or self._size is None or not self._cache.stored or not has_content(keyframe):
            return None
        if self._network_size(keyframe.size) != self._network_size(self._size):
            return None
        picture = self._picture(keyframe)
        result = _result(keyframe, picture, self._cache.query(picture.pixels))
        flags = self._standing | (frozenset() if confirmed(result, self._recent) else {"uncertain"})
        return self._estimate(keyframe, result.pose, result.original_intrinsics, flags)

    def _rest(self) -> list[Estimate]:
        """The frames that wait for anchors which will not come."""
        return self._drain(self._cache.finish() if self._cache is not None and not self._cache.stored else [])

    def _drain(self, results: Sequence[CacheResult]) -> list[Estimate]:
        """The estimates of the waiting frames: a result for each of those that show anything."""
        left, known = iter(results), []
        for keyframe, picture in self._waiting:
            known.append(self._unseen(keyframe) if picture is None else self._seen(keyframe, picture, next(left)))
        self._waiting = []
        return known

    def _seen(self, keyframe: Keyframe, picture: Picture, found: CacheResult) -> Estimate:
        result = _result(keyframe, picture, found)
        flags = self._standing
        if self._is_fresh:
            self._placements.append(np.linalg.inv(self._origin) @ result.pose)
            self._is_fresh = False
        if not self._has_anchor:
            self._has_anchor, flags = True, flags | {"anchor"}
        if found.is_keyframe:
            self._recent.append(result)
            flags |= {"keyframe"}
        self._last = result.pose, result.original_intrinsics
        depth = result.depth * np.float32(sim3.parts(self._placements[-1])[0])
        if found.is_keyframe and not self.settings.points.keep_sky:
            depth[sky(result.image, np.ones(depth.shape, bool))] = 0
        return replace(
            self._estimate(keyframe, *self._last, flags),
            image=result.image,
            depth=depth,
            conf=result.conf,
            source=result.shown,
        )

    def _unseen(self, keyframe: Keyframe) -> Estimate:
        """The estimate of a frame without content: where the camera was last."""
        return self._estimate(keyframe, *self._last, self._standing | {"no-content", "lost", "uncertain"})

    def _picture(self, keyframe: Keyframe) -> Picture:
        return picture_of(keyframe, self._resolution, self.model.patch)

    def _begin_apart(self, index: int) -> None:
        """Frames of another size follow: a cache that nothing joins to this one, at the last camera."""
        logger.warning("nothing connects frame %d with those before: another film, or another size", index)
        if self._placements:
            self._origin = sim3.move_poses(self._placements[-1], self._last[0])
            self._standing = frozenset({"uncertain", "lost"})
        self._cache, self._is_fresh = None, True
        self._recent.clear()

    def _begin_again(self) -> None:
        """A new cache, with the last keyframes as its anchors, joined to the old one by them."""
        old, self._cache = list(self._recent), None  # before the next one takes as much memory
        cache = CacheStream(self.model, self.policy_of(old[0].keyframe.size))
        found = [each for result in old for each in cache.push(result.image)] + ([] if cache.stored else cache.finish())
        new = [_result(r.keyframe, Picture(r.source, r.image), each) for r, each in zip(old, found, strict=True)]
        joined = join_results(list(zip(old, new, strict=True)))
        if not joined.is_good:
            logger.warning("cache %d is not joined well: %s", len(self._placements), joined.why_bad)
        self._reports.append(
            {
                "window": len(self._placements),
                "first": old[0].keyframe.index,
                "last": old[-1].keyframe.index,
                "keyframes": len(old),
                "certain": len(old),
                "join": joined.as_dict(),
            }
        )
        self._placements.append(self._placements[-1] @ joined.matrix)
        lost = self._standing & {"lost", "uncertain"}  # what nothing joins to the first cache stays so
        self._standing = lost | {"joined"} if joined.is_good else frozenset({"uncertain", "lost"})
        self._cache, self._last = cache, (new[-1].pose, new[-1].original_intrinsics)
        self._recent = deque(new, maxlen=self._recent.maxlen)

    def _estimate(
        self, keyframe: Keyframe, pose: np.ndarray, intrinsics: np.ndarray, flags: frozenset[str]
    ) -> Estimate:
        return place(keyframe.index, keyframe.timestamp_s, keyframe.size, pose, intrinsics, flags, self._placements)

    @property
    def placements(self) -> np.ndarray:
        """See Engine."""
        return np.stack(self._placements) if self._placements else np.eye(4)[None]

    def take_reports(self) -> list[dict[str, Any]]:
        """See Engine."""
        reports, self._reports = self._reports, []
        return reports

    @property
    def bytes(self) -> int:
        """See Engine."""
        frames = sum(result.bytes for result in self._recent) + sum(k.pixels.nbytes for k, _ in self._waiting)
        return frames + (0 if self._cache is None else self._cache.bytes)

    def state(self) -> dict[str, Any]:
        """See Engine."""
        cache = None if self._cache is None else {k: _packed(v) for k, v in self._cache.state().items()}
        return {
            "cache": cache,
            "size": None if self._size is None else list(self._size),
            "waiting": [[keyframe.state(), picture is not None] for keyframe, picture in self._waiting],
            "recent": [result.state() for result in self._recent],
            "placements": list(self._placements),
            "origin": self._origin,
            "is_fresh": self._is_fresh,
            "has_anchor": self._has_anchor,
            "standing": sorted(self._standing),
            "last": list(self._last),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """See Engine."""
        self._size = None if state["size"] is None else (state["size"][0], state["size"][1])
        self._cache = None
        if state["cache"] is not None and self._size is not None:
            self._cache = CacheStream(self.model, self.policy_of(self._size))
            self._cache.restore({k: _unpacked(v) for k, v in state["cache"].items()})
        waiting = [(Keyframe.restored(each), shows) for each, shows in state["waiting"]]
        self._waiting = [(keyframe, self._picture(keyframe) if shows else None) for keyframe, shows in waiting]
        self._recent = deque([Result.restored(each) for each in state["recent"]], maxlen=self._recent.maxlen)
        self._placements, self._origin = list(state["placements"]), state["origin"]
        self._is_fresh, self._has_anchor = state["is_fresh"], state["has_anchor"]
        self._standing = frozenset(state["standing"])
        self._last = (state["last"][0], state["last"][1])


def types_of(dtype: torch.dtype) -> list[Pages]:
    """The number types of cached keys and values beside products in `dtype`, the most exact first."""
    smaller: list[Pages] = ["bfloat16", "float8"]
    return ["auto", *(each for each in smaller if DTYPES[each].itemsize < dtype.itemsize)]


def _result(keyframe: Keyframe, picture: Picture, found: CacheResult) -> Result:
    pose, intrinsics = (x.double().cpu().numpy() for x in (found.cam_from_world, found.intrinsics))
    depth, conf = (x.float().cpu().numpy() for x in (found.depth, found.conf))
    return Result(keyframe, picture.source, pose, intrinsics, depth, conf, picture.pixels, True, True)


def _packed(value: Tensor | int | float) -> Any:
    """A tensor of any number type as bytes, its type and its shape; numbers as they are."""
    if not isinstance(value, Tensor):
        return value
    flat = value.detach().cpu().contiguous().reshape(-1)
    return {"bytes": flat.view(torch.uint8).numpy(), "dtype": str(value.dtype)[6:], "shape": list(value.shape)}


def _unpacked(value: Any) -> Tensor | int | float:
    if not isinstance(value, Mapping):
        return value
    return torch.from_numpy(value["bytes"].copy()).view(getattr(torch, value["dtype"])).reshape(value["shape"])
