"""Settings of mechanisms: checked on construction, shown in repr."""

from __future__ import annotations

import math

from torch import nn

from lean3r.errors import UsageError
from lean3r.ops.dispatch import describe

MOST = 2**31 - 1  # of whole numbers: products of two fit into a tensor's
MOST_OF_A_BLOCK = 4096  # tokens: the last block is filled up, so a huge one would take huge memory for few tokens


def format_settings(module: nn.Module, *names: str) -> str:
    """Settings of a module for its repr; for `implementation`, also what "auto" resolves to."""

    def text(name: str) -> str:
        value = getattr(module, name)
        return describe(value, torch_path=True) if name == "implementation" else repr(value)

    return ", ".join(f"{name}={text(name)}" for name in names)


def check_share(name: str, value: float, *, positive: bool = False) -> float:
    """Return `value` if it lies in [0, 1], or (0, 1] if it must be `positive`; raise UsageError otherwise."""
    if isinstance(value, bool | str) or not 0 <= value <= 1:
        raise UsageError(f"{name} is {value!r}; expected a share from 0 to 1")
    if positive and not value:
        raise UsageError(f"{name} is 0; expected a share above 0 and at most 1, where 1 keeps everything")
    return value


def check_flag(name: str, value: bool) -> bool:
    """Return `value` if it is True or False; raise UsageError otherwise, because strings such as "no" are truthy."""
    if not isinstance(value, bool):
        raise UsageError(f"{name} is {value!r}; expected True or False")
    return value


def check_count(name: str, value: int, least: int = 1, most: int = MOST) -> int:
    """Return `value` if it is a whole number of at least `least` and at most `most`; raise UsageError otherwise."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"{name} is {value!r}; expected a whole number, {least} or more")
    if value > most:
        raise UsageError(f"{name} is {value!r}; expected a whole number of at most {most:,}")
    return value


def check_block(name: str, value: int) -> int:
    """Return `value` if it can be the number of tokens of a block; raise UsageError otherwise."""
    return check_count(name, value, most=MOST_OF_A_BLOCK)


def check_deviation(name: str, value: float) -> float:
    """Return `value` if it can be a standard deviation; raise UsageError otherwise."""
    if isinstance(value, bool | str) or not 0 <= value < math.inf:
        raise UsageError(f"{name} is {value!r}; expected a standard deviation, 0 or more")
    return value
