"""Attention over chosen key blocks: every block of queries has its own list of key blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from lean3r.errors import UsageError
from lean3r.ops.block_sparse.coded import KeyValues, check_kv, rounded_blocks
from lean3r.ops.dispatch import Implementation, choose, too_large
from lean3r.ops.registered import operator
from lean3r.tracing import is_traced, without_autocast

__all__ = ["KeyValues", "block_sparse_attention", "check_kv", "rounded_blocks", "unsupported"]

DenseKeys = tuple[Tensor, Tensor]


def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Tensor,
    *,
    query_block: int,
    key_block: int,
    scale: float | None = None,
    key_mask: Tensor | None = None,
    dense_keys: DenseKeys | None = None,
    kv: KeyValues = "full",
    implementation: Implementation = "auto",
) -> Tensor:
    """Softmax attention of every query over the keys of the blocks that its query block lists.

    q [B, H, nq * query_block, D]; k, v [B, H, nk * key_block, D], after norm and rotation; callers pad. blocks
    [B, H, nq, K], any integer type: indices below 0 or from nk on are skipped, a block listed twice counts twice.
    scale is D^-0.5 by default. key_mask [B, nk * key_block] is False on keys that are never attended to; what they
    hold, NaN included, is never read. dense_keys (k, v), each [B, H, E, D], are seen by every query besides.
    kv "fp8" rounds k and v, not dense_keys, to E4M3 with one scale a key block and head; gradients pass straight
    through. The kernel then reads bytes; other paths, and runs that record gradients, multiply what these stand for.

    Returns [B, H, nq * query_block, D] in q's dtype, differentiable in q, k, v and dense_keys. A query with
    nothing to attend to gives zeros; a query holding NaN gives NaN and passes no gradient to anything.
    "reference" keeps all scores, quadratic in memory; "torch" gathers the listed blocks in bounded memory; "triton"
    serves head_dim 32 to 128 and blocks of 16 to 128. Raises UsageError for shapes that do not fit together,
    KernelError for an explicit implementation that cannot run.

    Source: token branch of Speed3R (arXiv 2603.08055).
    """
    check_kv(kv)
    extra_k, extra_v = dense_keys if dense_keys is not None else (None, None)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    return _operator(*(q, k, v, blocks, key_mask, extra_k, extra_v, query_block, key_block, factor, kv, implementation))


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Tensor,
    key_mask: Tensor | None,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
    query_block: int,
    key_block: int,
    factor: float,
    kv: KeyValues,
    implementation: Implementation,
) -> Tensor:
    dense_keys = None if extra_k is None or extra_v is None else (extra_k, extra_v)
    _check(q, k, v, blocks, query_block, key_block, key_mask, dense_keys)
    tensors = (q, k, v, *(dense_keys or ()))
    reason = unsupported(q.shape[-1], query_block, key_block)
    reason = reason or too_large(q, max(query_block, key_block))
    chosen = "traced"
    if not is_traced():
        chosen = choose("block_sparse_attention", implementation, tensors, torch_path=True, unsupported=reason)
    coded = kv == "fp8" and k.shape[2] > 0
    if coded and (chosen != "triton" or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))):
        k, v, coded = rounded_blocks(k, key_block, key_mask), rounded_blocks(v, key_block, key_mask), False
    if coded:
        from lean3r.ops.block_sparse.kernel_fp8 import attend
    elif chosen == "triton":
        from lean3r.ops.block_sparse.kernel import attend
    elif chosen == "torch":
        from lean3r.ops.block_sparse.gather import attend
    elif chosen == "traced":
        from lean3r.ops.block_sparse.traced import attend
    else:
        from lean3r.ops.block_sparse.reference import attend
    with without_autocast(q.device.type):
        return attend(q, k, v, blocks, query_block, key_block, factor, key_mask, dense_keys)


_operator = operator(
    "block_sparse_attention",
    "(Tensor q, Tensor k, Tensor v, Tensor blocks, Tensor? key_mask, Tensor? extra_k, Tensor? extra_v, "
    "int query_block, int key_block, float factor, str kv, str implementation) -> Tensor",
    _run,
    lambda q, *_: q.new_empty(q.shape),
)


def unsupported(head_dim: int, query_block: int, key_block: int) -> str | None:
    """What the kernel has against these sizes; None when it takes them."""
    if not 32 <= head_dim <= 128:
        return f"head_dim {head_dim} is not within 32 to 128"
    for name, size in (("query", query_block), ("key", key_block)):
        if not 16 <= size <= 128:
            return f"{name} blocks of {size} are not within 16 to 128"
    return None


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Tensor,
    query_block: int,
    key_block: int,
    key_mask: Tensor | None,
    dense_keys: DenseKeys | None,
) -> None:
    """UsageError for shapes and types that do not belong together."""

    def expect(truth: bool, what: str, got: object) -> None:
        if not truth:
            raise UsageError(f"block_sparse_attention: {what}, got {got}")

    expect(q.ndim == 4, "q is [B, H, N, D]", list(q.shape))
    batch, heads, queries, dim = q.shape
    expect(
        k.shape == v.shape and k.ndim == 4 and (*k.shape[:2], k.shape[3]) == (batch, heads, dim),
        f"k and v are [{batch}, {heads}, N, {dim}] like q {list(q.shape)}",
        f"{list(k.shape)} and {list(v.shape)}",
    )
    expect(min(query_block, key_block) >= 1, "block sizes are at least 1", (query_block, key_block))
    expect(queries % query_block == 0, f"queries are padded to a multiple of query_block {query_block}", queries)
    expect(k.shape[2] % key_block == 0, f"keys are padded to a multiple of key_block {key_block}", k.shape[2])
    expect(
        blocks.ndim == 4 and blocks.shape[:3] == (batch, heads, queries // query_block),
        f"blocks is [{batch}, {heads}, {queries // query_block}, K]",
        list(blocks.shape),
    )
    expect(not blocks.is_floating_point() and blocks.dtype != torch.bool, "blocks holds indices", blocks.dtype)
    if key_mask is not None:
        expect(
            key_mask.dtype == torch.bool and key_mask.shape == (batch, k.shape[2]),
            f"key_mask is a bool [{batch}, {k.shape[2]}]",
            f"{key_mask.dtype} {list(key_mask.shape)}",
        )
    for extra in dense_keys or ():
        expect(
            extra.ndim == 4 and (*extra.shape[:2], extra.shape[3]) == (batch, heads, dim),
            f"dense_keys are two [{batch}, {heads}, E, {dim}]",
            list(extra.shape),
        )
    if dense_keys is not None:
        expect(dense_keys[0].shape == dense_keys[1].shape, "dense_keys have one shape", list(dense_keys[1].shape))
    kinds = {t.dtype for t in (q, k, v, *(dense_keys or ()))}
    expect(len(kinds) == 1, "q, k, v and dense_keys have one dtype", ", ".join(sorted(map(str, kinds))))
