"""predictions.npz: everything that was predicted, at network resolution, for scripts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lean3r.export.options import ExportOptions
from lean3r.types import Lens, Reconstruction


def write(reconstruction: Reconstruction, directory: Path, options: ExportOptions) -> list[Path]:
    """Write predictions.npz (keys in docs/outputs.md), without pickles, so that plain `np.load` reads it."""
    sources = reconstruction.sources
    path = directory / "predictions.npz"
    # Not compressed: deflate takes longer than the rest of the export and saves only a third.
    np.savez(
        path,
        allow_pickle=False,
        names=np.array(reconstruction.names, dtype=np.str_),
        depth=reconstruction.depth.astype(np.float32, copy=False),
        conf=reconstruction.conf.astype(np.float32, copy=False),
        mask=reconstruction.mask.astype(bool, copy=False),
        K=reconstruction.intrinsics.astype(np.float64, copy=False),
        K_original=reconstruction.original_intrinsics,
        cam_from_world=reconstruction.cam_from_world.astype(np.float64, copy=False),
        world_from_cam=np.linalg.inv(reconstruction.cam_from_world.astype(np.float64, copy=False)),
        image_size=np.array([(s.width, s.height) for s in sources], dtype=np.int32),
        original_from_network=np.array([s.original_from_network for s in sources], dtype=np.float64),
        scale=np.array(reconstruction.scale),
        registration=np.array(reconstruction.registration or ["predicted"] * len(sources), dtype=np.str_),
        **_lenses(reconstruction.lenses),
    )
    return [path]


def _lenses(lenses: Sequence[Lens]) -> dict[str, np.ndarray]:
    """Models [S] and parameters [S, L] of the lenses, shorter rows padded with NaN; empty without lenses."""
    if not lenses:
        return {}
    params = np.full((len(lenses), max(len(lens.params) for lens in lenses)), np.nan)
    for row, lens in zip(params, lenses, strict=True):
        row[: len(lens.params)] = lens.params
    return {"lens_model": np.array([lens.model for lens in lenses], dtype=np.str_), "lens_params": params}
