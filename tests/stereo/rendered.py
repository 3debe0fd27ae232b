"""Rendered scenes with true cameras and damaged depth."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

from lean3r.data.base import SceneBatch
from lean3r.data.world.synthetic import HELD_OUT_SEED, SyntheticWorld
from lean3r.pipeline.trust import no_points
from lean3r.types import Reconstruction, Source


@cache
def truth(index: int, views: int = 5, height: int = 120, width: int = 152) -> SceneBatch:
    """A held-out scene without distortion."""
    world = SyntheticWorld(seed=HELD_OUT_SEED, distortion=0.0)
    return world.batch(index, 1, views=views, height=height, width=width)


def bent(depth: torch.Tensor, error: float = 0.1, seed: int = 0) -> torch.Tensor:
    """Depth [S, H, W] with smooth relative errors."""
    noise = torch.randn(len(depth), 1, 4, 4, generator=torch.Generator().manual_seed(seed)) * error
    return depth * F.interpolate(noise, depth.shape[-2:], mode="bicubic", align_corners=False)[:, 0].exp()


def scene(batch: SceneBatch, depth: torch.Tensor | None = None, scale: float = 1.0) -> Reconstruction:
    """The true cameras with some depth, in a unit `scale` times smaller."""
    views, _, height, width = batch.images[0].shape
    poses = batch.cam_from_world[0].double().numpy().copy()
    poses[:, :3, 3] *= scale
    maps = bent(batch.depth[0]) if depth is None else depth
    return Reconstruction(
        sources=tuple(Source(f"{n}.png", width, height) for n in range(views)),
        images=(batch.images[0].permute(0, 2, 3, 1) * 255).round().byte().numpy(),
        mask=np.ones((views, height, width), bool),
        depth=(maps * scale).float().numpy(),
        conf=np.ones((views, height, width), np.float32),
        cam_from_world=poses,
        intrinsics=batch.intrinsics[0].double().numpy(),
        points=no_points(),
        registration=("refined",) * views,
    )


def of_views(found: Reconstruction, views: list[int]) -> Reconstruction:
    """The scene of some of its views."""
    parts = {name: getattr(found, name)[views] for name in ("images", "mask", "depth", "conf", "cam_from_world")}
    return replace(
        found,
        **parts,
        intrinsics=found.intrinsics[views],
        sources=tuple(found.sources[v] for v in views),
        registration=tuple(found.registration[v] for v in views),
    )


def with_padding(found: Reconstruction, rows: int) -> Reconstruction:
    """The scene with so many rows of padding above and below its pictures."""
    around = ((0, 0), (rows, rows), (0, 0))
    padded = {name: np.pad(getattr(found, name), around) for name in ("mask", "depth", "conf")}
    images = np.pad(found.images, (*around, (0, 0)), constant_values=128)
    intrinsics = found.intrinsics + np.array([[0.0, 0.0, 0.0], [0.0, 0.0, rows], [0.0, 0.0, 0.0]])
    sources = tuple(replace(source, original_from_network=(1.0, 1.0, 0.0, -float(rows))) for source in found.sources)
    return replace(found, **padded, images=images, intrinsics=intrinsics, sources=sources)


def error(depth: np.ndarray, batch: SceneBatch) -> float:
    """Mean relative error of depth where it is known."""
    true = batch.depth[0].numpy()
    known = (true > 0) & (depth > 0)
    return float(np.abs(depth[known] / true[known] - 1).mean())
