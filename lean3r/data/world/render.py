"""Rendering of many views in blocks of fixed size, so that one compiled graph serves every picture size."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

from lean3r.data.world.places import Scene
from lean3r.data.world.raycast import Counts, Lens, Placed, intersect, product, rays
from lean3r.data.world.shading import Atlas, Lights, Paint, Picture, cast

G = TypeVar("G", Lens, Placed, Paint, Lights)
R = TypeVar("R")

BLOCK = 2048
# Blocks per call: on a CPU the channels of one call fit in the cache; a GPU needs more work at once.
BLOCKS = {"cpu": 16, "cuda": 512}


def place(scene: Scene, rotation: Tensor, position: Tensor, focal: Tensor, k1: Tensor) -> tuple[Placed, Lens]:
    """Scenes relative to cameras: rotation [B, S, 3, 3], position [B, S, 3] world from camera; focal, k1 [B, S]."""
    inverse = scene.world_from_local.transpose(-1, -2) / scene.half.unsqueeze(-1)
    local_from_cam = product(inverse[:, None], rotation[:, :, None])
    away = position[:, :, None] - scene.centre[:, None]
    origin = product(inverse[:, None], away.unsqueeze(-1)).squeeze(-1)
    amplitude, kx, kz, phase = scene.waves[:, None].unbind(-1)
    s = rotation.shape[1]
    rate = kx.unsqueeze(-1) * rotation[:, :, None, 0] + kz.unsqueeze(-1) * rotation[:, :, None, 2]
    start = kx * position[..., 0:1] + kz * position[..., 2:3] + phase
    placed = Placed(
        origin=origin.flatten(0, 1),
        local_from_cam=local_from_cam.flatten(0, 1),
        wave_amplitude=amplitude.expand(-1, s, -1).flatten(0, 1),
        # Reduced to one period: the sine of a large argument is inaccurate.
        wave_phase=torch.remainder(start, 2 * math.pi).flatten(0, 1),
        wave_rate=rate.flatten(0, 1),
        height=-position[..., 1].reshape(-1, 1),
        world_from_cam=rotation.flatten(0, 1),
    )
    return placed, Lens(1 / focal.reshape(-1, 1), k1.reshape(-1, 1))


def surfaces(scene: Scene, views: int) -> Paint:
    """Face tables of the scenes, repeated for `views` views of each."""
    tables = (scene.tile, scene.overlay, scene.repeat_u, scene.repeat_v, scene.density, scene.strength, scene.gloss)
    return Paint(*(x.flatten(1).repeat_interleave(views, 0) for x in (*tables, *scene.tint.unbind(-1))))


def place_lights(scene: Scene, rotation: Tensor, position: Tensor) -> Lights:
    """The lights of the scenes in the axes of each camera."""
    s = rotation.shape[1]
    place_w = scene.light[:, None]
    relative = place_w[..., :3] - place_w[..., 3:] * position[:, :, None]
    beam = product(relative, rotation)
    flags = place_w[..., 3:].expand(-1, s, -1, -1)

    def each(x: Tensor) -> Tensor:
        return x.repeat_interleave(s, 0)

    return Lights(
        position=torch.cat((beam, flags), -1).flatten(0, 1),
        colour=each(scene.light_colour),
        reach=each(scene.light_reach),
        ambient=each(scene.ambient),
        zenith=each(scene.zenith),
        horizon=each(scene.horizon),
    )


def render(
    scene: Scene,
    rotation: Tensor,
    position: Tensor,
    focal: Tensor,
    k1: Tensor,
    size: tuple[int, int],
    atlas: Atlas,
    *,
    shadows: bool = False,
    fast: bool = False,
) -> Picture:
    """Pictures [V, H * W] of B scenes of S views (V = B * S) of one size (height, width); `fast` compiles."""
    height, width = size
    device = position.device
    row, column = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    placed, lens = place(scene, rotation, position, focal, k1)
    paint, lights = surfaces(scene, rotation.shape[1]), place_lights(scene, rotation, position)

    def piece(pixels: tuple[Tensor, Tensor], views: Tensor) -> Picture:
        return run(
            cast,
            fast,
            *pixels,
            _middle(width, height, device),
            _rows(lens, views),
            _rows(placed, views),
            scene.counts,
            _rows(paint, views),
            _rows(lights, views),
            atlas,
            shadows,
        )

    return Picture(*_in_blocks(piece, column.flatten(), row.flatten(), placed.origin.shape[0], fast))


def look(
    scene: Scene,
    rotation: Tensor,
    position: Tensor,
    focal: Tensor,
    k1: Tensor,
    size: tuple[int, int],
    side: int,
    *,
    fast: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Depth (0 in the sky) and rays x, y, each [V, side * side], on a regular grid over pictures of this size."""
    height, width = size
    step = (torch.arange(side, device=position.device) + 0.5) / side
    row, column = torch.meshgrid(step * height - 0.5, step * width - 0.5, indexing="ij")
    placed, lens = place(scene, rotation, position, focal, k1)
    open_faces = (scene.tile[:, 0] < 0).repeat_interleave(rotation.shape[1], 0)

    def piece(pixels: tuple[Tensor, Tensor], views: Tensor) -> tuple[Tensor, ...]:
        centre = _middle(width, height, views.device)
        return run(
            probe, fast, *pixels, centre, _rows(lens, views), _rows(placed, views), scene.counts, open_faces[views]
        )

    depth, x, y = _in_blocks(piece, column.flatten(), row.flatten(), placed.origin.shape[0], fast)
    return depth, x, y


def _middle(width: int, height: int, device: torch.device) -> Tensor:
    return torch.tensor([width / 2, height / 2], device=device)


def _rows(group: G, views: Tensor) -> G:
    return type(group)(*(x[views] for x in group))


def _in_blocks(piece: Callable, column: Tensor, row: Tensor, views: int, fast: bool) -> list[Tensor]:
    """Channels [V, P] of `piece(pixels, views)`, called for BLOCKS blocks of BLOCK pixels at a time.

    A compiled call always has the same size: the last block and the last call are filled up with repeated pixels.
    """
    pixels = len(column)
    block = min(BLOCK, 1 << (pixels - 1).bit_length())
    each = -(-pixels // block)
    limit = BLOCKS["cpu" if column.device.type == "cpu" else "cuda"] * BLOCK // block
    order = torch.arange(each * block, device=column.device).clamp_max(pixels - 1).view(each, block)
    columns, rows = column.float()[order], row.float()[order]
    total = views * each
    calls = []
    for start in range(0, total, limit):
        stop = start + limit if fast else min(start + limit, total)
        number = torch.arange(start, stop, device=column.device).clamp_max(total - 1)
        view, part = torch.div(number, each, rounding_mode="floor"), number % each
        calls.append(piece((columns[part], rows[part]), view))
    return [torch.cat(channel)[:total].view(views, each * block)[:, :pixels] for channel in zip(*calls, strict=True)]


def probe(
    column: Tensor, row: Tensor, centre: Tensor, lens: Lens, placed: Placed, counts: Counts, open_faces: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Depth [V, P], 0 in the sky, and the rays x, y; open_faces [V, 6] bool: faces of the shell that are sky."""
    x, y = rays(column, row, centre, lens)
    t, solid, ground = intersect(x, y, placed, counts)
    # Whether the hit is sky depends on the face of the shell.
    m = placed.local_from_cam[:, 0]
    local = [
        placed.origin[:, 0, i, None] + (m[:, i, 0, None] * x + m[:, i, 1, None] * y + m[:, i, 2, None]) * t
        for i in range(3)
    ]
    size = [v.abs() for v in local]
    on_y, on_x = (size[1] >= size[0]) & (size[1] >= size[2]), size[0] >= size[2]
    value = torch.where(on_y, local[1], torch.where(on_x, local[0], local[2]))
    face = torch.where(on_y, 2, torch.where(on_x, 0, 4)) + (value > 0).to(torch.int64)
    sky = (solid == 0) & ~ground & open_faces.gather(1, face)
    return torch.where(sky, torch.zeros_like(t), t), x, y


def run(function: Callable[..., R], fast: bool, *arguments: object, any_size: bool = False) -> R:
    """Call `function`, compiled if `fast`: one graph per set of sizes, or one for all sizes if `any_size`."""
    if not fast:
        return function(*arguments)
    return _compile(function, any_size, () if any_size else _sizes(arguments))(*arguments)


def _sizes(arguments: object) -> tuple:
    if isinstance(arguments, Tensor):
        return (tuple(arguments.shape), arguments.device.type)
    if isinstance(arguments, tuple):
        return tuple(_sizes(a) for a in arguments)
    return (arguments,)


@lru_cache(maxsize=64)
def _compile(function: Callable, any_size: bool, sizes: tuple) -> Callable:
    """Compile `function` for its sizes; if that fails, it warns once and uses the uncompiled function."""
    del sizes  # only part of the cache key
    # Table indices are valid by construction; checking each look-up takes about a fifth of the time.
    options: dict[str, str | int | bool | Callable] = {"assert_indirect_indexing": False}
    fast, plain = torch.compile(function, dynamic=any_size, fullgraph=True, options=options), []

    def call(*arguments: object) -> object:
        if not plain:
            try:
                # With the default limit of eight, further sets of sizes would silently run uncompiled.
                with torch._dynamo.config.patch(recompile_limit=64):
                    return fast(*arguments)
            except RuntimeError as error:
                _warn_once(str(error).strip().splitlines()[0])
                plain.append(True)
        return function(*arguments)

    return call


@lru_cache(maxsize=1)
def _warn_once(reason: str) -> None:
    warnings.warn(
        f"the ray caster could not be compiled ({reason}) and runs several times slower. Install a C++ compiler "
        "(CPU) or Triton (GPU), or pass compile=False to silence this warning.",
        stacklevel=4,
    )
