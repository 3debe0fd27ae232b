"""Which blocks: by role, by number among those of the role, or by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from lean3r.errors import UsageError
from lean3r.layers.attention import SelfAttention
from lean3r.layers.trunk import Role, Trunk

_FORM = "expected '[all|frame|global] blocks [NUMBERS]' with numbers such as 8-23 or 0,4,8-, or 'named PATTERN'"


@dataclass(frozen=True)
class Site:
    """One attention layer: the path of its module, what its block looks at, its width and heads."""

    name: str
    role: Role
    dim: int
    heads: int


@dataclass(frozen=True)
class Target:
    """A selection of sites.

    "global blocks" are all blocks of that role, "global blocks 8-23" those with these numbers among them, from 0 in
    the order of the network, "frame blocks 0,4,8-" some, and all from 8 on; "all blocks 3" counts both roles.
    "named encoder.*" goes by the path of the attention layer, with * and ? as in file names.
    """

    role: Role | None = None
    numbers: tuple[tuple[int, int | None], ...] = ()
    pattern: str | None = None

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read a target; UsageError when it has another form."""
        named = re.fullmatch(r"named (\S+)", text)
        if named:
            return cls(pattern=named[1])
        found = re.fullmatch(r"(all|frame|global) blocks?(?: ([\d\-, ]+))?", text)
        if found is None:
            raise UsageError(f"target '{text}' cannot be read; {_FORM}.")
        role = {"frame": "frame", "global": "global"}.get(found[1])
        return cls(role, numbers_in(text, found[2]))  # type: ignore[arg-type]

    def select(self, sites: Sequence[Site]) -> list[Site]:
        """The sites that it names, in order; UsageError when there are none, or not as many as its numbers say."""
        if self.pattern is not None:
            chosen = [site for site in sites if fnmatchcase(site.name, self.pattern)]
            if not chosen:
                raise UsageError(f"no attention layer is named {self.pattern}. {_there_are(sites)}.")
            return chosen
        pool = [site for site in sites if self.role in (None, site.role)]
        kind = f"{self.role} blocks" if self.role else "blocks"
        if not pool:
            raise UsageError(f"the network has no {kind}. {_there_are(sites)}.")
        if not self.numbers:
            return pool
        highest = max(a if b is None else b for a, b in self.numbers)
        if highest >= len(pool):
            raise UsageError(f"no {kind[:-1]} {highest}: the network has {len(pool)} {kind}, 0 to {len(pool) - 1}.")
        return [site for i, site in enumerate(pool) if any(a <= i and (b is None or i <= b) for a, b in self.numbers)]


def numbers_in(target: str, text: str | None) -> tuple[tuple[int, int | None], ...]:
    """(first, last) of each range in "0,4,8-" (last None: to the end); UsageError where `target` cannot be read."""
    if not text:
        return ()
    if not re.fullmatch(r"\d+(?:-\d*)?(?:, ?\d+(?:-\d*)?)*", text):
        raise UsageError(f"target '{target}' cannot be read; {_FORM}.")
    ranges = [part.strip().partition("-") for part in text.split(",")]
    numbers = tuple((int(a), int(b) if b else None if dash else int(a)) for a, dash, b in ranges)
    backwards = next((f"{a}-{b}" for a, b in numbers if b is not None and b < a), None)
    if backwards:
        raise UsageError(f"target '{target}' has the range {backwards}, which ends before it starts.")
    return numbers


def sites_of(model: nn.Module) -> list[Site]:
    """The attention layers in the trunks of one of our networks, in order."""
    found = []
    for path, module in model.named_modules():
        if isinstance(module, Trunk):
            for index, role in enumerate(module.schedule):
                name = ".".join(filter(None, (path, f"blocks.{index}.attn")))
                attention = model.get_submodule(name)
                assert isinstance(attention, SelfAttention)
                found.append(Site(name, role, attention.proj.in_features, attention.heads))
    return found


def _there_are(sites: Iterable[Site]) -> str:
    names: dict[str, list[str]] = {}
    for site in sites:
        names.setdefault(site.role, []).append(site.name)
    counts = [f"{len(found)} {role} blocks ({found[0]} to {found[-1]})" for role, found in names.items()]
    return f"There are {' and '.join(counts)}" if counts else "It has no blocks in a trunk"
