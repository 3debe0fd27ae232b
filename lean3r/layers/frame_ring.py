"""What else than keys and values a stream keeps of the frames that it sees in full: named values, a slot a frame.

Slots are the pages of layers/kv_cache.py: the anchors, the window as a ring, and a spare one for a frame that is not
stored, or not yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from lean3r.errors import UsageError
from lean3r.group import Share
from lean3r.layers.frames import FrameTable
from lean3r.layers.matching import Peers


class FrameRing:
    """Values of `shapes` by name, of the anchors and the last `window` stored frames; a call goes as in FrameCache."""

    def __init__(self, anchors: int, window: int, shapes: Mapping[str, tuple[int, ...]]):
        self.anchors, self.window = anchors, window
        self.shapes = dict(shapes)
        self.stored = 0
        self.values: dict[str, Tensor] = {}
        self.incoming, self._keep = 0, False

    @property
    def full(self) -> int:
        """Frames that keep their slot."""
        return self.anchors + self.window

    @property
    def bytes(self) -> int:
        """Bytes of all values."""
        return sum(value.nbytes for value in self.values.values())

    def expected_bytes(self, stored: int) -> int:
        """Bytes once `stored` frames are stored: a formula."""
        slots = self.full + 1 if stored else 0
        return slots * sum(prod(shape) for shape in self.shapes.values()) * torch.float32.itemsize

    def begin(self, frames: int, *, keep: bool) -> None:
        """See FrameCache.begin."""
        if frames > 1 and (not keep or self.stored + frames > self.full):
            raise ValueError(f"{frames} frames at once, with {self.stored} stored, do not fit into {self.full}")
        self.incoming, self._keep = frames, keep

    def end(self) -> None:
        """See FrameCache.end."""
        if self._keep:
            self.stored += self.incoming

    def accept(self) -> None:
        """See FrameCache.accept."""
        if self._keep or not self.incoming:
            raise ValueError("the last frame is stored already")
        self._keep = True
        for value in self.values.values():
            value[self._slot(self.stored)] = value[min(self.stored, self.full)].clone()
        self.stored += 1

    @property
    def first(self) -> int:
        """The slot of the call's first frame."""
        return self._slot(self.stored) if self._keep else min(self.stored, self.full)

    @property
    def count(self) -> int:
        """Slots that the frames of the call see, their own included."""
        return min(self.stored + self.incoming, self.full) if self._keep else min(self.stored, self.full) + 1

    @property
    def before(self) -> list[int]:
        """For each frame of the call the slot of the last frame before it that it sees; its own if there is none."""
        if self.incoming > 1 or not self.stored:
            return [max(0, self.stored + i - 1) for i in range(self.incoming)]
        last = self._slot(self.stored - 1)
        return [last if last != self.first else self.anchors - 1]

    def _slot(self, frame: int) -> int:
        return frame if frame < self.full else self.anchors + (frame - self.anchors) % self.window

    def write(self, name: str, new: Tensor) -> Tensor:
        """Store values [S, ...] of the call's frames; those of all slots that they see, [K, ...]."""
        if name not in self.values:
            shape = self.shapes[name]
            if tuple(new.shape[1:]) != shape:
                raise ValueError(f"{name} has shape {list(new.shape[1:])}; expected {list(shape)}")
            self.values[name] = torch.zeros(self.full + 1, *shape, device=new.device)
        self.values[name][self.first : self.first + self.incoming] = new.float()
        return self.values[name][: self.count]

    def state(self) -> dict[str, Tensor | int]:
        """A copy of what it holds."""
        kept = min(self.stored, self.full)
        return {"stored": self.stored} | {name: value[:kept].clone() for name, value in self.values.items()}

    def restore(self, state: Mapping[str, Tensor | int], device: torch.device) -> None:
        """Hold what `state` gave; UsageError if it is of other sizes."""
        stored, values = int(state["stored"]), dict[str, Tensor]()
        for name, shape in self.shapes.items():
            found = state.get(name)
            if not isinstance(found, Tensor):
                continue
            expected = [min(stored, self.full), *shape]
            if list(found.shape) != expected:
                raise UsageError(f"the state has {name} of shape {list(found.shape)}; expected {expected}.")
            values[name] = torch.zeros(self.full + 1, *shape, device=device)
            values[name][: expected[0]] = found.to(device)
        self.values, self.stored = values, stored
        self.incoming, self._keep = 0, False


class RingPeers(Peers):
    """The frames of a ring, those of the current call among them. A stream is one scene."""

    def __init__(self, ring: FrameRing, device: torch.device):
        self.ring = ring
        own = torch.arange(ring.first, ring.first + ring.incoming, device=device)
        self.sees = (own[:, None] != torch.arange(ring.count, device=device)).float()
        self._before = torch.tensor(ring.before, device=device)

    def before(self, values: Tensor) -> Tensor:
        """See Peers."""
        return values[:, self._before]

    def join(self, name: str, values: Tensor) -> Tensor:
        """See Peers."""
        return self.ring.write(name, values[0])[None].to(values.dtype)


class TablePeers(Peers):
    """All frames of a sequence, each compared with those that a table shows in full; with a `share`, those of this
    process with those of all."""

    def __init__(self, table: FrameTable, device: torch.device, share: Share | None = None):
        self.share = share
        own = slice(None) if share is None else slice(share.first, share.first + share.count)
        t = torch.arange(table.full.shape[0])
        others = table.full & (t[:, None] != t)
        self.sees = others[own].float().to(device)
        last = t.where(others & (t < t[:, None]), -1).amax(1)
        self._before = last.where(last >= 0, t)[own].to(device)

    def before(self, values: Tensor) -> Tensor:
        """See Peers."""
        return values[:, self._before]
