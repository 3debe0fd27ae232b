"""Block selection and pooled attention of Speed3R's release: k_topk_*."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from thin import same_places

from lean3r.ops.block_select import block_select
from lean3r.testing import assert_rms


def topk(path: Path, implementation: str) -> None:
    """out, lse, the list with the release's padding, and the gradients of out."""
    device = "cuda" if implementation == "triton" and torch.cuda.is_available() else "cpu"
    with np.load(path, allow_pickle=False) as archive:
        case = {name: torch.from_numpy(archive[name]) for name in archive.files}
    qkv = [case[name].to(device).requires_grad_() for name in "qkv"]
    top_k = case["selected"].shape[-1]
    got = block_select(*qkv, top_k, fill="repeat_last", implementation=implementation)  # type: ignore[arg-type]
    assert torch.equal(got.blocks.cpu(), case["selected"])
    limit = 1e-5
    assert_rms(*same_places(got.out.cpu(), case, "out"), limit)
    assert_rms(got.lse.cpu(), case["lse"], limit)
    for name, gradient in zip("qkv", torch.autograd.grad(got.out, qkv, case["cotangent"].to(device)), strict=True):
        assert_rms(*same_places(gradient.cpu(), case, f"grad_{name}"), limit)


CASES = {"k_topk": topk}
IMPLEMENTATIONS = {"k_topk": ("reference", "torch", "triton")}
