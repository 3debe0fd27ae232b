"""depth/: one 16-bit PNG and one coloured picture per view, at network resolution without the padding."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from lean3r.export.cameras import json_bytes
from lean3r.export.names import safe_stems
from lean3r.export.options import ExportOptions
from lean3r.types import Reconstruction

LEVELS, LEAST_LEVELS = 65535, 1000
SAMPLE = 1_000_000  # depths that the median is taken from: exact below, a regular sample above
MILLIMETRE = 0.001


def write(reconstruction: Reconstruction, directory: Path, options: ExportOptions) -> list[Path]:
    """Write `depth/<stem>.png` (depth = value * scale, 0 unknown or too far), `depth/preview/<stem>.jpg`,
    `depth/scale.json`."""
    folder = directory / "depth"
    (folder / "preview").mkdir(parents=True)
    scale = units_per_level(reconstruction.depth, metric=reconstruction.scale == "metric")
    text = PngImagePlugin.PngInfo()
    text.add_text("scale", repr(scale))
    text.add_text("unit", f"depth = value * scale, in world units ({reconstruction.scale}); 0 is unknown or farther")
    files, views = [], []
    for index, stem in enumerate(safe_stems(reconstruction.names)):
        rows, cols = picture_region(reconstruction.mask[index])
        depth = reconstruction.depth[index, rows, cols]
        paths = folder / f"{stem}.png", folder / "preview" / f"{stem}.jpg"
        known = np.isfinite(depth) & (depth > 0)
        levels = np.round(np.where(known, depth, 0) / scale)
        levels = np.where(known & (levels <= LEVELS), levels.clip(1), 0).astype(np.uint16)
        Image.fromarray(levels).save(paths[0], compress_level=1, pnginfo=text)
        Image.fromarray(colourise(depth)).save(paths[1], quality=92)
        files += paths
        views.append(
            {
                "file": paths[0].name,
                "name": reconstruction.names[index],
                "network_offset": [cols.start, rows.start],
                "original_from_network": list(reconstruction.sources[index].original_from_network),
            }
        )
    sidecar = folder / "scale.json"
    sidecar.write_bytes(json_bytes({"scale": scale, "unit": reconstruction.scale, "unknown": 0, "views": views}))
    return [*files, sidecar]


def units_per_level(depth: np.ndarray, *, metric: bool) -> float:
    """World units of one grey level, the same for all views.

    A millimetre for metric depth up to 65.535 m, as other programs expect, but a tenth, a hundredth, ... of it if that
    makes fewer than 1000 levels; otherwise the greatest depth / 65535. Depth beyond 65.535 times the median is left
    out: a single pixel far away would leave few levels for all others.
    """
    known = depth[np.isfinite(depth) & (depth > 0)]
    if not len(known):
        return 1.0
    usual = float(np.median(known[:: 1 + len(known) // SAMPLE]))
    deepest = min(float(known.max()), usual * LEVELS / LEAST_LEVELS)
    if metric and LEAST_LEVELS * MILLIMETRE <= deepest <= LEVELS * MILLIMETRE:
        return MILLIMETRE
    if metric and deepest < LEAST_LEVELS * MILLIMETRE:
        return 10.0 ** math.ceil(math.log10(deepest / LEVELS))
    return deepest / LEVELS


def picture_region(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the smallest rectangle around the True pixels of mask [H, W]; the whole mask if none is."""
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return slice(0, mask.shape[0]), slice(0, mask.shape[1])
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1)


def colourise(depth: np.ndarray) -> np.ndarray:
    """Depth [H, W] as RGB uint8: warm is near and dark blue is far (linear in inverse depth), black is unknown."""
    valid = np.isfinite(depth) & (depth > 0)
    if not valid.any():
        return np.zeros((*depth.shape, 3), dtype=np.uint8)
    inverse = np.divide(1.0, depth, out=np.zeros(depth.shape), where=valid)
    far, near = np.percentile(inverse[valid], [1, 99])
    level = ((inverse - far) / max(near - far, 1e-12)).clip(0, 1)
    return np.where(valid[..., None], PALETTE[(level * 255).astype(np.uint8)], 0).astype(np.uint8)


def _palette() -> np.ndarray:
    """256 colours [256, 3] from dark blue through teal and yellow to warm red."""
    stops = np.array([(28, 20, 70), (48, 63, 148), (36, 122, 160), (70, 178, 142), (181, 213, 98), (248, 200, 76),
                      (240, 124, 62), (190, 48, 60)])  # fmt: skip
    at = np.linspace(0, len(stops) - 1, 256)
    return np.stack([np.interp(at, np.arange(len(stops)), stops[:, c]) for c in range(3)], axis=1).astype(np.uint8)


PALETTE = _palette()
