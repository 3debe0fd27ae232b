"""A tiny ScanNet++: DSLR pictures undistorted by the set's toolkit, or by their fisheye lens; or a phone's pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pycolmap
from data.tiny import Tiny, TinyScene, millimetres, save_jpeg, save_png
from data.tiny.dl3dv import transforms

TINY = Tiny(depth_error=2e-3)

FISHEYE = {"k1": -0.04, "k2": 0.01, "k3": 0.0, "k4": 0.0}


def write(root: Path, scenes: Sequence[TinyScene]) -> None:
    """As the toolkit undistorts: pinholes, and depth in millimetres; one more frame is marked bad."""
    for number, scene in enumerate(scenes):
        place = root / "data" / f"0a5c01343{number}" / "dslr"
        content = transforms(scene, 1, {"camera_model": "PINHOLE", **dict.fromkeys(FISHEYE, 0.0)}, "DSC{:05}.JPG", 7)
        content["test_frames"] = [content["frames"].pop()]
        content["frames"].append({**content["frames"][0], "file_path": "DSC00001.JPG", "is_bad": True})
        for view, image in enumerate(scene.images):
            save_jpeg(place / "undistorted_images" / f"DSC{7 + view:05}.JPG", image)
            save_png(place / "undistorted_depths" / f"DSC{7 + view:05}.png", millimetres(scene.depth[view]))
        save_jpeg(place / "undistorted_images" / "DSC00001.JPG", scene.images[0])
        (place / "nerfstudio").mkdir()
        (place / "nerfstudio" / "transforms_undistorted.json").write_text(json.dumps(content))


def write_fisheye(root: Path, scenes: Sequence[TinyScene]) -> None:
    """As published: fisheye pictures with the toolkit's rendered depth, both through the same lens."""
    for number, scene in enumerate(scenes):
        place = root / "data" / f"0a5c01343{number}" / "dslr"
        content = transforms(scene, 1, {"camera_model": "OPENCV_FISHEYE", **FISHEYE}, "DSC{:05}.JPG", 7)
        column, row = seen_through_lens(scene)
        for view, image in enumerate(scene.images):
            save_jpeg(place / "resized_images" / f"DSC{7 + view:05}.JPG", image[row, column])
            save_png(place / "render_depth" / f"DSC{7 + view:05}.png", millimetres(scene.depth[view][row, column]))
        (place / "nerfstudio").mkdir()
        (place / "nerfstudio" / "transforms.json").write_text(json.dumps(content))


def write_phone(root: Path, scenes: Sequence[TinyScene]) -> None:
    """The phone's pictures, by a lens that bends nothing, and its coarse depth: every other pixel of it."""
    for number, scene in enumerate(scenes):
        place = root / "data" / f"0a5c01343{number}" / "iphone"
        lens = {"camera_model": "OPENCV", "k1": 0.0, "k2": 0.0, "p1": 0.0, "p2": 0.0}
        content = transforms(scene, 1, lens, "frame_{:06}.jpg", 0)
        for view, image in enumerate(scene.images):
            save_jpeg(place / "rgb" / f"frame_{view:06}.jpg", image)
            save_png(place / "depth" / f"frame_{view:06}.png", millimetres(scene.depth[view][::2, ::2]))
        (place / "nerfstudio").mkdir()
        (place / "nerfstudio" / "transforms.json").write_text(json.dumps(content))


def seen_through_lens(scene: TinyScene) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows [H, W] of the pinhole picture that the pixels of a fisheye picture of its intrinsics see.

    The fisheye sees more than the pinhole: at the edges, pixels of the pinhole's edge are repeated.
    """
    height, width = scene.depth.shape[1:]
    k = scene.intrinsics[0]
    params = [k[0, 0], k[1, 1], k[0, 2], k[1, 2], *FISHEYE.values()]
    lens = pycolmap.Camera(model="OPENCV_FISHEYE", width=width, height=height, params=params)
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    slopes = np.asarray(lens.cam_from_img(np.stack([x.ravel(), y.ravel()], 1)))
    spots = slopes * k[[0, 1], [0, 1]] + k[:2, 2]
    column, row = np.clip(np.floor(spots).astype(np.int64), 0, (width - 1, height - 1)).T.reshape(2, height, width)
    return column, row
