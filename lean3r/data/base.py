"""The contract between data sets and whoever uses them: a SceneBatch of views with exact geometry."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class SceneBatch:
    """B scenes of S views of one size.

    images [B, S, 3, H, W] RGB in [0, 1]; depth [B, S, H, W] z-depth, 0 where there is none (sky, holes);
    intrinsics [B, S, 3, 3] in pixels of `images`; cam_from_world [B, S, 4, 4]; normals [B, S, 3, H, W] unit,
    in camera axes, towards the camera (0 where there is no depth), None where the set has none. `mask`
    [B, S, H, W] bool, False on padding, None without padding. World units are metres if `is_metric`.
    """

    images: Tensor
    depth: Tensor
    intrinsics: Tensor
    cam_from_world: Tensor
    normals: Tensor | None = None
    mask: Tensor | None = None
    is_metric: bool = False

    def to(self, device: torch.device | str) -> SceneBatch:
        """The same batch with every tensor on `device`."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return SceneBatch(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in values.items()})
