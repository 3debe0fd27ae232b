"""Two-axis rotation in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def frequencies(dim: int, base: float, device: torch.device) -> Tensor:
    """Angle in radians for each unit of position, [D / 4] float32."""
    half = dim // 2
    return base ** (-torch.arange(0, half, 2, dtype=torch.float32, device=device) / half)


def reference(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """x [B, H, N, D], positions [N, 2] or [B, N, 2] -> [B, H, N, D]; angles in float32."""
    positions = positions if positions.ndim == 3 else positions[None]
    angle_rad = positions[..., None].float() * frequencies(x.shape[-1], base, x.device)  # [B, N, 2, D / 4]
    cos, sin = (t[:, None].to(x.dtype) for t in (angle_rad.cos(), angle_rad.sin()))
    a, b = x.unflatten(-1, (2, 2, -1)).unbind(-2)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -2).flatten(-3)
