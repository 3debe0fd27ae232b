"""Attention to runs of rows in plain torch: the runs are copied one behind the other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

FEW = 16  # queries that one program of the kernel takes, in tiles that fit every card


def reference(q: Tensor, k: Tensor, v: Tensor, spans: Tensor, scale: float) -> Tensor:
    """See `span_attention`."""
    runs = [slice(first, first + count) for first, count in spans.tolist()]
    k, v = (torch.cat([x[:, run] for run in runs], 1) for x in (k, v))
    return F.scaled_dot_product_attention(q[None], k[None], v[None], scale=scale)[0].contiguous()
