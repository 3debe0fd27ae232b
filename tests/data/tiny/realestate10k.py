"""A tiny RealEstate10K: camera files and frames by timestamp."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data.tiny import Tiny, TinyScene, save_jpeg

TINY = Tiny(depth="none")


def write(root: Path, scenes: Sequence[TinyScene]) -> None:
    """cameras/train/CLIP.txt and frames/train/CLIP/TIMESTAMP.jpg; timestamps gain digits on the way."""
    (root / "cameras" / "train").mkdir(parents=True)
    for number, scene in enumerate(scenes):
        clip = f"{number:016x}"
        lines = ["https://www.youtube.com/watch?v=none"]
        height, width = scene.depth.shape[1:]
        for v, (k, pose) in enumerate(zip(scene.intrinsics, scene.cam_from_world, strict=True)):
            stamp = 900_000 + 33_366 * v
            save_jpeg(root / "frames" / "train" / clip / f"{stamp}.jpg", scene.images[v])
            shares = (k[0, 0] / width, k[1, 1] / height, k[0, 2] / width, k[1, 2] / height, 0, 0)
            lines.append(" ".join([str(stamp), *(f"{x:.9f}" for x in (*shares, *pose[:3].ravel()))]))
        (root / "cameras" / "train" / f"{clip}.txt").write_text("\n".join(lines) + "\n")
