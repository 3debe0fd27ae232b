"""Choice of the key blocks that each query block attends to, with attention over the pooled blocks in the same pass.

Ranking, padding and mask rules: Speed3R's global sparse attention (its release and paper), steps 4 and 5.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lean3r.errors import UsageError
from lean3r.ops.dispatch import Implementation, choose, too_large
from lean3r.ops.registered import operator
from lean3r.tracing import is_traced, without_autocast

_MODULES = {"reference": "reference", "torch": "torch_path", "triton": "kernel", "traced": "traced"}
_MAX_HEAD_DIM = 128


@dataclass(frozen=True)
class Selection:
    """Result of `block_select`.

    blocks [B, H, nq, K] int32, best first, -1 past the end of a shorter list; out [B, H, nq, D] softmax attention of
    the pooled queries over all pooled keys; lse [B, H, nq] float32, natural logarithm of its denominator, of scaled
    scores. Gradients flow through out and lse, not through blocks.
    """

    blocks: Tensor
    out: Tensor
    lse: Tensor


def block_select(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    top_k: int,
    *,
    scale: float | None = None,
    key_mask: Tensor | None = None,
    skip: Sequence[int] = (),
    fill: Literal["unique", "repeat_last"] = "unique",
    implementation: Implementation = "auto",
) -> Selection:
    """Top-k key blocks of every query block, and attention over all of them.

    q [B, H, nq, D], k and v [B, H, nk, D] are pooled; scale defaults to D^-0.5. Blocks are ranked by the unscaled
    score q.k in float32, descending; ties go to the lower index, and -0.0 ranks below +0.0. A NaN or -inf score
    ranks as the lowest finite number: NaN in q makes out and lse of its rows NaN (and, as in dense attention, the
    gradients of k and v), while the chosen indices stay valid and distinct. `key_mask` [B, nk] is False on key blocks
    that are neither attended nor chosen; a query with no key left gets zeros, lse -inf and -1 everywhere. `skip`
    names key blocks that are attended to, but never chosen.

    fill "unique" lists each block once and ends shorter lists with -1; "repeat_last" repeats the last block that the
    mask admits instead, as Speed3R's release does (duplicates then count with multiplicity in block-sparse attention).
    Tensors of several types are brought to v's. No implementation holds an nq x nk array of a large size.

    Raises UsageError on shapes that do not fit, KernelError when implementation="triton" cannot run (head_dim above
    128, CPU tensors).
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    out, lse, blocks = _operator(q, k, v, top_k, scale, key_mask, list(skip), fill, implementation)
    return Selection(blocks, out, lse)


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    top_k: int,
    scale: float,
    key_mask: Tensor | None,
    skip: list[int],
    fill: str,
    implementation: Implementation,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(q, k, v, top_k, scale, key_mask, skip, fill)
    q, k = q.to(v.dtype), k.to(v.dtype)
    if key_mask is not None:  # whatever the padding holds, NaN included, stays out of sums and gradients
        k, v = (t.masked_fill(~key_mask[:, None, :, None], 0) for t in (k, v))
    how = "traced"
    if not is_traced():
        how = choose("block_select", implementation, (q, k, v), torch_path=True, unsupported=_unsupported(q))
    run = importlib.import_module(f"{__name__}.{_MODULES[how]}").select
    with without_autocast(q.device.type):  # it would lower the products that rank
        chosen, out, lse = run(q, k, v, top_k, scale, key_mask, skip)
    return out, lse, _fill(chosen, key_mask, k.shape[2], fill)


def _shapes(q: Tensor, k: Tensor, v: Tensor, top_k: int, *_) -> tuple[Tensor, Tensor, Tensor]:
    lse, blocks = q.new_empty(q.shape[:3], dtype=torch.float32), q.new_empty(*q.shape[:3], top_k, dtype=torch.int32)
    return q.new_empty(q.shape, dtype=v.dtype), lse, blocks


_operator = operator(
    "block_select",
    "(Tensor q, Tensor k, Tensor v, int top_k, float scale, Tensor? key_mask, int[] skip, str fill, "
    "str implementation) -> (Tensor, Tensor, Tensor)",
    _run,
    _shapes,
)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    top_k: int,
    scale: float,
    key_mask: Tensor | None,
    skip: list[int],
    fill: str,
) -> None:
    """Raise UsageError where the arguments do not fit."""
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        shapes = ", ".join(str(tuple(t.shape)) for t in (q, k, v))
        raise UsageError(f"block_select expects q [B, H, nq, D], k and v [B, H, nk, D]; got {shapes}")
    batch, _, blocks, _ = k.shape
    if blocks == 0 or top_k < 1:
        raise UsageError(
            f"block_select needs at least one key block and top_k >= 1; got {blocks} blocks, top_k {top_k}"
        )
    if not scale > 0:
        raise UsageError(f"block_select needs a positive scale, got {scale}")
    if key_mask is not None and (key_mask.shape != (batch, blocks) or key_mask.dtype != torch.bool):
        got = f"{key_mask.dtype} {tuple(key_mask.shape)}"
        raise UsageError(f"key_mask is torch.bool [B, nk] = {(batch, blocks)}, got {got}")
    if fill not in ("unique", "repeat_last"):
        raise UsageError(f'fill is "unique" or "repeat_last", got {fill!r}')
    if skip and not 0 <= min(skip) <= max(skip) < blocks:
        raise UsageError(f"skip names blocks 0..{blocks - 1}, got {min(skip)}..{max(skip)}")


def _unsupported(q: Tensor) -> str | None:
    return f"head_dim {q.shape[-1]} is above {_MAX_HEAD_DIM}" if q.shape[-1] > _MAX_HEAD_DIM else too_large(q)


def _fill(chosen: Tensor, key_mask: Tensor | None, blocks: int, fill: str) -> Tensor:
    """End short lists as `fill` says."""
    if fill == "unique":
        return chosen
    if key_mask is None:
        return chosen.where(chosen >= 0, blocks - 1)
    last = torch.where(key_mask, torch.arange(blocks, dtype=torch.int32, device=chosen.device), -1).amax(-1)
    return chosen.where(chosen >= 0, last[:, None, None, None])
