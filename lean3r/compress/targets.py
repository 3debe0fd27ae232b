"""Targets: select layers by role, block number or name, for attention and for linear layers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal, Protocol, runtime_checkable

from lean3r.errors import UsageError

Part = Literal["embedding", "encoder", "frame", "global", "camera", "head", "mechanism"]

EVERY_ATTENTION = "every attention layer"
TRUNK: tuple[Part, ...] = ("frame", "global")
LAYERS: tuple[Part, ...] = ("encoder", "frame", "global", "camera", "head")
ATTENTION_FORM = (
    "'every attention layer', '[encoder|frame|global|all] blocks [NUMBERS]' with numbers such as 8-23 or 0,4,8-, "
    "'camera head', 'heads' or 'named PATTERN'"
)
FORM = (
    "'every layer', 'every linear', 'every block', '[encoder|frame|global|all] blocks [NUMBERS]', 'camera head', "
    "'heads', 'narrow layers' or 'named PATTERN'"
)


@dataclass(frozen=True)
class Place:
    """The place of a layer: its path and the part of the network; the number of its block within that part (`number`)
    and in the trunk (`overall`), None outside of blocks. `narrow` layers have fewer than 16 inputs or outputs.

    "camera" are modules called camera... or cam_..., "head" is outside of encoder and trunk, "mechanism" belongs to an
    attention mechanism (gates, branches), "embedding" reads pixels: it is small, and its errors cannot be undone later.
    Only targets by name select the last two.
    """

    name: str
    part: Part
    number: int | None = None
    overall: int | None = None
    convolution: bool = False
    narrow: bool = False


@dataclass(frozen=True)
class Site:
    """One attention layer: the path of its module, the part of the network of its block, its width and heads."""

    name: str
    role: Part
    dim: int
    heads: int


@dataclass(frozen=True)
class Target:
    """A selection of layers.

    "global blocks" are all blocks of that role, "global blocks 8-23" those with these numbers, counted from 0 in the
    order of the network, "frame blocks 0,4,8-" two of them, and all from 8 on. "all blocks 3" counts frame and global
    blocks; "encoder blocks" are those of the encoder. "every block" are the transformer blocks anywhere, "camera head"
    is what belongs to the camera, "heads" is everything outside of encoder and trunk. "named encoder.*" matches the
    path of the layer, with * and ? as in file names. These targets are for attention and for linear layers.

    For attention, "every attention layer" says the same as "every block". For linear layers, "every linear" selects all
    except those of mechanisms and embeddings, "every layer" convolutions too, "narrow layers" those with fewer than 16
    inputs or outputs. Only "every layer", "narrow layers" and names select convolutions.
    """

    text: str
    parts: tuple[Part, ...] = ()
    blocks_only: bool = False
    convolutions: bool = False
    narrow_only: bool = False
    numbers: tuple[tuple[int, int | None], ...] = ()
    pattern: str | None = None

    @classmethod
    def parse(cls, text: str, form: str = FORM) -> Target:
        """Read a target; UsageError, which says `form`, if it has another form."""
        if text == EVERY_ATTENTION:
            raise UsageError(f"target '{text}' is for attention mechanisms; expected, for linear layers, {FORM}.")
        if named := re.fullmatch(r"named (\S+)", text):
            return cls(text, pattern=named[1])
        if text in _WHOLE:
            return replace(_WHOLE[text], text=text)
        blocks = re.fullmatch(r"(encoder|frame|global|all) blocks?(?: ([\d\-, ]+))?", text)
        if blocks is None:
            raise UsageError(f"target '{text}' cannot be read; expected {form}.")
        return cls(text, _OF_BLOCKS[blocks[1]], blocks_only=True, numbers=_numbers(text, blocks[2] or "", form))

    @classmethod
    def of_attention(cls, text: str) -> Target:
        """Read a target for mechanisms, which are in transformer blocks; UsageError if it has another form."""
        if text in _OF_LINEARS:
            raise UsageError(f"target '{text}' is for linear layers; expected, for mechanisms, {ATTENTION_FORM}.")
        return replace(_WHOLE["every block"], text=text) if text == EVERY_ATTENTION else cls.parse(text, ATTENTION_FORM)

    def select(self, places: Sequence[Place], *, may_lack: bool = False) -> list[Place]:
        """The selected places, in order; UsageError if there are none (unless `may_lack`, for targets by role), and if
        a block number is too high."""
        pool = [place for place in places if self._names(place)]
        if not pool and not (may_lack and self.pattern is None):
            what = f"no layer is named {self.pattern}" if self.pattern else f"the network has nothing for '{self.text}'"
            raise UsageError(f"{what}. {_there_are(places)}.")
        if not self.numbers or not pool:
            return pool
        numbers = [self._number(place) for place in pool]
        last, highest = max(numbers), max(a if b is None else b for a, b in self.numbers)
        if highest > last:
            raise UsageError(f"'{self.text}' names block {highest}: the network has {last + 1} of them, 0 to {last}.")
        inside = [any(a <= n and (b is None or n <= b) for a, b in self.numbers) for n in numbers]
        return [place for place, selected in zip(pool, inside, strict=True) if selected]

    def _names(self, place: Place) -> bool:
        """Whether it selects a place, regardless of block numbers."""
        if self.pattern is not None:
            return fnmatchcase(place.name, self.pattern)
        inside = place.part in self.parts and (place.number is not None or not self.blocks_only)
        return inside and (self.convolutions or not place.convolution) and (place.narrow or not self.narrow_only)

    def _number(self, place: Place) -> int:
        """The number of a block, as this target counts."""
        number = place.overall if len(self.parts) > 1 else place.number
        assert number is not None
        return number


_OF_BLOCKS: dict[str, tuple[Part, ...]] = {
    "encoder": ("encoder",),
    "frame": ("frame",),
    "global": ("global",),
    "all": TRUNK,
}
_WHOLE = {
    "every layer": Target("", LAYERS, convolutions=True),
    "every linear": Target("", LAYERS),
    "every block": Target("", LAYERS, blocks_only=True),
    "camera head": Target("", ("camera",)),
    "heads": Target("", ("camera", "head")),
    "narrow layers": Target("", LAYERS, convolutions=True, narrow_only=True),
}
_OF_LINEARS = ("every layer", "every linear", "narrow layers")


@runtime_checkable
class Mapped(Protocol):
    """A third-party network whose attention layers are known (foreign.map_sites)."""

    attention_sites: tuple[Site, ...]


def places_of(sites: Sequence[Site]) -> list[Place]:
    """The places of attention layers, numbered in their order."""
    places, counts = [], Counter[Part]()
    for site in sites:
        overall = sum(counts[role] for role in TRUNK) if site.role in TRUNK else None
        places.append(Place(site.name, site.role, counts[site.role], overall))
        counts[site.role] += 1
    return places


def _numbers(target: str, text: str, form: str) -> tuple[tuple[int, int | None], ...]:
    """(first, last) of each range in "0,4,8-" (last None: to the end); UsageError if `target` cannot be read."""
    if not text:
        return ()
    if not re.fullmatch(r"\d+(?:-\d*)?(?:, ?\d+(?:-\d*)?)*", text):
        raise UsageError(f"target '{target}' cannot be read; expected {form}.")
    ranges = [part.strip().partition("-") for part in text.split(",")]
    numbers = tuple((int(a), int(b) if b else None if dash else int(a)) for a, dash, b in ranges)
    backwards = next((f"{a}-{b}" for a, b in numbers if b is not None and b < a), None)
    if backwards:
        raise UsageError(f"target '{target}' has the range {backwards}, which ends before it starts.")
    return numbers


def _there_are(places: Sequence[Place]) -> str:
    names: dict[Part, list[str]] = {}
    for place in places:
        names.setdefault(place.part, []).append(place.name)
    counts = [f"{len(paths)} of role {part} ({paths[0]}, ...)" for part, paths in names.items()]
    return f"There are {', '.join(counts)}" if counts else "The network has no such layers at all"
