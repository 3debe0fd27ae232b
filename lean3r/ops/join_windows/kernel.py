"""Gated sum and order of tokens in Triton: one read of both branches, one write; a program some heads of a window."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lean3r.ops.tiles import launch, place

NUMBERS = 4096  # of a tile: 32 for each thread of 4 warps


@triton.jit
def _join(
    selected_ptr, compressed_ptr, gates_ptr, out_ptr, heads, windows, each, tokens, special, size,
    D: tl.constexpr, BD: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, GATES: tl.constexpr,
):  # fmt: skip
    window, part = place(windows)  # part: batch and heads
    some: tl.constexpr = ROWS // SIZE
    parts = tl.cdiv(heads, some)
    batch = part // parts
    row = tl.arange(0, ROWS)
    head, spot = part % parts * some + row // SIZE, row % SIZE
    inside = (head < heads) & (spot < size)
    d = tl.arange(0, BD)
    used = inside[:, None] & (d < D)[None, :]
    pair = batch * heads + head
    at = ((pair * windows + window) * size + spot)[:, None] * D + d[None, :]
    x = tl.load(selected_ptr + at, mask=used, other=0.0)
    view = window // each
    token = batch * (windows // each) * tokens + view.to(tl.int64) * tokens + special + window % each * size + spot
    if GATES > 0:
        x = x.to(tl.float32)
        y = tl.load(compressed_ptr + (pair * windows + window)[:, None] * D + d[None, :], mask=used, other=0.0)
        at = gates_ptr + (token * heads + head) * GATES
        first = tl.sigmoid(tl.load(at, mask=inside, other=0.0).to(tl.float32))
        last = 1 - first
        if GATES == 2:
            last = tl.sigmoid(tl.load(at + 1, mask=inside, other=0.0).to(tl.float32))
        x = first[:, None] * y.to(tl.float32) + last[:, None] * x
    at = (token * heads + head)[:, None] * D + d[None, :]
    tl.store(out_ptr + at, x.to(out_ptr.dtype.element_ty), mask=used)


def join_windows(
    selected: Tensor, compressed: Tensor, gates: Tensor | None, special: Tensor | None, tokens: int, size: int
) -> Tensor:
    """See `join_windows` of the package."""
    (batch, heads, places, dim), windows = selected.shape, compressed.shape[2]
    behind = 0 if special is None else special.shape[2]
    views = (places + behind) // tokens
    out = torch.empty(batch, places + behind, heads, dim, dtype=selected.dtype, device=selected.device)
    if special is not None:
        own = out.unflatten(1, (views, tokens))[:, :, : behind // views]
        own.copy_(special.unflatten(2, (views, -1)).permute(0, 2, 3, 1, 4))
    padded, spots = triton.next_power_of_2(dim), triton.next_power_of_2(size)
    some = min(triton.next_power_of_2(heads), max(1, NUMBERS // (padded * spots)))
    selected = selected.contiguous()
    launch(
        *(_join, windows * batch * triton.cdiv(heads, some), selected, compressed.contiguous()),
        *(selected if gates is None else gates.contiguous(), out),
        *(heads, windows, windows // views, tokens, behind // views, size),
        D=dim,
        BD=padded,
        SIZE=spots,
        ROWS=spots * some,
        GATES=0 if gates is None else gates.shape[2] // heads,
    )
    return out
