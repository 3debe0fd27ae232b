"""Which layers to quantise: by the role of the part that they are in, by number of the block, or by name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn

from lean3r.compress.targets import numbers_in
from lean3r.errors import UsageError
from lean3r.layers.block import Block
from lean3r.layers.embed import ConvStem
from lean3r.layers.linear import Linear
from lean3r.layers.trunk import Trunk
from lean3r.layers.vit import PatchEmbed, VisionTransformer

Part = Literal["embedding", "encoder", "frame", "global", "camera", "head", "mechanism"]
PLAIN = (nn.Linear, Linear)  # subclasses have a life of their own (the projection inside MultiheadAttention)
NARROW = 16
CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_FORM = (
    "expected 'every layer', 'every linear', 'every block', '[encoder|frame|global|all] blocks [NUMBERS]', "
    "'camera head', 'heads', 'narrow layers' or 'named PATTERN'"
)


@dataclass(frozen=True)
class LinearSite:
    """One linear layer or convolution: its path and the part of the network; the number of its block among all of that
    role (`number`) and in the trunk (`overall`), None outside of blocks.

    "camera" is what lies in modules called camera..., "head" what is in no encoder and no trunk, "mechanism" what an
    attention mechanism owns (gates, branches), "embedding" what reads pixels: small, and nobody brings back what it
    loses. Only targets by name reach these two. `narrow` layers have less than 16 inputs or outputs.
    """

    name: str
    part: Part
    number: int | None = None
    overall: int | None = None
    convolution: bool = False
    narrow: bool = False


def linears_of(
    model: nn.Module, linears: Sequence[type] = PLAIN, convolutions: Sequence[type] = CONVOLUTIONS
) -> list[LinearSite]:
    """Every linear layer and convolution of these classes, in the order of the modules: by default those that a scheme
    can take over."""
    blocks: dict[str, tuple[Part, int, int | None]] = {}
    counts: Counter[Part] = Counter()
    encoders: list[str] = []
    readers: list[str] = []
    camera = re.compile(r"(^|\.)camera[^.]*(\.|$)")
    for path, module in model.named_modules():
        dot = f"{path}." if path else ""
        if isinstance(module, Trunk) and not camera.search(path):
            for index, role in enumerate(module.schedule):
                blocks[f"{dot}blocks.{index}"] = (role, counts[role], counts["frame"] + counts["global"])
                counts[role] += 1
        elif isinstance(module, VisionTransformer):
            encoders.append(dot)
            for index in range(len(module.blocks)):
                blocks[f"{dot}blocks.{index}"] = ("encoder", counts["encoder"], None)
                counts["encoder"] += 1
        elif isinstance(module, ConvStem | PatchEmbed):
            readers.append(dot)
        elif isinstance(module, Block) and path not in blocks:
            part: Part = "camera" if camera.search(path) else "head"
            blocks[path] = (part, counts[part], None)
            counts[part] += 1
    found = []
    inside: tuple[str, tuple[Part, int, int | None]] | None = None
    for path, module in model.named_modules():
        if path in blocks:
            inside = (f"{path}.", blocks[path])
        convolution = type(module) in convolutions
        if type(module) not in linears and not convolution:
            continue
        place: tuple[Part, int | None, int | None] = ("camera" if camera.search(path) else "head", None, None)
        if inside is not None and path.startswith(inside[0]):
            place = inside[1]
        elif any(path.startswith(reader) for reader in readers):
            place = ("embedding", None, None)
        elif any(path.startswith(encoder) for encoder in encoders):
            place = ("encoder", None, None)
        if re.search(r"\.attn\.(mechanism|short)\.", path):
            place = ("mechanism", None, None)
        weight: Any = module.weight
        found.append(LinearSite(path, *place, convolution, min(weight.shape[:2]) < NARROW))
    return found


@dataclass(frozen=True)
class LinearTarget:
    """A selection of layers; only "every layer" and names reach convolutions.

    "every linear" is all but those of mechanisms and embeddings, "every layer" convolutions besides, "every block"
    those in transformer blocks wherever they are; "encoder blocks", "frame blocks 0,4,8-", "global blocks", "all
    blocks" (frame and global) are those of these blocks, numbered as in targets.py; "camera head" and "heads" what is
    outside of encoder and trunk, the latter with the camera's; "narrow layers" those with less than 16 inputs or
    outputs. "named *.mlp.fc1" goes by the path of the layer.
    """

    text: str
    parts: tuple[Part, ...] = ()
    blocks_only: bool = False
    convolutions: bool = False
    numbers: tuple[tuple[int, int | None], ...] = ()
    pattern: str | None = None

    @classmethod
    def parse(cls, text: str) -> LinearTarget:
        """Read a target; UsageError when it has another form."""
        named = re.fullmatch(r"named (\S+)", text)
        if named:
            return cls(text, pattern=named[1])
        whole: tuple[Part, ...] = ("encoder", "frame", "global", "camera", "head")
        fixed: dict[str, tuple[tuple[Part, ...], bool, bool]] = {
            "every layer": (whole, False, True),
            "every linear": (whole, False, False),
            "every block": (whole, True, False),
            "camera head": (("camera",), False, False),
            "heads": (("camera", "head"), False, False),
            "narrow layers": (whole, False, True),
        }
        if text in fixed:
            return cls(text, *fixed[text])
        found = re.fullmatch(r"(encoder|frame|global|all) blocks?(?: ([\d\-, ]+))?", text)
        if found is None:
            raise UsageError(f"target '{text}' cannot be read; {_FORM}.")
        kinds: dict[str, tuple[Part, ...]] = {"encoder": ("encoder",), "frame": ("frame",), "global": ("global",)}
        return cls(text, kinds.get(found[1], ("frame", "global")), True, False, numbers_in(text, found[2]))

    def select(self, sites: Sequence[LinearSite], *, may_lack: bool = False) -> list[LinearSite]:
        """The layers that it names, in order; UsageError when there are none, unless it goes by role and `may_lack`."""
        if self.pattern is not None:
            chosen = [site for site in sites if fnmatchcase(site.name, self.pattern)]
            if not chosen:
                raise UsageError(f"no layer is named {self.pattern}. {_there_are(sites)}")
            return chosen
        pool = [site for site in sites if site.part in self.parts]
        pool = [site for site in pool if site.number is not None or not self.blocks_only]
        pool = [site for site in pool if self.convolutions or not site.convolution]
        pool = [site for site in pool if site.narrow or self.text != "narrow layers"]
        if not pool and not may_lack:
            raise UsageError(f"the network has no such layers as '{self.text}'. {_there_are(sites)}")
        if not self.numbers or not pool:
            return pool
        numbers = [site.overall if len(self.parts) > 1 else site.number for site in pool]
        last = max(number for number in numbers if number is not None)
        highest = max(a if b is None else b for a, b in self.numbers)
        if highest > last:
            raise UsageError(f"'{self.text}' names block {highest}: the network has 0 to {last} of them.")
        wanted = [any(a <= n and (b is None or n <= b) for a, b in self.numbers) for n in numbers if n is not None]
        return [site for site, want in zip(pool, wanted, strict=True) if want]


def _there_are(sites: Sequence[LinearSite]) -> str:
    counts = Counter(site.part for site in sites)
    text = ", ".join(f"{count} of role {part}" for part, count in counts.items())
    return f"There are {text or 'none'}."
