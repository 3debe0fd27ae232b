"""Two-axis rotary position embedding of a token layout (as in VGGT, Pi3 and DA3).

The row rotates the first half of the head dimension, the column the second half. Rows and columns of patches start
at 1; special tokens are at (0, 0) and are not rotated. Positions repeat in every view.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lean3r.layers.time_rope import rotate_pairs
from lean3r.ops.dispatch import why_not_triton
from lean3r.ops.norm_rotate import norm_rotate
from lean3r.ops.repeats import pieces_of
from lean3r.tables import table
from lean3r.types import TokenLayout

BASE = 100.0
_CACHED = 1 << 17  # numbers of a piece for each thread: with its temporaries they fit into a core's cache


def _positions(special: int, rows: int, cols: int, window: int | None, flat: bool) -> Tensor:
    row = torch.arange(1, rows + 1, dtype=torch.float32)[:, None].expand(rows, cols).flatten()
    col = torch.arange(1, cols + 1, dtype=torch.float32).expand(rows, cols).flatten()
    patches = torch.ones(rows * cols, 2) if flat else torch.stack([row, col], -1)
    order = TokenLayout(1, special, rows, cols, window=window).order()
    patches = patches if order is None else patches[order]
    return torch.cat([torch.zeros(special, 2), patches])


def _cos_sin(head_dim: int, special: int, rows: int, cols: int, window: int | None, flat: bool) -> Tensor:
    positions = _positions(special, rows, cols, window, flat)
    return torch.stack(position_table(positions, head_dim, torch.float32))


def position_table(positions: Tensor, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(cos, sin) [n, D] for positions [n, 2] (row, column). head_dim must be a multiple of 4."""
    half = head_dim // 2
    frequency = BASE ** (-torch.arange(0, half, 2, dtype=torch.float32, device=positions.device) / half)
    angle = positions.float()[:, :, None] * frequency
    angle = torch.cat([angle, angle], -1).flatten(1)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rope_positions(layout: TokenLayout, device: torch.device, *, flat: bool = False) -> Tensor:
    """Row and column [T, 2] float32 of the tokens of one view in the layout's order, cached; see rope_table."""
    return table(_positions, (layout.special, layout.rows, layout.cols, layout.window, flat), device)


def rope_table(
    layout: TokenLayout, head_dim: int, device: torch.device, dtype: torch.dtype, *, flat: bool = False
) -> tuple[Tensor, Tensor]:
    """(cos, sin) [T, D] for the tokens of one view in the layout's order, cached. head_dim is a multiple of 4.

    `flat` places every patch at row 1, column 1.
    """
    shape = (layout.special, layout.rows, layout.cols, layout.window, flat)
    cos, sin = table(_cos_sin, (head_dim, *shape), device, dtype)
    return cos, sin


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate x [..., N, D] by a table [T, D]; N is a multiple of T, views one after another."""
    cos, sin = table
    *lead, tokens, dim = x.shape
    x = x.reshape(*lead, tokens // cos.shape[0], cos.shape[0], dim)
    a, b, c, d = x.chunk(4, dim=-1)
    turned = torch.cat([-b, a, -d, c], dim=-1)
    return (x * cos + turned * sin).reshape(*lead, tokens, dim)


def in_one_pass(x: Tensor, *norms: nn.Module) -> bool:
    """Whether `norm_rotate_pool` can norm and rotate x, with each of the norms: on a GPU with Triton, without
    gradients."""
    if not x.is_cuda or x.shape[-1] % 4 or torch.is_grad_enabled():
        return False
    plain = (isinstance(n, nn.Identity) or (type(n) is nn.LayerNorm and n.weight is not None) for n in norms)
    watched = any(norm._forward_hooks or norm._forward_pre_hooks for norm in norms)
    return all(plain) and not watched and why_not_triton([x]) is None


def norm_rotate_pool(
    x: Tensor,
    norm: nn.Module,
    table: tuple[Tensor, Tensor] | None,
    dtype: torch.dtype,
    tokens: int,
    special: int = 0,
    window: int = 0,
    pairs: bool = False,
) -> tuple[Tensor, Tensor]:
    """As `norm_and_rotate`, and the mean of each `window` neighbouring tokens of x [B, H, N, D], before both, behind
    the first `special` ones of the `tokens` of a view: one kernel (ops/norm_rotate). For what `in_one_pass` accepts.
    With a window, the first result holds the patches of all views, then all special tokens. `pairs`: as in
    `norm_and_rotate_pairs`."""
    weight, bias = (norm.weight, norm.bias) if isinstance(norm, nn.LayerNorm) else (None, None)
    eps = norm.eps if isinstance(norm, nn.LayerNorm) else 0.0
    sizes = {"tokens": tokens, "special": special, "window": window, "patches_first": window > 0}
    return norm_rotate(x, weight, bias, table, **sizes, eps=eps, dtype=dtype, pairs=pairs)


def norm_and_rotate(
    x: Tensor, norm: nn.Module, table: tuple[Tensor, Tensor] | None, dtype: torch.dtype, *, one_pass: bool
) -> Tensor:
    """norm(x) in `dtype`, turned by a table [T, D] if there is one; x [B, H, N, D], N a multiple of T.

    On a CPU without gradients a few views are worked off at a time: whole, the passes over x would go through main
    memory. `one_pass`, where `in_one_pass` says so, is one kernel for both.
    """
    if one_pass and (table is not None or isinstance(norm, nn.LayerNorm)):
        tokens = x.shape[2] if table is None else len(table[0])
        return norm_rotate_pool(x, norm, table, dtype, tokens)[0]
    if x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        x = norm(x).to(dtype)
        return x if table is None else rotate(x, table)
    if table is None:
        return norm(x).to(dtype)
    out = torch.empty(x.shape, dtype=dtype)
    cos, sin = table
    whole, result = (t.unflatten(2, (-1, len(cos))).transpose(1, 2) for t in (x, out))  # [B, views, H, T, D]
    sin = (sin.unflatten(-1, (4, -1)) * sin.new_tensor([-1, 1, -1, 1])[:, None]).flatten(-2)
    budget = max(1, _CACHED * torch.get_num_threads() // max(1, whole[:1, :1].numel()))
    scenes, views = (slice(None, budget) if whole.shape[1] == 1 else slice(None, 1)), slice(None, budget)
    for scene in pieces_of(range(0, whole.shape[0], scenes.stop)):
        for view in pieces_of(range(0, whole.shape[1], views.stop)):
            at = slice(scene, scene + scenes.stop), slice(view, view + views.stop)
            piece = norm(whole[at]).to(dtype)
            a, b, c, d = piece.chunk(4, dim=-1)
            torch.mul(piece, cos, out=result[at]).addcmul_(torch.cat([b, a, d, c], dim=-1), sin)
    return out


def norm_and_rotate_pairs(
    x: Tensor, norm: nn.Module, table: tuple[Tensor, Tensor], dtype: torch.dtype, *, one_pass: bool
) -> Tensor:
    """norm(x) in `dtype`, neighbouring channels turned by a table [N, D / 2] as in layers/time_rope.py; x [B, H, N, D].

    `one_pass`, where `in_one_pass` says so, is one kernel for both.
    """
    if one_pass:
        return norm_rotate_pool(x, norm, table, dtype, x.shape[2], pairs=True)[0]
    return rotate_pairs(norm(x), *table).to(dtype)
