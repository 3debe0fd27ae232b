"""The cache engine: a stream of pictures through a causal network, one result a frame, in bounded memory.

What the network keeps of past frames is in layers/kv_cache.py; which frames it keeps says a CachePolicy
(layers/frames.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lean3r.errors import InputError, UsageError
from lean3r.geometry.flow import mean_motion_px
from lean3r.layers.frames import CachePolicy
from lean3r.models.causal import Cache, CausalModel, as_causal
from lean3r.types import Prediction, Views

SHAPES = ("anchors", "window", "memory")
"""The parts of a policy that a saved state depends on."""


@dataclass(frozen=True)
class CacheResult:
    """What a stream knows of one frame, as soon as it has seen it.

    cam_from_world [4, 4]; intrinsics [3, 3] in pixels of the picture; depth [H, W] z-depth in world units; conf [H, W],
    at least 1. The first camera is near the origin of the world; the scale is unknown, but the same for all frames.
    `motion_px` is how far pixels moved since the last keyframe, on average, if the policy asks for it.
    """

    index: int
    cam_from_world: Tensor
    intrinsics: Tensor
    depth: Tensor
    conf: Tensor
    is_anchor: bool
    is_keyframe: bool
    motion_px: float | None = None


@dataclass(frozen=True)
class _Keyframe:
    """The last keyframe: its index and camera."""

    index: int
    cam_from_world: Tensor
    intrinsics: Tensor


class CacheStream:
    """Pictures in order through a causal network with a cache; see `push`.

    All pictures have one size, sides multiples of the network's patch. Results are tensors on the network's device.
    """

    def __init__(self, model: CausalModel, policy: CachePolicy | None = None):
        """UsageError for a model without a cache. Without `policy` it is the model's own."""
        self.model = as_causal(model).eval()
        self.policy = policy or self.model.policy
        self._index = 0  # of the next frame
        self._waiting: list[Tensor] = []  # anchors, until all are there
        self._size: tuple[int, int] | None = None  # height, width
        self._cache: Cache | None = None
        self._last: _Keyframe | None = None
        self._finished = False
        self._broken = False  # a step failed while it wrote over what the cache held

    @property
    def bytes(self) -> int:
        """Bytes of all that the stream keeps: caches, and anchors as long as they wait for one another."""
        waiting = sum(image.nbytes for image in self._waiting)
        return waiting + (0 if self._cache is None else self._cache.bytes)

    @property
    def stored(self) -> int:
        """Frames that the cache holds, in full or by their memory."""
        return 0 if self._cache is None else self._cache.stored

    def push(self, image: np.ndarray | Tensor) -> list[CacheResult]:
        """Take the next picture, [H, W, 3] uint8 or [3, H, W] from 0 to 1; its result, or those of all anchors.

        While anchors are missing there is no result yet. UsageError for another size, after `finish`, and after a step
        that failed (for lack of memory, say) while it wrote over the cache. InputError for NaN pixels.
        """
        if self._finished:
            raise UsageError("the stream is finished; start a new one.")
        self._check_whole()
        picture = self._read(image)
        if self.stored:
            return [self._advance(picture)]
        self._waiting.append(picture)
        self._size = (picture.shape[1], picture.shape[2])
        if len(self._waiting) < self.policy.anchors:
            return []
        try:
            return self._open()
        except BaseException:
            self._waiting.pop()  # so that the picture can be pushed again
            raise

    def finish(self) -> list[CacheResult]:
        """End the stream: results of anchors that still wait, if it was shorter than the policy's number of them."""
        self._finished = True
        return self._open() if self._waiting else []

    def query(self, image: np.ndarray | Tensor) -> CacheResult:
        """The result that a picture would have as the next frame, without a trace in the stream.

        UsageError before the anchors are there, and with the policy `camera_keeps_all`, under which there is a trace.
        """
        self._check_whole()
        if self.policy.camera_keeps_all:
            raise UsageError("a query would leave a trace: the policy has camera_keeps_all. Leave it out.")
        if not self.stored:
            raise UsageError(f"the stream has no result yet: it waits for {self.policy.anchors} anchors.")
        prediction = self._step(self._read(image)[None], keep=False)
        return self._result(prediction, 0, self._index, False, False, self._motion(prediction))

    def fork(self) -> CacheStream:
        """Another stream in the same state; the two go on independently."""
        twin = CacheStream(self.model, self.policy)
        twin.restore(self.state())
        return twin

    def state(self) -> dict[str, Tensor | int | float]:
        """All that the stream keeps, as copies: restored into a stream with the same policy, it goes on as if it had
        never stopped. UsageError after a step that failed while it wrote over the cache."""
        self._check_whole()
        found: dict[str, Tensor | int | float] = {"index": self._index, "finished": int(self._finished)}
        found |= {f"policy.{name}": getattr(self.policy, name) for name in SHAPES}
        found |= {f"waiting.{number}": image.clone() for number, image in enumerate(self._waiting)}
        if self._size is not None:
            found |= {"height": self._size[0], "width": self._size[1]}
        if self._last is not None:
            found["last.index"] = self._last.index
            found |= {"last.cam_from_world": self._last.cam_from_world.clone()}
            found |= {"last.intrinsics": self._last.intrinsics.clone()}
        if self._cache is not None:
            found |= {f"cache.{name}": value for name, value in self._cache.state().items()}
        return found

    def restore(self, state: Mapping[str, Tensor | int | float]) -> None:
        """Go on from what `state` gave; UsageError if it is of another policy or network."""
        for name in SHAPES:
            saved, own = state.get(f"policy.{name}"), getattr(self.policy, name)
            if saved != own:
                raise UsageError(f"the state is of a stream with {name} {saved}; expected {own}. Use the same policy.")
        device = self._device
        size = (int(state["height"]), int(state["width"])) if "height" in state else None
        cache, last = None, None
        parts = {name.removeprefix("cache."): v for name, v in state.items() if name.startswith("cache.")}
        if parts and size is not None:
            cache = self.model.new_cache(self.policy, *size)
            cache.restore({name: v if isinstance(v, Tensor) else int(v) for name, v in parts.items()}, device)
        if "last.index" in state:
            camera = [torch.as_tensor(state[f"last.{name}"]).to(device) for name in ("cam_from_world", "intrinsics")]
            last = _Keyframe(int(state["last.index"]), *camera)
        waiting = [torch.as_tensor(state[n]) for n in sorted(state, key=_number) if n.startswith("waiting.")]
        self._broken = False
        self._index, self._finished, self._size = int(state["index"]), bool(state["finished"]), size
        self._cache, self._last, self._waiting = cache, last, [image.clone().to(device) for image in waiting]

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _check_whole(self) -> None:
        if self._broken:
            raise UsageError(f"the stream broke off in picture {self._index}; restore an earlier state.")

    def _read(self, image: np.ndarray | Tensor) -> Tensor:
        """A picture as [3, H, W] from 0 to 1 on the network's device; UsageError if it does not fit."""
        picture, number = torch.as_tensor(image), self._index + len(self._waiting)
        if picture.is_floating_point() and not bool(picture.isfinite().all()):
            raise InputError(f"picture {number} has NaN or infinite pixels; leave it out or read it again.")
        if picture.dtype == torch.uint8 and picture.dim() == 3 and picture.shape[-1] == 3:
            picture = picture.permute(2, 0, 1).to(self._device).float() / 255
        elif not (picture.is_floating_point() and picture.dim() == 3 and picture.shape[0] == 3):
            raise UsageError(
                f"got a picture of shape {list(picture.shape)}, {picture.dtype}; expected [height, width, 3] uint8 or "
                "[3, height, width] of numbers from 0 to 1."
            )
        height, width = picture.shape[1:]
        if self._size is not None and self._size != (height, width):
            old_height, old_width = self._size
            raise UsageError(
                f"picture {number} has {width}x{height} pixels, the stream {old_width}x{old_height}. "
                "Resize it, or start a new stream."
            )
        patch = self.model.patch
        if min(height, width) < patch or height % patch or width % patch:
            raise UsageError(f"got a picture of {width}x{height} pixels; expected sides that are multiples of {patch}.")
        return picture.to(self._device)

    def _open(self) -> list[CacheResult]:
        """The first call: all anchors together."""
        images = torch.stack(self._waiting)
        self._cache = self.model.new_cache(self.policy, images.shape[-2], images.shape[-1])
        try:
            prediction = self._step(images, keep=True)
        except BaseException:
            self._cache = None
            raise
        count, self._waiting = len(images), []
        results = [self._result(prediction, i, i, True, True, None) for i in range(count)]
        self._index = count
        self._remember(results[-1])
        return results

    def _advance(self, picture: Tensor) -> CacheResult:
        """A later call: one frame."""
        index, by_motion = self._index, self.policy.motion_px is not None
        keyframe = not by_motion and self.policy.is_keyframe(index)
        self._broken = keyframe
        prediction = self._step(picture[None], keep=keyframe)
        self._broken = False
        motion = self._motion(prediction)
        if motion is not None and self._last is not None:
            first, gap = index == self.policy.anchors, index - self._last.index
            keyframe = first or motion > (self.policy.motion_px or 0.0) or gap >= self.policy.max_gap
            if keyframe and self._cache is not None:
                self._broken = True
                self._cache.accept()
                self._broken = False
        result = self._result(prediction, 0, index, False, keyframe, motion)
        self._index += 1
        if keyframe:
            self._remember(result)
        return result

    def _step(self, images: Tensor, *, keep: bool) -> Prediction:
        """Run the network on pictures [S, 3, H, W], in the number type with which it was loaded."""
        assert self._cache is not None
        dtype = self.model.origin.dtype
        cast: AbstractContextManager = nullcontext()
        if dtype != torch.float32:
            cast = torch.autocast(self._device.type, dtype)
        with torch.no_grad(), cast:
            prediction = self.model.step(Views(images[None]), self._cache, keep=keep)
        floats = {name: v.float() for name, v in vars(prediction).items() if isinstance(v, Tensor)}
        return replace(prediction, **floats)

    def _motion(self, prediction: Prediction) -> float | None:
        """How far pixels moved since the last keyframe; None if the policy does not ask."""
        if self.policy.motion_px is None or self._last is None:
            return None
        assert prediction.depth is not None
        camera = prediction.intrinsics[0, 0], prediction.cam_from_world[0, 0]
        return mean_motion_px(prediction.depth[0, 0], *camera, self._last.intrinsics, self._last.cam_from_world)

    def _remember(self, result: CacheResult) -> None:
        if self.policy.motion_px is not None:
            self._last = _Keyframe(result.index, result.cam_from_world.clone(), result.intrinsics.clone())

    def _result(
        self, p: Prediction, at: int, index: int, anchor: bool, keyframe: bool, motion: float | None
    ) -> CacheResult:
        assert p.depth is not None and p.conf is not None
        parts = (p.cam_from_world[0, at], p.intrinsics[0, at], p.depth[0, at], p.conf[0, at])
        return CacheResult(index, *parts, anchor, keyframe, motion)


def _number(name: str) -> tuple[int, str]:
    """Sorts waiting.2 before waiting.10."""
    return len(name), name


def cache_bytes(
    model: CausalModel,
    policy: CachePolicy,
    stored: int,
    height: int,
    width: int,
    dtype: torch.dtype = torch.float32,
) -> int:
    """Bytes that a stream of pictures of height x width keeps once `stored` frames are stored, products in `dtype`.

    By a formula; the model may be on the meta device.
    """
    return model.new_cache(policy, height, width).expected_bytes(stored, dtype)
