"""A tiny 7-Scenes with the depth that SimpleRecon projects: pictures of 640 x 480 with the Kinect's intrinsics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from data.tiny import Tiny, TinyScene, millimetres, save_png

from lean3r.data.sets.sevenscenes import COLOUR_CAMERA, DEPTH_CAMERA, SIZE

TINY = Tiny(depth_error=2e-3)


def write(root: Path, scenes: Sequence[TinyScene]) -> list[TinyScene]:
    """One sequence a room, each in one list; the last frame has no pose. What a reader finds."""
    made = [enlarged(scene, COLOUR_CAMERA) for scene in scenes]
    for number, scene in enumerate(made):
        room = root / ("chess", "heads")[number]
        write_sequence(room / "seq-01", scene, "depth.proj.png")
        for view in range(len(scene.images) + 1):  # raw depth is not read where there is projected depth
            save_png(room / "seq-01" / f"frame-{view:06}.depth.png", np.full(SIZE[::-1], 65535, np.uint16))
        for kind, split in (("Train", 0), ("Test", 1)):
            (room / f"{kind}Split.txt").write_text("sequence1 \r\n" if split == number else "")
    return made


def write_raw(root: Path, scenes: Sequence[TinyScene]) -> list[TinyScene]:
    """As published, were the colour camera the depth camera: what a reader of raw depth finds."""
    made = [enlarged(scene, DEPTH_CAMERA) for scene in scenes]
    for number, scene in enumerate(made):
        write_sequence(root / ("chess", "heads")[number] / "seq-01", scene, "depth.png")
    return made


def write_sequence(folder: Path, scene: TinyScene, kind: str) -> None:
    """Frames of one sequence, and one more without a pose; unknown depth is 65535, and sometimes 0."""
    views = len(scene.images)
    folder.mkdir(parents=True)
    for view in range(views + 1):
        source = min(view, views - 1)
        depth = millimetres(scene.depth[source])
        depth[:1][depth[:1] == 0] = 65535
        save_png(folder / f"frame-{view:06}.color.png", scene.images[source])
        save_png(folder / f"frame-{view:06}.{kind}", depth)
        pose = scene.world_from_cam[source] if view < views else np.full((4, 4), np.nan)
        text = "\n".join("\t ".join(f"{x:.17e}" for x in row) + "\t" for row in pose)
        (folder / f"frame-{view:06}.pose.txt").write_text(text + "\n")


def enlarged(scene: TinyScene, camera: np.ndarray) -> TinyScene:
    """The scene as a camera of a Kinect sees it. On surfaces the inverse of depth is interpolated, as it is linear on
    planes, and goes on outside the scene's pictures; at edges depth is the nearest pixel's."""
    width, height = SIZE
    k = scene.intrinsics[0]
    x = (np.arange(width) + 0.5 - camera[0, 2]) / camera[0, 0] * k[0, 0] + k[0, 2] - 0.5
    y = (np.arange(height) + 0.5 - camera[1, 2]) / camera[1, 1] * k[1, 1] + k[1, 2] - 0.5
    tall, wide = scene.depth.shape[1:]
    left, top = np.floor(x).astype(int).clip(0, wide - 2), np.floor(y).astype(int).clip(0, tall - 2)
    u, v = x - left, (y - top)[:, None]
    near = np.ix_(
        range(len(scene.depth)), np.rint(y).astype(int).clip(0, tall - 1), np.rint(x).astype(int).clip(0, wide - 1)
    )
    inverse = 1 / np.where(scene.depth > 0, scene.depth, 1e-6)  # unknown depth is far from even
    a, b, c, d = (inverse[:, top + dy][:, :, left + dx] for dy in (0, 1) for dx in (0, 1))
    is_even = (scene.depth[near] > 0) & (np.maximum.reduce([a, b, c, d]) < 1.1 * np.minimum.reduce([a, b, c, d]))
    mixed = (1 - v) * ((1 - u) * a + u * b) + v * ((1 - u) * c + u * d)
    depth = np.where(is_even, 1 / mixed, scene.depth[near]).astype(np.float32)
    return TinyScene(
        scene.images[near], depth, np.zeros(0), np.repeat(camera[None], len(depth), 0), scene.cam_from_world
    )
