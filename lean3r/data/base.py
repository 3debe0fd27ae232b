"""SceneBatch, the output of every data source: views with exact geometry."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class SceneBatch:
    """B scenes of S views of one size.

    images [B, S, 3, H, W] RGB in [0, 1]; depth [B, S, H, W] z-depth, 0 where unknown (sky, holes);
    intrinsics [B, S, 3, 3] in pixels of `images`; cam_from_world [B, S, 4, 4]; normals [B, S, 3, H, W] unit,
    in camera axes, towards the camera (0 where there is no depth), None where the set has none. `mask`
    [B, S, H, W] bool, False on padding, None without padding. World units are metres if `is_metric`. `ids` names the
    B samples, for logs; `skipped` names samples that could not be read and were replaced; `unknown` is the number of
    pixels whose depth in the files was not finite; their depth is 0.
    """

    images: Tensor
    depth: Tensor
    intrinsics: Tensor
    cam_from_world: Tensor
    normals: Tensor | None = None
    mask: Tensor | None = None
    is_metric: bool = False
    ids: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    unknown: int = 0

    @property
    def views(self) -> int:
        """Pictures of all scenes, B x S."""
        return self.images.shape[0] * self.images.shape[1]

    def to(self, device: torch.device | str) -> SceneBatch:
        """The same batch with every tensor on `device`."""
        tensors = {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        return replace(self, **{name: value.to(device) for name, value in tensors.items()})
