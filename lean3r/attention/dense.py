"""Dense softmax attention: the yardstick for every other mechanism."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lean3r.attention.base import Mechanism, Projected
from lean3r.types import TokenLayout


class Dense(Mechanism):
    """Every token attends to every token.

    implementation "sdpa" is torch's fused kernel; "explicit" writes out matmul, softmax, matmul, whose
    backward pass on CPUs in bfloat16 is several times faster at a few hundred tokens. "auto" takes the
    explicit form where that holds: on a CPU while gradients are recorded.
    """

    def __init__(self, implementation: Literal["auto", "sdpa", "explicit"] = "auto"):
        super().__init__()
        self.implementation = implementation

    def extra_repr(self) -> str:
        """Shown by repr(model)."""
        return f"implementation={self.implementation!r}"

    def forward(self, p: Projected, layout: TokenLayout) -> Tensor:
        """softmax(q k^T / sqrt(D)) v over [B, H, N, D]."""
        q, k = p.finish(p.q, p.k)
        mask = None if p.key_mask is None else p.key_mask[:, None, None, :]
        explicit = self.implementation == "explicit"
        if self.implementation == "auto":
            explicit = q.device.type == "cpu" and torch.is_grad_enabled() and q.requires_grad
        if not explicit:
            return F.scaled_dot_product_attention(q, k, p.v, attn_mask=mask)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        return scores.softmax(-1) @ p.v
