"""What a causal network keeps of the frames of a stream, and what each new frame sees of it.

On a GPU kernels read from the device where keys lie (layers/places.py), but for those in FP8, so that a step of
LingBot-Map can be replayed as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from lean3r.attention.dense import softmax_attention
from lean3r.errors import UsageError
from lean3r.layers.frames import CachePolicy, Pages
from lean3r.layers.kv_buffer import DTYPES, Buffer, CacheSizes
from lean3r.layers.places import Places
from lean3r.layers.time_rope import TimeRope
from lean3r.ops.span_attention import has_kernel, span_attention
from lean3r.recorded import Recorder
from lean3r.tracing import without_autocast
from lean3r.types import TokenLayout


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
        self._places: Places | None = None  # of the current call, where a GPU reads them
        self._made: dict[tuple[int, ...], Places] = {}  # by sizes: graphs read the same memory again and again

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors that it holds."""
        return [t for buffer in self.buffers if buffer is not None for t in buffer.tensors.values()]

    def begin(self, frames: int, *, keep: bool) -> None:
        """Announce a call of new frames, which are stored if `keep`; ValueError for more than fit, or several that are
        not stored."""
        if frames > 1 and (not keep or self.stored + frames > self.sizes.full):
            raise ValueError(f"{frames} frames at once, with {self.stored} stored, do not fit into {self.sizes.full}")
        self._incoming, self._keep, self._places = frames, keep, None
        if self._made and self.buffers[0] is not None:
            self._places = self._place(self.buffers[0])

    @property
    def key(self) -> tuple | None:
        """All that a call decides on the processor: calls with the same key run the same kernels on the same memory.
        None if the next calls will have other keys."""
        changes = self.top_pages is not None and self.stored < self.sizes.full
        if changes or self._places is None:
            return None
        tensors = (self._places.rows, *self.tensors)
        return self._incoming, *((t.data_ptr(), t.shape) for t in tensors)

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
        if not self.sizes.page:
            return 0
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
        if buffer.scale is None and reads_on_device(q):
            return self._attend_on_device(buffer, q, k, v)
        keys, values = (x[0].unflatten(1, (self._incoming, -1)) for x in (k, v))
        for i, slot in enumerate(self._slots()):
            buffer.write(keys[:, i], values[:, i], self.stored + i, slot)
        pages, chosen = self._page_count(), None
        always, others = self._candidates()
        if others:
            index = torch.tensor(others, device=q.device)
            best = self._best(buffer, q, index)
            chosen = torch.cat([torch.tensor(always, device=q.device), best]).sort().values
        seen = buffer.read(self.stored + self._incoming, pages, q.dtype, chosen)
        return softmax_attention(q.to(seen.dtype), seen[:1], seen[1:]).to(q.dtype)

    def _attend_on_device(self, buffer: Buffer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`attend` by kernels that find the rows by themselves: no copies, and nothing that a CUDA graph cannot do."""
        if self._places is None:
            self._places = self._place(buffer)
        places = self._places
        buffer.put(k[0], v[0], places)
        chosen = None
        if len(places.others):
            chosen = torch.cat([places.always, self._best(buffer, q, places.others)])
        spans = buffer.spans(places, chosen)
        return span_attention(q[0].to(buffer.data.dtype), buffer.data[0], buffer.data[1], spans)[None].to(q.dtype)

    def _place(self, buffer: Buffer) -> Places:
        """The places of the current call."""
        size, first = self.sizes, buffer.page_rows(0).start
        slots = self._slots()
        memory = buffer.memory_rows(0, self.stored + self._incoming)
        always, others = self._candidates()
        pages = min(size.anchors, self._page_count()) if others else self._page_count()
        stop = buffer.page_rows(0, pages).stop  # memory and anchors are neighbours
        always = always[pages:]
        rows = [
            np.r_[buffer.memory_rows(self.stored + i), first + slot * size.page : first + (slot + 1) * size.page]
            for i, slot in enumerate(slots)
        ]
        numbers = (slots, (memory.start, stop - memory.start), always, others)
        parts = [np.concatenate(rows), *(np.array(each, np.int64) for each in numbers)]
        sizes = tuple(len(part) for part in parts)
        if sizes not in self._made:
            self._made[sizes] = Places(sizes, buffer.data.device)
        self._made[sizes].write(parts)
        return self._made[sizes]

    def _slots(self) -> list[int]:
        """The pages of the current call's frames."""
        spare = min(self.stored, self.sizes.full)
        return [self._slot(self.stored + i) if self._keep else spare for i in range(self._incoming)]

    def _candidates(self) -> tuple[list[int], list[int]]:
        """Pages that are seen, in order: anchors, the last frames and new ones; and those of which the best are chosen.
        Both are empty if all are seen."""
        pages = self._page_count()
        if self.top_pages is None:
            return [], []
        number = self.stored + self._incoming
        last = range(max(self.stored - self.recent, 0), number if self._keep else self.stored)
        always = {*range(min(self.sizes.anchors, pages)), *(self._slot(f) for f in last)}
        always |= set() if self._keep else {pages - 1}
        others = [slot for slot in range(pages) if slot not in always]
        return (sorted(always), others) if len(others) > self.top_pages else ([], [])

    def _best(self, buffer: Buffer, q: Tensor, others: Tensor) -> Tensor:
        """Of these pages those whose mean keys are nearest to the mean query."""
        assert buffer.digest is not None and self.top_pages is not None
        query = q[0].mean(1, dtype=torch.float32) * q.shape[-1] ** -0.5
        with without_autocast(q.device.type):  # it would rank rounded scores
            scores = torch.einsum("hd,hsd->hs", query, buffer.digest[:, others]).softmax(-1).sum(0)
        return others[scores.topk(self.top_pages).indices]

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
        self._places, self._made = None, {}


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
    """All that a stream keeps: of the global blocks (`blocks`) and of the camera head (`camera`), which drops none; and
    graphs of its steps (`recorder`), which know these by their addresses."""

    def __init__(self, policy: CachePolicy, blocks: CacheSizes, camera: CacheSizes):
        self.policy = policy
        self.blocks = FrameCache(blocks, policy.pages, policy.top_pages, policy.recent)
        self.camera = FrameCache(camera)
        self.recorder = Recorder()

    @property
    def stored(self) -> int:
        """Frames that it holds, in full or by their memory tokens."""
        return self.blocks.stored

    def begin(self, frames: int, *, keep: bool) -> None:
        """See FrameCache.begin."""
        self.blocks.begin(frames, keep=keep)
        self.camera.begin(frames, keep=keep or self.policy.camera_keeps_all)

    @property
    def key(self) -> tuple | None:
        """See FrameCache.key."""
        blocks, camera = self.blocks.key, self.camera.key
        return None if blocks is None or camera is None else (blocks, camera)

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


def reads_on_device(q: Tensor) -> bool:
    """Whether attention of q [1, H, N, D] reads where keys lie by numbers on the device; else it gets slices of the
    buffers, which are as fast on a CPU."""
    return q.is_cuda and not torch.is_grad_enabled() and has_kernel(q[0])
