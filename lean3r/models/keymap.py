"""Translate names in official checkpoints to names in our modules and back, by prefix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class KeyMap:
    """Pairs (official prefix, our prefix). The longest matching prefix of a name counts; without one it is foreign.

    `tied` lists groups of official names that share one parameter: a file may have any of them. If it has several,
    the last one counts, as in the official code.
    """

    pairs: tuple[tuple[str, str], ...]
    tied: tuple[tuple[str, ...], ...] = ()

    def ours(self, official: str) -> str | None:
        """Our name of an official key, None if it is foreign."""
        return _swap(official, self.pairs)

    def official(self, ours: str) -> str | None:
        """The official key of our name, None if there is none."""
        return _swap(ours, ((b, a) for a, b in self.pairs))

    def read(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """(tensors under our names, foreign official keys); tied names are completed."""
        source = dict(tensors)
        for group in self.tied:
            present = [name for name in group if name in source]
            if present:
                source.update(dict.fromkeys(group, source[present[-1]]))
        named = {key: self.ours(key) for key in source}
        foreign = [key for key, name in named.items() if name is None]
        return {name: source[key] for key, name in named.items() if name is not None}, foreign

    def write(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our tensors under official keys; names without an official key are left out."""
        named = {name: self.official(name) for name in tensors}
        return {key: tensors[name] for name, key in named.items() if key is not None}

    def under(self, official: str, ours: str) -> KeyMap:
        """The same map with one more prefix on each side, for a model inside another."""
        return KeyMap(
            tuple((official + a, ours + b) for a, b in self.pairs),
            tuple(tuple(official + name for name in group) for group in self.tied),
        )

    def __add__(self, other: KeyMap) -> KeyMap:
        return KeyMap(self.pairs + other.pairs, self.tied + other.tied)


def number_blocks(official: str, ours: str, numbers: Iterable[tuple[int, int]]) -> tuple[tuple[str, str], ...]:
    """Pairs for blocks that are numbered differently: `{}` in both names takes the (official, our) number."""
    return tuple((official.format(a), ours.format(b)) for a, b in numbers)


def _swap(name: str, pairs: Iterable[tuple[str, str]]) -> str | None:
    longest = max((pair for pair in pairs if name.startswith(pair[0])), key=lambda pair: len(pair[0]), default=None)
    return None if longest is None else longest[1] + name[len(longest[0]) :]


IDENTITY = KeyMap((("", ""),))
"""For checkpoints under our own names."""
