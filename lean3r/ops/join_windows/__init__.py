"""Two branches of attention mixed by gates, and put where the next product reads them, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from lean3r.errors import UsageError
from lean3r.ops.dispatch import Implementation, choose
from lean3r.ops.join_windows.reference import reference
from lean3r.ops.registered import operator

__all__ = ["join_windows"]

_LARGEST = 1 << 13  # numbers of a head in a window, rounded up to powers of two


def join_windows(
    selected: Tensor,
    compressed: Tensor,
    gates: Tensor | None,
    special: Tensor | None,
    *,
    tokens: int,
    size: int,
    implementation: Implementation = "auto",
) -> Tensor:
    """Values of patches and of special tokens -> [B, N, H, D], N = views x `tokens`, special tokens of a view first.

    selected [B, H, n * size, D] are the patches' values, window after window, and compressed [B, H, n, D] those of
    windows; gates [B, N, H * G] before the sigmoid: for G = 2 the weights of compressed and selected, for G = 1 g for
    compressed and 1 - g for selected; without gates selected alone. special [B, H, views * E, D], or None without
    special tokens. Sums are in float32, the result has the type of `selected`. No gradients.

    UsageError for sizes that do not fit together.
    """
    (batch, heads, places, _), windows = selected.shape, compressed.shape[2]
    fits = places == windows * size and (special is None or special.shape[:2] == selected.shape[:2])
    behind = places + (0 if special is None else special.shape[2])
    fits = fits and tokens > 0 and behind % tokens == 0 and windows % max(1, behind // tokens) == 0
    wide = [] if gates is None else [heads, 2 * heads]
    if not fits or (gates is not None and (gates.shape[:2] != (batch, behind) or gates.shape[2] not in wide)):
        given = (None if x is None else list(x.shape) for x in (selected, compressed, gates, special))
        raise UsageError(
            f"join_windows: {', '.join(map(str, given))} do not fit views of {tokens} tokens, {size} a window"
        )
    with torch.no_grad():
        return _operator(selected, compressed, gates, special, tokens, size, implementation)


def _run(
    selected: Tensor,
    compressed: Tensor,
    gates: Tensor | None,
    special: Tensor | None,
    tokens: int,
    size: int,
    implementation: Implementation,
) -> Tensor:
    given = [x for x in (selected, compressed, gates, special) if x is not None]
    how = choose("join_windows", implementation, given, unsupported=_unsupported(selected, size))
    if how == "triton":
        from lean3r.ops.join_windows.kernel import join_windows as run
    else:
        run = reference
    return run(selected, compressed, gates, special, tokens, size)


def _unsupported(selected: Tensor, size: int) -> str | None:
    dim = selected.shape[-1]
    numbers = (1 << (size - 1).bit_length()) * (1 << (dim - 1).bit_length())
    return None if numbers <= _LARGEST else f"windows of {size} patches with heads of {dim} do not fit a program"


def _shapes(selected: Tensor, compressed: Tensor, gates, special: Tensor | None, *_) -> Tensor:
    batch, heads, places, dim = selected.shape
    return selected.new_empty(batch, places + (0 if special is None else special.shape[2]), heads, dim)


_operator = operator(
    "join_windows",
    "(Tensor selected, Tensor compressed, Tensor? gates, Tensor? special, int tokens, int size, str implementation) "
    "-> Tensor",
    _run,
    _shapes,
)
