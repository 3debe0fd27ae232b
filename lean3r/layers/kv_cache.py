"""Keys and values of past frames: one buffer for each attention layer, of which the valid rows are always one slice.

    free | memory of frame m-1 ... 1, 0 | pages of the anchors | pages of the window, a ring | spare page

Memory tokens (the first of every stored frame) grow to the left, and the buffer with them. A page holds the other
tokens of a frame; a new one takes the place of the window's oldest. A frame that is not stored, or not yet, lies in the
next free page and the next free memory rows, where the next frame overwrites it. Order does not matter to attention, so
nothing is moved or copied to be read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lean3r.attention.dense import softmax_attention
from lean3r.errors import UsageError
from lean3r.layers.frames import CachePolicy, Pages
from lean3r.layers.time_rope import TimeRope
from lean3r.tracing import without_autocast
from lean3r.types import TokenLayout

FP8_MAX = 448.0
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float8": torch.float8_e4m3fn}


@dataclass(frozen=True)
class CacheSizes:
    """Sizes of the buffers of `layers` layers: `memory` rows of every stored frame, `page` rows of those in a slot."""

    layers: int
    heads: int
    head_dim: int
    memory: int
    page: int
    anchors: int
    window: int
    reserve: int

    @property
    def full(self) -> int:
        """Frames that keep their page."""
        return self.anchors + self.window

    @property
    def slots(self) -> int:
        """Pages in a buffer, the spare one included."""
        return self.full + 1 if self.page else 0

    def capacity(self, stored: int) -> int:
        """Frames for whose memory there is room while `stored` frames are stored, one to come included."""
        room = self.reserve
        while room < stored + 1:
            room += max(self.reserve, room // 4)
        return room

    def bytes(self, stored: int, dtype: torch.dtype, *, digests: bool = False) -> int:
        """Bytes of all buffers when `stored` frames are stored, as `dtype`; none before the first."""
        if not stored:
            return 0
        room = self.capacity(stored)
        rows = room * self.memory + self.slots * self.page
        size = 2 * self.heads * rows * self.head_dim * dtype.itemsize
        if dtype == torch.float8_e4m3fn:
            size += 2 * self.heads * (room + self.slots) * torch.float32.itemsize
        if digests:
            size += self.heads * self.slots * self.head_dim * torch.float32.itemsize
        return self.layers * size


class Buffer:
    """Keys and values of one layer, `data` [2, H, rows, D]; FP8 has a `scale` [2, H, memory and pages] for each frame's
    memory rows and each page; `digest` [H, slots, D] holds mean keys of pages, if they are to be selected by them."""

    def __init__(self, sizes: CacheSizes, room: int, dtype: torch.dtype, device: torch.device, digests: bool):
        self.sizes = sizes
        self.room = room
        rows = room * sizes.memory + sizes.slots * sizes.page
        self.data = torch.empty(2, sizes.heads, rows, sizes.head_dim, dtype=dtype, device=device)
        self.scale = self.digest = None
        if dtype == torch.float8_e4m3fn:
            self.scale = torch.empty(2, sizes.heads, room + sizes.slots, device=device)
        if digests:
            self.digest = torch.empty(sizes.heads, sizes.slots, sizes.head_dim, device=device)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What it holds, by name."""
        found = {"data": self.data, "scale": self.scale, "digest": self.digest}
        return {name: value for name, value in found.items() if value is not None}

    def page_rows(self, slot: int, count: int = 1) -> slice:
        """The rows of pages [slot, slot + count)."""
        start = self.room * self.sizes.memory
        return slice(start + slot * self.sizes.page, start + (slot + count) * self.sizes.page)

    def memory_rows(self, frame: int, count: int = 1) -> slice:
        """The rows of the memory of frames [frame, frame + count), the last frame first."""
        size = self.sizes.memory
        return slice((self.room - frame - count) * size, (self.room - frame) * size)

    def write(self, k: Tensor, v: Tensor, frame: int, slot: int) -> None:
        """Store k and v [H, memory + page, D] of one frame."""
        size = self.sizes.memory
        for side, x in enumerate((k, v)):
            self._put(side, self.memory_rows(frame), self.room - 1 - frame, x[:, :size])
            if self.sizes.page:
                self._put(side, self.page_rows(slot), self.room + slot, x[:, size:])
        if self.digest is not None:
            self.digest[:, slot] = k[:, size:].float().mean(1)

    def _put(self, side: int, rows: slice, index: int, x: Tensor) -> None:
        if self.scale is None:
            self.data[side, :, rows] = x
            return
        if not x.shape[1]:
            return
        scale = x.float().abs().amax((1, 2)).clamp_min(1e-12) / FP8_MAX
        self.scale[side, :, index] = scale
        self.data[side, :, rows] = (x.float() / scale[:, None, None]).to(self.data.dtype)

    def move_page(self, source: int, target: int) -> None:
        """Copy a page over another."""
        if source == target or not self.sizes.page:
            return
        _codes(self.data)[:, :, self.page_rows(target)] = _codes(self.data)[:, :, self.page_rows(source)]
        if self.scale is not None:
            self.scale[:, :, self.room + target] = self.scale[:, :, self.room + source]
        if self.digest is not None:
            self.digest[:, target] = self.digest[:, source]

    def read(self, frames: int, pages: int, dtype: torch.dtype, chosen: Tensor | None = None) -> Tensor:
        """The memory of `frames` frames and the first `pages` pages, of these only the `chosen` [n]: [2, H, rows, D].

        A view of the buffer if nothing is chosen; FP8 becomes `dtype`.
        """
        memory, page = self.memory_rows(0, frames), self.page_rows(0, pages)
        if chosen is None:
            found = self.data[:, :, memory.start : page.stop]
        else:
            paged = _codes(self.data)[:, :, page].unflatten(2, (pages, self.sizes.page)).index_select(2, chosen)
            found = torch.cat([_codes(self.data)[:, :, memory], paged.flatten(2, 3)], 2).view(self.data.dtype)
        if self.scale is None:
            return found
        scales = self.scale[:, :, self.room - frames : self.room + pages].to(dtype).split([frames, pages], 2)
        of_pages = scales[1] if chosen is None else scales[1].index_select(2, chosen)
        by_row = [scales[0].repeat_interleave(self.sizes.memory, 2), of_pages.repeat_interleave(self.sizes.page, 2)]
        return found.to(dtype) * torch.cat(by_row, 2)[..., None]

    def grown(self, room: int, frames: int) -> Buffer:
        """A buffer with room for the memory of `room` frames and the same content, of which `frames` frames count."""
        wider = Buffer(self.sizes, room, self.data.dtype, self.data.device, self.digest is not None)
        wider.load(self.dump(frames, self.sizes.slots), frames)
        return wider

    def dump(self, frames: int, pages: int) -> dict[str, Tensor]:
        """The valid part of what it holds, as views."""
        pages = min(pages, self.sizes.slots)
        rows = slice(self.memory_rows(0, frames).start, self.page_rows(0, pages).stop)
        found = {"data": self.data[:, :, rows]}
        if self.scale is not None:
            found["scale"] = self.scale[:, :, self.room - frames : self.room + pages]
        if self.digest is not None:
            found["digest"] = self.digest[:, :pages]
        return found

    def load(self, parts: Mapping[str, Tensor], frames: int) -> None:
        """Take what `dump` gave for so many frames."""
        start = self.memory_rows(0, frames).start
        source = _codes(parts["data"])
        _codes(self.data)[:, :, start : start + source.shape[2]] = source.to(self.data.device)
        if self.scale is not None:
            start = self.room - frames
            self.scale[:, :, start : start + parts["scale"].shape[2]] = parts["scale"]
        if self.digest is not None:
            self.digest[:, : parts["digest"].shape[1]] = parts["digest"]


class FrameCache:
    """The buffers of several layers that keep the same frames, and how many frames they hold (`stored`).

    A call of frames goes: `begin`, then `attend` of the `sight` of every layer, then `end`; a frame that was not stored
    at once can be `accept`ed afterwards. Buffers are made at the first call, in its number type if `pages` is "auto".
    """

    def __init__(self, sizes: CacheSizes, pages: Pages = "auto", top_pages: int | None = None, recent: int = 0):
        self.sizes = sizes
        self.pages = pages
        self.top_pages = top_pages if sizes.page else None
        self.recent = recent
        self.stored = 0
        self.buffers: list[Buffer | None] = [None] * sizes.layers
        self._incoming, self._keep = 0, False

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors that it holds."""
        return [t for buffer in self.buffers if buffer is not None for t in buffer.tensors.values()]

    def begin(self, frames: int, *, keep: bool) -> None:
        """Announce a call of new frames, which are stored if `keep`; ValueError for more than fit, or several that are
        not stored."""
        if frames > 1 and (not keep or self.stored + frames > self.sizes.full):
            raise ValueError(f"{frames} frames at once, with {self.stored} stored, do not fit into {self.sizes.full}")
        self._incoming, self._keep = frames, keep

    def sight(self, layer: int, rope: TimeRope) -> CacheSight:
        """What the frames of the current call see in a layer."""
        return CacheSight(self, layer, rope)

    def end(self) -> None:
        """Finish the call: frames that are stored count from now on."""
        if self._keep:
            self._count(self._incoming)

    def accept(self) -> None:
        """Store the frame of the last call after all; the window's oldest makes room."""
        if self._keep or not self._incoming:
            raise ValueError("the last frame is stored already")
        self._keep = True
        for buffer in self.buffers:
            if buffer is not None:
                buffer.move_page(min(self.stored, self.sizes.full), self._slot(self.stored))
        self._count(1)

    def _count(self, frames: int) -> None:
        self.stored += frames
        room = self.sizes.capacity(self.stored)
        for index, buffer in enumerate(self.buffers):  # one after another: no second copy of all
            if buffer is not None and buffer.room < room:
                self.buffers[index] = buffer.grown(room, self.stored)

    def _slot(self, frame: int) -> int:
        """The page of a stored frame, by its number among stored ones."""
        full, window = self.sizes.full, self.sizes.window
        return frame if frame < full else self.sizes.anchors + (frame - self.sizes.anchors) % window

    def _page_count(self) -> int:
        """Pages that the frames of the current call see, their own included."""
        if self._keep:
            return min(self.stored + self._incoming, self.sizes.full)
        return min(self.stored, self.sizes.full) + 1

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write k and v of the current call's frames [1, H, S * T, D], and attend to all that it sees."""
        if q.shape[0] != 1:
            raise UsageError(f"got {q.shape[0]} scenes; a stream has one.")
        buffer = self.buffers[layer]
        if buffer is None:
            dtype = k.dtype if self.pages == "auto" else DTYPES[self.pages]
            room = self.sizes.capacity(self.stored + self._incoming)
            buffer = Buffer(self.sizes, room, dtype, k.device, self.top_pages is not None)
            self.buffers[layer] = buffer
        keys, values = (x[0].unflatten(1, (self._incoming, -1)) for x in (k, v))
        for i in range(self._incoming):
            number = self.stored + i
            slot = self._slot(number) if self._keep else min(self.stored, self.sizes.full)
            buffer.write(keys[:, i], values[:, i], number, slot)
        pages = self._page_count() if self.sizes.page else 0
        seen = buffer.read(self.stored + self._incoming, pages, q.dtype, self._choose(buffer, q, pages))
        return softmax_attention(q.to(seen.dtype), seen[:1], seen[1:]).to(q.dtype)

    def _choose(self, buffer: Buffer, q: Tensor, pages: int) -> Tensor | None:
        """The pages to attend to, in order; None for all. Anchors, the last frames and new ones are always in."""
        if self.top_pages is None or buffer.digest is None:
            return None
        number = self.stored + self._incoming
        last = range(max(self.stored - self.recent, 0), number if self._keep else self.stored)
        always = {*range(min(self.sizes.anchors, pages)), *(self._slot(f) for f in last)}
        always |= set() if self._keep else {pages - 1}
        others = [slot for slot in range(pages) if slot not in always]
        if len(others) <= self.top_pages:
            return None
        index = torch.tensor(others, device=q.device)
        query = q[0].float().mean(1) * q.shape[-1] ** -0.5
        with without_autocast(q.device.type):  # it would rank rounded scores
            scores = torch.einsum("hd,hsd->hs", query, buffer.digest[:, index]).softmax(-1).sum(0)
        best = index[scores.topk(self.top_pages).indices]
        return torch.cat([torch.tensor(sorted(always), device=q.device), best]).sort().values

    def state(self) -> dict[str, Tensor | int]:
        """A copy of what it holds."""
        pages = min(self.stored, self.sizes.full)
        found: dict[str, Tensor | int] = {"stored": self.stored}
        for index, buffer in enumerate(self.buffers):
            if buffer is not None:
                parts = buffer.dump(self.stored, pages)
                found |= {f"{index}.{name}": value.clone() for name, value in parts.items()}
        return found

    def restore(self, state: Mapping[str, Tensor | int], device: torch.device) -> None:
        """Hold what `state` gave; UsageError if it is of other sizes."""
        stored = int(state["stored"])
        sizes, pages = self.sizes, min(stored, self.sizes.full) if self.sizes.page else 0
        expected = [2, sizes.heads, stored * sizes.memory + pages * sizes.page, sizes.head_dim]
        buffers: list[Buffer | None] = []
        for index in range(sizes.layers):
            parts = {n: v for n in ("data", "scale", "digest") if isinstance(v := state.get(f"{index}.{n}"), Tensor)}
            if not parts:
                buffers.append(None)
                continue
            data = parts["data"]
            if list(data.shape) != expected:
                raise UsageError(f"the state has a cache of shape {list(data.shape)}; expected {expected}.")
            buffer = Buffer(sizes, sizes.capacity(stored), data.dtype, device, self.top_pages is not None)
            if set(parts) != set(buffer.tensors):
                raise UsageError(f"the state has {sorted(parts)} of a cache; expected {sorted(buffer.tensors)}.")
            buffer.load(parts, stored)
            buffers.append(buffer)
        self.buffers, self.stored = buffers, stored
        self._incoming, self._keep = 0, False


class CacheSight:
    """What the frames of a call see in one layer of a FrameCache (layers/causal.py: Sight)."""

    def __init__(self, cache: FrameCache, layer: int, rope: TimeRope):
        self.cache = cache
        self.layer = layer
        self.rope = rope

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, key_mask: Tensor | None) -> Tensor:
        """See Sight. A stream has no padding."""
        if key_mask is not None:
            raise UsageError("a stream takes pictures without padding; leave out the mask.")
        return self.cache.attend(self.layer, q, k, v)


class StreamCache:
    """All that a stream keeps: of the global blocks (`blocks`) and of the camera head (`camera`), which drops none."""

    def __init__(self, policy: CachePolicy, blocks: CacheSizes, camera: CacheSizes):
        self.policy = policy
        self.blocks = FrameCache(blocks, policy.pages, policy.top_pages, policy.recent)
        self.camera = FrameCache(camera)

    @property
    def stored(self) -> int:
        """Frames that it holds, in full or by their memory tokens."""
        return self.blocks.stored

    def begin(self, frames: int, *, keep: bool) -> None:
        """See FrameCache.begin."""
        self.blocks.begin(frames, keep=keep)
        self.camera.begin(frames, keep=keep or self.policy.camera_keeps_all)

    def end(self) -> None:
        """See FrameCache.end."""
        self.blocks.end()
        self.camera.end()

    def accept(self) -> None:
        """See FrameCache.accept."""
        self.blocks.accept()
        if not self.policy.camera_keeps_all:
            self.camera.accept()

    @property
    def bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(t.nbytes for cache in (self.blocks, self.camera) for t in cache.tensors)

    def expected_bytes(self, stored: int, dtype: torch.dtype = torch.float32) -> int:
        """Bytes once `stored` frames are stored, products in `dtype`: the sum of what `bytes` will count.

        The camera head's products, and so its cache, are in float32.
        """
        pages = self.blocks.pages
        blocks = self.blocks.sizes.bytes(
            stored, dtype if pages == "auto" else DTYPES[pages], digests=self.blocks.top_pages is not None
        )
        return blocks + self.camera.sizes.bytes(stored, torch.float32)

    def state(self) -> dict[str, Tensor | int]:
        """A copy of what both hold."""
        parts = {"blocks": self.blocks, "camera": self.camera}
        return {f"{part}.{name}": value for part, cache in parts.items() for name, value in cache.state().items()}

    def restore(self, state: Mapping[str, Tensor | int], device: torch.device) -> None:
        """Hold what `state` gave; UsageError if it is of other sizes."""
        for part, cache in (("blocks", self.blocks), ("camera", self.camera)):
            prefix = f"{part}."
            own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            cache.restore(own, device)


def _codes(x: Tensor) -> Tensor:
    """FP8 as bytes, since few operations know it."""
    return x.view(torch.uint8) if x.dtype == torch.float8_e4m3fn else x
