"""Camera and pair files of MVSNet, for the tiny copies of DTU and BlendedMVS."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from data.tiny import numbers


def write_camera(path: Path, intrinsics: np.ndarray, pose: np.ndarray) -> None:
    """One *_cam.txt; `intrinsics` count from the corner of the picture, the file's from the first pixel's centre."""
    k = intrinsics.copy()
    k[:2, 2] -= 0.5
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"extrinsic\n{numbers(pose)}\n\nintrinsic\n{numbers(k)}\n\n0.1 0.05 192 10.0\n")


def write_pairs(path: Path, views: int) -> None:
    """A pair.txt in which neighbours in time score best."""
    lines = [str(views)]
    for one in range(views):
        others = sorted((v for v in range(views) if v != one), key=lambda v: abs(v - one))
        lines += [str(one), f"{len(others)} " + " ".join(f"{v} {100 / abs(v - one):.2f}" for v in others)]
    path.write_text("\n".join(lines) + "\n")
