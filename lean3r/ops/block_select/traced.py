"""Block selection as torch.export records it: whole, for any number of blocks; ties in the order of torch.topk."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lean3r.ops.block_select.reference import LOWEST


def select(
    q: Tensor, k: Tensor, v: Tensor, top_k: int, scale: float, key_mask: Tensor | None, skip: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Blocks [B, H, nq, top_k] that are not in `skip`, out [B, H, nq, D], lse [B, H, nq]; see `block_select`."""
    scores = q.float() @ k.float().transpose(-1, -2)
    attended = torch.ones_like(k[:, 0, :, 0], dtype=torch.bool) if key_mask is None else key_mask
    hidden = ~attended[:, None, None]
    scaled = (scores * scale).masked_fill(hidden, LOWEST)
    out = (scaled.softmax(-1) * attended[:, None, None]) @ v.float()
    lse = scaled.logsumexp(-1).masked_fill(hidden.all(-1), -torch.inf)
    for block in skip:
        hidden = hidden | (torch.arange(k.shape[2], device=k.device) == block)
    # As many more blocks as are wanted, so that there are always enough.
    ranked = F.pad(
        scores.nan_to_num(LOWEST, torch.inf, LOWEST).masked_fill(hidden, -torch.inf), (0, top_k), value=-torch.inf
    )
    best = ranked.topk(top_k)
    return best.indices.masked_fill(best.values == -torch.inf, -1).int(), out.to(v.dtype), lse
