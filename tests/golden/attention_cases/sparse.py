"""Attention over given key blocks, Speed3R's token branch: k_bs*."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from lean3r.ops.block_sparse import block_sparse_attention
from lean3r.testing import assert_rms


def listed_blocks(path: Path, implementation: str) -> None:
    """out, and the gradients where the file has them; the window is tokens over lists."""
    device = "cuda" if implementation == "triton" and torch.cuda.is_available() else "cpu"
    with np.load(path, allow_pickle=False) as archive:
        case = {name: torch.from_numpy(archive[name]) for name in archive.files}
    qkv = [case[name].to(device).requires_grad_() for name in "qkv"]
    blocks = case["selected"].to(device)
    window = qkv[0].shape[2] // blocks.shape[2]
    out = block_sparse_attention(
        *qkv,
        blocks,
        query_block=window,
        key_block=window,
        implementation=implementation,  # type: ignore[arg-type]
    )
    assert_rms(out.detach().cpu(), case["out"], 1e-5)
    if "cotangent" not in case:
        return
    for name, gradient in zip("qkv", torch.autograd.grad(out, qkv, case["cotangent"].to(device)), strict=True):
        assert_rms(gradient.cpu(), case[f"grad_{name}"], 1e-5)


CASES = {"k_bs": listed_blocks}
IMPLEMENTATIONS = {"k_bs": ("reference", "torch", "triton")}
