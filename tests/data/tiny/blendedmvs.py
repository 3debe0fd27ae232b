"""A tiny BlendedMVS: pictures, cameras, depth maps and pairs, one folder a scene."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data.tiny import TinyScene, save_jpeg
from data.tiny.mvsnet import write_camera, write_pairs

from lean3r.data.sets.formats.files import write_pfm


def write(root: Path, scenes: Sequence[TinyScene]) -> None:
    """Scenes are called by hexadecimal numbers, and each picture has a masked twin that is not a view."""
    for number, scene in enumerate(scenes):
        folder = root / f"5a{number:022x}"
        (folder / "rendered_depth_maps").mkdir(parents=True)
        for v, (image, pose) in enumerate(zip(scene.images, scene.cam_from_world, strict=True)):
            save_jpeg(folder / "blended_images" / f"{v:08}.jpg", image)
            save_jpeg(folder / "blended_images" / f"{v:08}_masked.jpg", image)
            write_camera(folder / "cams" / f"{v:08}_cam.txt", scene.intrinsics[v], pose)
            write_pfm(folder / "rendered_depth_maps" / f"{v:08}.pfm", scene.depth[v])
        write_pairs(folder / "cams" / "pair.txt", len(scene.images))
