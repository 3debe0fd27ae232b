"""A furnished living room, and photographs of it as from a phone: for `lean3r demo` and the README."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lean3r.data.base import SceneBatch
from lean3r.data.world.camera_noise import Sensor, develop, write_photo
from lean3r.data.world.places import Scene, rotate_x, rotate_y
from lean3r.data.world.raycast import Counts, product
from lean3r.data.world.render import render
from lean3r.data.world.textures import FAMILIES, atlas, family_rows
from lean3r.data.world.trajectories import look_at, pinhole, world_to_camera

ATLAS_SEED = 5
TILES = 12 * len(FAMILIES)
TILE_SIZE = 256
FOCAL_35MM = 26.0  # the main camera of most phones
ROOM = (2.7, 1.3, 2.3)  # half extents in metres


class Thing(NamedTuple):
    """One solid: centre (x, y DOWN, z; floor at y = 0) and half size in metres, texture (family, number), tiles
    per metre (0: the tile is stretched over each face), brightness, yaw and lean in radians, gloss."""

    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    texture: tuple[str, int]
    density: float = 1.0
    tint: float = 1.0
    yaw: float = 0.0
    lean: float = 0.0
    gloss: float = 0.0


SHELL = (("plain", 1), ("plain", 7), ("plain", 1), ("wood", 5), ("plain", 10), ("bricks", 3))
SHELL_DENSITY = (0.5, 0.5, 0.4, 0.45, 0.6, 0.75)

BOXES = (
    # Sofa with two cushions.
    Thing((0.1, -0.24, 1.72), (0.95, 0.20, 0.42), ("speckle", 11), 1.6, 1.3),
    Thing((0.1, -0.60, 2.06), (0.95, 0.30, 0.14), ("speckle", 11), 1.6, 1.2),
    Thing((-0.97, -0.33, 1.74), (0.13, 0.33, 0.45), ("speckle", 11), 1.6, 1.1),
    Thing((1.17, -0.33, 1.74), (0.13, 0.33, 0.45), ("speckle", 11), 1.6, 1.1),
    Thing((-0.50, -0.62, 1.76), (0.24, 0.20, 0.07), ("checks", 0), 0.0, 1.1, 0.25, 0.35),
    Thing((0.68, -0.62, 1.76), (0.24, 0.20, 0.07), ("stripes", 5), 0.0, 1.0, -0.2, 0.35),
    # Rug, coffee table, books.
    Thing((0.1, -0.012, 0.50), (1.30, 0.012, 0.80), ("checks", 8), 0.0, 0.9),
    Thing((0.1, -0.43, 0.55), (0.55, 0.025, 0.32), ("wood", 3), 0.9, 1.3, 0.0, 0.0, 0.25),
    Thing((-0.12, -0.485, 0.50), (0.15, 0.03, 0.11), ("text", 4), 0.0, 1.0, 0.4),
    Thing((-0.10, -0.535, 0.50), (0.13, 0.02, 0.09), ("cards", 2), 0.0, 1.2, 0.9),
    # Bookcase on the left, cabinet in the corner, door, armchair.
    Thing((-2.50, -1.00, 0.55), (0.20, 1.00, 0.85), ("shelf", 2), 0.75, 1.2),
    Thing((-2.49, -2.02, 0.55), (0.22, 0.03, 0.88), ("wood", 2), 0.8, 1.2),
    Thing((1.98, -0.40, 2.02), (0.50, 0.40, 0.26), ("wood", 2), 0.9, 1.4, 0.0, 0.0, 0.2),
    Thing((-2.67, -1.02, -1.20), (0.03, 1.02, 0.43), ("wood", 1), 0.6, 1.3),
    Thing((1.85, -0.26, 0.00), (0.36, 0.18, 0.36), ("speckle", 4), 1.6, 1.9, 0.9),
    Thing((2.15, -0.52, -0.20), (0.40, 0.44, 0.09), ("speckle", 4), 1.6, 1.9, 0.9 - math.pi / 2),
    # Pictures on the back wall, the window on the right.
    Thing((-1.62, -1.62, 2.27), (0.42, 0.32, 0.03), ("leaves", 7), 0.0, 1.2),
    Thing((0.10, -1.62, 2.27), (0.60, 0.40, 0.03), ("cards", 2), 0.0, 1.2),
    Thing((1.80, -1.58, 2.27), (0.36, 0.46, 0.03), ("cloudy", 7), 0.0, 1.2),
    Thing((2.69, -1.50, 0.55), (0.02, 0.62, 0.85), ("blobs", 5), 0.0, 1.5),
    Thing((2.68, -1.50, 0.55), (0.03, 0.62, 0.035), ("plain", 11), 1.0, 0.9),
    Thing((2.68, -1.50, 0.55), (0.03, 0.035, 0.85), ("plain", 11), 1.0, 0.9),
    Thing((2.62, -0.86, 0.55), (0.10, 0.025, 0.95), ("plain", 11), 1.0, 0.9),
)
BALLS = (
    Thing((2.15, -0.80, 1.15), (0.30, 0.36, 0.30), ("grass", 1), 2.0, 1.0),
    Thing((2.28, -1.12, 1.05), (0.20, 0.22, 0.20), ("grass", 2), 2.0, 0.7),
    Thing((-0.95, -0.17, 0.05), (0.17, 0.17, 0.17), ("leaves", 5), 1.6, 1.4, 0.6, 0.0, 0.5),
    Thing((1.75, -0.98, 2.02), (0.18, 0.18, 0.18), ("blobs", 6), 1.2, 1.5, 0.0, 0.0, 0.6),
    Thing((0.38, -0.53, 0.60), (0.09, 0.075, 0.09), ("plain", 0), 2.0, 1.3, 0.0, 0.0, 0.6),
    Thing((0.0, -2.22, 0.60), (0.20, 0.16, 0.20), ("plain", 11), 1.0, 3.0),
)
TUBES = (
    Thing((-0.38, -0.21, 0.29), (0.03, 0.20, 0.03), ("wood", 7)),
    Thing((-0.38, -0.21, 0.81), (0.03, 0.20, 0.03), ("wood", 7)),
    Thing((0.58, -0.21, 0.29), (0.03, 0.20, 0.03), ("wood", 7)),
    Thing((0.58, -0.21, 0.81), (0.03, 0.20, 0.03), ("wood", 7)),
    Thing((-1.65, -0.80, 1.85), (0.025, 0.80, 0.025), ("plain", 9), 1.0),
    Thing((-1.65, -0.02, 1.85), (0.20, 0.02, 0.20), ("plain", 9), 1.0),
    Thing((-1.65, -1.62, 1.85), (0.25, 0.18, 0.25), ("stripes", 3), 1.2, 2.2),
    Thing((2.15, -0.24, 1.15), (0.22, 0.24, 0.22), ("plain", 6), 1.0, 1.2),
    Thing((-1.55, -0.24, 0.75), (0.27, 0.24, 0.27), ("stripes", 9), 1.0, 1.3),
    Thing((2.24, -0.90, 2.02), (0.07, 0.11, 0.07), ("bricks", 5), 2.0, 1.2, 0.0, 0.0, 0.4),
    Thing((0.0, -2.49, 0.60), (0.012, 0.11, 0.012), ("plain", 9), 1.0),
)  # fmt: skip


def living_room() -> Scene:
    """The room as a batch of one scene."""
    shell = Thing((0.0, -ROOM[1], 0.0), ROOM, SHELL[0])
    things = (shell, *BOXES, *BALLS, *TUBES)
    half = torch.tensor([t.half for t in things])
    tile = torch.tensor([[_tile(t.texture)] * 6 for t in things], dtype=torch.int32)
    tile[0] = torch.tensor([_tile(texture) for texture in SHELL])
    density = torch.tensor([[t.density] * 6 for t in things])
    density[0] = torch.tensor(SHELL_DENSITY)
    along_u = half[:, (2, 0, 0)].repeat_interleave(2, -1)
    along_v = half[:, (1, 2, 1)].repeat_interleave(2, -1)
    fit = density == 0
    repeat_u, repeat_v = (torch.where(fit, torch.full((), 0.5), a * density) for a in (along_u, along_v))
    density = torch.where(fit, 0.5 / torch.sqrt(along_u * along_v), density)
    tint = torch.tensor([t.tint for t in things])[:, None, None].expand(-1, 6, 3)
    yaw, lean = (torch.tensor([getattr(t, name) for t in things]) for name in ("yaw", "lean"))
    light = torch.tensor([[0.0, -1.95, 0.60, 1.0], [0.85, -0.45, -0.25, 0.0]])
    tables = {
        "centre": torch.tensor([t.centre for t in things]),
        "half": half,
        "world_from_local": product(rotate_y(yaw), rotate_x(lean)),
        "tile": tile,
        "overlay": torch.full_like(tile, _tile(("noise", 8))),
        "repeat_u": repeat_u,
        "repeat_v": repeat_v,
        "density": density,
        "strength": torch.where(fit, torch.zeros(()), torch.full((), 0.25)),
        "gloss": torch.tensor([[t.gloss] * 6 for t in things]),
        "tint": tint,
        "waves": torch.zeros(0, 4),
        "light": light,
        "light_colour": torch.tensor([[1.9, 1.65, 1.35], [0.30, 0.34, 0.42]]),
        "light_reach": torch.tensor([2.6, 1.0]),
        "ambient": torch.tensor([0.46, 0.48, 0.54]),
        "zenith": torch.ones(3),
        "horizon": torch.ones(3),
        "focus": torch.tensor([0.1, -0.7, 1.1]),
        "reach": torch.tensor(2.8),
        "azimuth": torch.tensor(-math.pi / 2),
        "elevation": torch.tensor(0.2),
    }
    return Scene(counts=Counts(len(BOXES), len(BALLS), len(TUBES)), **{k: v.unsqueeze(0) for k, v in tables.items()})


def _tile(texture: tuple[str, int]) -> int:
    return family_rows(texture[0], TILES)[0] + texture[1]


def _path(views: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """An arc in front of the sofa: rotation [1, S, 3, 3] and centre [1, S, 3], world from camera."""

    def shake(amount: float, *shape: int) -> Tensor:
        return amount * (2 * torch.rand(views, *shape, generator=generator) - 1)

    angle = torch.linspace(-0.62, 0.62, views) if views > 1 else torch.zeros(1)
    angle = angle + shake(0.04)
    radius = 2.75 + shake(0.12)
    height = 1.45 + shake(0.18)
    position = torch.stack((0.1 + radius * angle.sin(), -height, 1.05 - radius * angle.cos()), -1)
    target = torch.tensor([0.1, -0.85, 1.2]) + shake(0.15, 3)
    return look_at(position, target)[None], position[None]


def phone_photos(
    directory: str | Path, views: int = 8, *, seed: int = 0, height: int = 960, width: int = 1280
) -> SceneBatch:
    """Photograph the living room: writes IMG_0001.jpg, ... with EXIF and truth.npz; returns the truth (on the CPU).

    truth.npz: cam_from_world [S, 4, 4] float32, intrinsics [S, 3, 3] float32 in pixels of the photos, depth
    [S, H, W] float16 in metres. The seed changes the cameras, not the furniture. Distortion is mild and, as with a
    real phone, not part of the intrinsics.
    """
    with torch.device("cpu"), torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        tiles, _ = atlas(ATLAS_SEED, TILES, TILE_SIZE, None, "cpu")
        scene, (rotation, position) = living_room(), _path(views, generator)
        focal = torch.full((1, views), FOCAL_35MM / math.hypot(36, 24) * math.hypot(height, width))
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        images, depths, normals = [], [], []
        for i in range(views):
            one = (rotation[:, i : i + 1], position[:, i : i + 1], focal[:, i : i + 1], torch.full((1, 1), 0.01))
            picture = render(scene, *one, (height, width), tiles, shadows=True)
            linear = torch.stack((picture.r, picture.g, picture.b), 1).unflatten(-1, (height, width))
            noise = torch.randn(linear.shape, generator=generator)
            images.append(develop(linear, noise, _phone(generator))[0])
            depths.append(picture.depth.view(height, width))
            normals.append(torch.stack((picture.nx, picture.ny, picture.nz), 1).view(3, height, width))
            write_photo(folder / f"IMG_{i + 1:04d}.jpg", images[-1], round(FOCAL_35MM), i)
        truth = SceneBatch(
            images=torch.stack(images)[None],
            depth=torch.stack(depths)[None],
            intrinsics=pinhole(focal, height, width),
            cam_from_world=world_to_camera(rotation, position),
            normals=torch.stack(normals)[None],
            is_metric=True,
        )
    np.savez(
        folder / "truth.npz",
        cam_from_world=truth.cam_from_world[0].numpy(),
        intrinsics=truth.intrinsics[0].numpy(),
        depth=truth.depth[0].numpy().astype(np.float16),
    )
    return truth


def _phone(generator: torch.Generator) -> Sensor:
    """Automatic exposure and white balance with slight variation, and a low-noise sensor."""

    def value(middle: float, spread: float = 0.0, *shape: int) -> Tensor:
        return middle + spread * torch.randn(*(shape or (1, 1, 1)), generator=generator)

    return Sensor(
        brightness=value(0.21, 0.01),
        automatic=value(0.9),
        vignette=value(0.18),
        blur=value(0.5),
        shot=value(0.010),
        read=value(0.004),
        exponent=value(0.45),
        white=value(1.0, 0.012, 1, 3, 1, 1),
    )
