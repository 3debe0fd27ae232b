"""Norm and scaled sum in plain torch, in float32 at least."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def norm_reference(x: Tensor, gain: Tensor, offset: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """See `norm_to`."""
    return F.layer_norm(x.float(), gain.shape, gain.float(), offset.float(), eps).to(dtype)


def add_scaled_reference(x: Tensor, branch: Tensor, gamma: Tensor | None, out: Tensor | None) -> Tensor:
    """See `add_scaled`."""
    kind = widest(x, branch, gamma)
    wide = torch.promote_types(kind, torch.float32)
    scaled = branch.to(wide) if gamma is None else branch.to(wide) * gamma.to(wide)
    result = (x.to(wide) + scaled).to(kind)
    return result if out is None else out.copy_(result)


def widest(x: Tensor, branch: Tensor, gamma: Tensor | None) -> torch.dtype:
    """The type of x + branch * gamma."""
    kind = torch.promote_types(x.dtype, branch.dtype)
    return kind if gamma is None else torch.promote_types(kind, gamma.dtype)
