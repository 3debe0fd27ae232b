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

from lean3r.layers.places import Places

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

    def put(self, k: Tensor, v: Tensor, places: Places) -> None:
        """The same for k and v [H, S * (memory + page), D] of several frames, where numbers on the device say."""
        for side, x in zip(self.data, (k, v), strict=True):
            side.index_copy_(1, places.rows, x.to(side.dtype))
        if self.digest is not None:
            pages = k.unflatten(1, (len(places.slots), -1))[:, :, self.sizes.memory :]
            self.digest.index_copy_(1, places.slots, pages.mean(2, dtype=torch.float32))

    def spans(self, places: Places, chosen: Tensor | None) -> Tensor:
        """Runs of rows (first, number) that a call sees, int32 [n, 2]: one, or more with each `chosen` page."""
        if chosen is None:
            return places.seen
        pages = torch.stack([self.page_rows(0).start + chosen * self.sizes.page, chosen * 0 + self.sizes.page], 1)
        return torch.cat([places.seen, pages.int()])

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


def _codes(x: Tensor) -> Tensor:
    """FP8 as bytes, since few operations know it."""
    return x.view(torch.uint8) if x.dtype == torch.float8_e4m3fn else x
