"""Tables that depend on shapes and settings alone: made once for each device, and no step of compiled code.

A CUDA graph reads them, as other tensors that are kept between calls, by their addresses: it must hold what it reads.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from lean3r.tracing import is_traced

T = TypeVar("T")

_MOST = 512


def _make(
    make: Callable[..., Tensor], arguments: tuple[Hashable, ...], device: torch.device, dtype: torch.dtype | None
) -> Tensor:
    # A table made in inference mode could not be used by a later training step.
    with torch.inference_mode(False):
        return make(*arguments).to(device, dtype)


_make_once = lru_cache(_MOST)(_make)
_own: ContextVar[Callable[..., Tensor] | None] = ContextVar("_own", default=None)
_noted: ContextVar[dict[int, object] | None] = ContextVar("_noted", default=None)


def table(
    make: Callable[..., Tensor], arguments: tuple[Hashable, ...], device: torch.device, dtype: torch.dtype | None = None
) -> Tensor:
    """make(*arguments) on a device, kept for later calls; `make` is a function of a module, arguments are literals.

    torch.compile sees a single node, lean3r::table, which copies the table that is kept; torch.export, for which sizes
    are symbols, sees how the table is made.
    """
    if is_traced():
        return make(*arguments).to(device, dtype)
    if torch.compiler.is_dynamo_compiling():
        return _node(make.__module__, make.__name__, repr(arguments), device, dtype)
    return kept((_own.get() or _make_once)(make, arguments, device, dtype))


@contextmanager
def own_tables() -> Iterator[None]:
    """Inside, tables are made anew and are gone afterwards: for code that runs on tensors without values."""
    before = _own.set(lru_cache(_MOST)(_make))
    try:
        yield
    finally:
        _own.reset(before)


def kept(value: T) -> T:
    """`value`, which was made for this call and later ones."""
    noted = _noted.get()
    if noted is not None:
        noted[id(value)] = value
    return value


@contextmanager
def noting() -> Iterator[dict[int, object]]:
    """What is used inside and kept elsewhere, by its id: to be held by what reads it later."""
    noted: dict[int, object] = {}
    before = _noted.set(noted)
    try:
        yield noted
    finally:
        _noted.reset(before)


@torch.library.custom_op(
    "lean3r::table",
    mutates_args=(),
    schema="(str module, str name, str arguments, Device device, ScalarType? dtype) -> Tensor",
)
def _node(module: str, name: str, arguments: str, device: torch.device, dtype: torch.dtype | None) -> Tensor:
    make = getattr(importlib.import_module(module), name)
    return kept((_own.get() or _make_once)(make, ast.literal_eval(arguments), device, dtype)).clone()


@_node.register_fake
def _(*call) -> Tensor:
    with unset_fake_temporarily():
        real = _node._init_fn(*call)
    return torch.empty(real.shape, dtype=real.dtype, device=real.device)
