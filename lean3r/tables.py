"""Tables that depend on shapes and settings alone: made once for each device, and no step of compiled code."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable, Hashable
from functools import lru_cache

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from lean3r.tracing import is_traced


@lru_cache(maxsize=512)
def _make_once(
    make: Callable[..., Tensor], arguments: tuple[Hashable, ...], device: torch.device, dtype: torch.dtype | None
) -> Tensor:
    # A table made in inference mode could not be used by a later training step.
    with torch.inference_mode(False):
        return make(*arguments).to(device, dtype)


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
    return _make_once(make, arguments, device, dtype)


def forget_tables() -> None:
    """Empty the cache, for code that ran on tensors without values."""
    _make_once.cache_clear()


@torch.library.custom_op(
    "lean3r::table",
    mutates_args=(),
    schema="(str module, str name, str arguments, Device device, ScalarType? dtype) -> Tensor",
)
def _node(module: str, name: str, arguments: str, device: torch.device, dtype: torch.dtype | None) -> Tensor:
    make = getattr(importlib.import_module(module), name)
    return _make_once(make, ast.literal_eval(arguments), device, dtype).clone()


@_node.register_fake
def _(*call) -> Tensor:
    with unset_fake_temporarily():
        real = _node._init_fn(*call)
    return torch.empty(real.shape, dtype=real.dtype, device=real.device)
