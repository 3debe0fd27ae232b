"""Training-free block-sparse attention as in block-sparse VGGT: pooled scores choose the key blocks."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from lean3r.attention.base import Mechanism, Projected, record
from lean3r.attention.blocks import attend_chosen, block_scores, count_blocks, pad_mask, pad_to_blocks, pool_blocks
from lean3r.attention.dense import softmax_attention
from lean3r.attention.settings import check_block, check_count, check_share, format_settings
from lean3r.attention.tokens import marks_of, rows_of, table, view_count, without_padding
from lean3r.errors import UsageError
from lean3r.ops.block_sparse import KeyValues, check_kv, unsupported
from lean3r.ops.dispatch import Implementation, check_implementation
from lean3r.ops.repeats import number
from lean3r.types import TokenLayout

Pool = Literal["avg", "max"]
SLACK = 1e-5  # on the cumulative threshold, as in the release


def count_kept(prob: Tensor, sparsity: float | None, threshold: float | None) -> Tensor:
    """Number of key blocks to keep in each row of prob [..., m], sorted in descending order: [...] int64, at least 1.

    `threshold` keeps the blocks whose cumulative probability does not exceed it, `sparsity` s keeps floor(m (1 - s));
    with both, the result is the larger number.
    """
    kept = torch.ones(prob.shape[:-1], dtype=torch.int64, device=prob.device)
    if sparsity is not None:
        kept = kept.clamp_min(int(prob.shape[-1] * (1 - sparsity)))
    if threshold is not None:
        kept = torch.maximum(kept, (prob.cumsum(-1) <= threshold + SLACK).sum(-1))
    return kept


def choose_blocks(prob: Tensor, sparsity: float | None, threshold: float | None, extra: int) -> Tensor:
    """Choose key blocks [..., K] int32 by rows of prob [..., m], most probable first; -1 fills up shorter rows.

    The `extra` blocks m .. m + extra - 1 after the scored ones are in every list.
    """
    values, order = prob.sort(dim=-1, descending=True, stable=True)
    kept = count_kept(values, sparsity, threshold)
    width = max(1, 0 if sparsity is None else int(prob.shape[-1] * (1 - sparsity)))
    if threshold is not None:  # while costs are counted, as many as of equally probable blocks
        width = number(kept.max(), max(width, int(prob.shape[-1] * threshold)))
    rank = torch.arange(width, device=prob.device)
    blocks = order[..., :width].masked_fill(rank >= kept[..., None], -1)
    always = torch.arange(prob.shape[-1], prob.shape[-1] + extra, device=prob.device)
    return torch.cat([blocks, always.expand(*blocks.shape[:-1], extra)], -1).int()


def patches_first(layout: TokenLayout) -> Tensor:
    """[N] tokens in the order of the keys: the patches of all views, then all special tokens."""
    index = torch.arange(layout.views * layout.tokens).view(layout.views, layout.tokens)
    return torch.cat([index[:, layout.special :].flatten(), index[:, : layout.special].flatten()])


class BlockSparse(Mechanism):
    """Block-sparse VGGT: patches attend to the key blocks that the softmax of pooled scores favours.

    Patches of all views, one view after another, are pooled by `query_block` and `key_block` (`pool` "avg" or "max").
    `sparsity` s keeps floor(m (1 - s)) of m key blocks (in binary, as the release does: 1 of 20 with 0.9), `threshold`
    t the most probable ones up to cumulative probability t; with both, the larger number counts; at least one block is
    kept. Special tokens follow the patches as keys: those in the last block of patches are chosen with it, the others
    always. As queries they attend to everything. `window` asks the trunk for an order in which blocks are compact.
    sparsity 0 is dense attention.
    Choosing is quadratic in the number of blocks, in bounded memory. The release's int8 keys are not reproduced;
    kv "fp8" rounds keys and values of the patches' attention to E4M3, one scale a block.

    Source: block-sparse VGGT.
    Time: (1 − sparsity) · N².
    Use: no training at hand, accuracy first.
    """

    reads_input: ClassVar = False
    COMPLETE: ClassVar = ({"sparsity": 0.0, "key_block": 8}, {"sparsity": None, "threshold": 1.0, "key_block": 8})
    SMALL: ClassVar = (
        {"sparsity": 0.5, "query_block": 16, "key_block": 8},
        {"sparsity": None, "threshold": 0.4, "query_block": 16, "key_block": 8, "pool": "max"},
    )

    def __init__(
        self,
        sparsity: float | None = 0.5,
        threshold: float | None = None,
        *,
        pool: Pool = "avg",
        query_block: int = 128,
        key_block: int = 64,
        window: int | None = None,
        kv: KeyValues = "full",
        implementation: Implementation = "auto",
    ):
        super().__init__()
        if sparsity is None and threshold is None:
            raise UsageError("got neither sparsity nor threshold; expected one or both of them")
        if pool not in ("avg", "max"):
            raise UsageError(f"pool is {pool!r}; expected 'avg' or 'max'")
        self.sparsity = None if sparsity is None else check_share("sparsity", sparsity)
        self.threshold = None if threshold is None else check_share("threshold", threshold)
        self.pool: Pool = pool
        self.query_block = check_block("query_block", query_block)
        self.key_block = check_block("key_block", key_block)
        self.window = None if window is None else check_count("window", window)
        self.kv: KeyValues = check_kv(kv)
        self.implementation: Implementation = check_implementation(implementation)

    def extra_repr(self) -> str:
        """Shown by repr(model)."""
        names = ("sparsity", "threshold", "pool", "query_block", "key_block", "window", "kv", "implementation")
        return format_settings(self, *names)

    def unsupported(self, head_dim: int) -> str | None:
        """See Mechanism."""
        return unsupported(head_dim, self.query_block, self.key_block)

    def forward(self, p: Projected, layout: TokenLayout) -> Tensor:
        """Block-sparse attention for patches, dense attention for special tokens, [B, H, N, D]."""
        p = without_padding(p)
        q, k = p.finish(p.q, p.k)
        if not layout.patches:
            return softmax_attention(q, k, p.v, p.key_mask)
        views = view_count(p, layout)
        order = table(patches_first, layout, views, q.device)
        patches = views * layout.patches
        k, v, mask = rows_of(k, order), rows_of(p.v, order), marks_of(p.key_mask, order)
        sparse = self._patches(rows_of(q, order[:patches]), k, v, mask, layout)
        if not layout.special:
            return sparse
        dense = softmax_attention(rows_of(q, order[patches:]), k, v, mask)
        by_view = (x.unflatten(2, (views, -1)) for x in (dense, sparse))
        return torch.cat(tuple(by_view), 3).flatten(2, 3)

    def _patches(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, layout: TokenLayout) -> Tensor:
        patches = q.shape[2]
        scored = count_blocks(patches, self.key_block)
        extra = count_blocks(k.shape[2], self.key_block) - scored
        real = None if mask is None else mask[:, :patches]
        query_mask = pad_mask(real, q, self.query_block)
        patch_mask = pad_mask(real, q, self.key_block)
        patch_k = pad_to_blocks(k[:, :, :patches], self.key_block)
        key_mask = pad_mask(mask, k, self.key_block)
        q = pad_to_blocks(q, self.query_block)
        k, v = (pad_to_blocks(x, self.key_block) for x in (k, v))
        pooled_q, _ = pool_blocks(q, self.query_block, query_mask, self.pool)
        pooled_k, usable = pool_blocks(patch_k, self.key_block, patch_mask, self.pool)
        pooled_q = pooled_q * q.shape[-1] ** -0.5

        def choice(rows: slice) -> Tensor:
            prob = block_scores(pooled_q[:, :, rows], pooled_k, usable).softmax(-1)
            return choose_blocks(prob, self.sparsity, self.threshold, extra)

        def density() -> Tensor:
            return (choice(slice(None)) >= 0).sum((-1, -2)) / (pooled_q.shape[2] * (scored + extra))

        record(self, layout, density=density, blocks=lambda: choice(slice(None)))
        everything = self.sparsity is not None and int(scored * (1 - self.sparsity)) >= scored
        out = attend_chosen(
            *(q, k, v, None if everything else choice, self.query_block, self.key_block, key_mask),
            *(self.implementation, self.kv),
        )
        return out[:, :, :patches]
