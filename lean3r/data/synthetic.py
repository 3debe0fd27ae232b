"""The synthetic world: unlimited scenes with exact depth, normals, poses and intrinsics, by seed and index."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from lean3r.data.base import SceneBatch
from lean3r.data.camera_noise import Sensor, develop, sample_sensor
from lean3r.data.raycast import Atlas, Lens, Lights, Paint, Picture, Placed, cast, intersect, product, rays
from lean3r.data.textures import FAMILIES, atlas
from lean3r.data.trajectories import CLEAR, overlaps, propose, score
from lean3r.data.world import KINDS, Draw, Scene, clearance, sample_scene, without
from lean3r.errors import UsageError

COARSE = 8
CACHE_PIXELS = 1 << 15
DEVICE_PIXELS = 1 << 23


@dataclass(frozen=True)
class SyntheticWorld:
    """Configuration of a stream of scenes; `batch(index, scenes)` is a pure function of it and its arguments.

    height, width: pixels; views: views a scene; textures: folder of photo crops mixed with the procedural
    tiles; seed: names the stream (another seed has other scenes and other textures); room, arena, facade,
    terrain: weights of the kinds (terrain fills whole batches); tiles: procedural tiles in the atlas, tile_size
    their side in texels; focal: range of focal / sqrt(height * width); distortion: bound of |k1|, most are far
    smaller (intrinsics stay the pinhole part, depth is that of the true ray); candidates: camera paths tried a
    scene; shadows: cast those of the main light; compile: compile the ray caster, one graph per shape.
    """

    height: int = 64
    width: int = 64
    views: int = 4
    textures: str | None = None
    seed: int = 0
    room: float = 0.45
    arena: float = 0.2
    facade: float = 0.15
    terrain: float = 0.2
    tiles: int = 256
    tile_size: int = 128
    focal: tuple[float, float] = (0.6, 1.5)
    distortion: float = 0.03
    scale: tuple[float, float] = (0.3, 3.0)
    candidates: int = 6
    shadows: bool = False
    compile: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("height", "width", "views", "candidates"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")
        weights = (self.room, self.arena, self.facade, self.terrain)
        if min(weights) < 0 or sum(weights) <= 0:
            raise UsageError(f"weights of the kinds {KINDS} are {weights}; none may be negative, one must be positive")
        if self.tile_size < 16 or self.tile_size & (self.tile_size - 1):
            raise UsageError(f"tile_size is {self.tile_size}; it must be a power of two, at least 16")
        if self.tiles < len(FAMILIES):
            raise UsageError(f"tiles is {self.tiles}; at least {len(FAMILIES)} are needed, one for every family")
        for name in ("focal", "scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise UsageError(f"{name} is {low}..{high}; it must be a positive range (low, high)")
        if not 0 <= self.distortion <= 0.1:
            raise UsageError(f"distortion is {self.distortion}; it must lie in 0..0.1")

    def batch(
        self, index: int, scenes: int, *, views: int | None = None, height: int | None = None, width: int | None = None
    ) -> SceneBatch:
        """Batch `index` of the stream: `scenes` scenes of the world's number of views and size, unless given.

        Depth is z-depth of the ray of each pixel centre, 0 in the sky; the world's unit is arbitrary.
        """
        s, h, w = views or self.views, height or self.height, width or self.width
        device = torch.device(self.device)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return self._batch(_generator(self.seed, index, scenes, s, h, w), scenes, s, h, w, device)

    def _batch(
        self, generator: torch.Generator, scenes: int, s: int, h: int, w: int, device: torch.device
    ) -> SceneBatch:
        draw = Draw(generator, scenes)
        tiles, photos = atlas(self.seed, self.tiles, self.tile_size, self.textures, self.device)
        procedural = self.tiles // len(FAMILIES) * len(FAMILIES)
        scene = sample_scene(draw, self._kinds(draw), procedural, photos)
        focal = self._focal(draw, s, h, w)
        k1 = (self.distortion * draw.uniform(-1, 1, 1) ** 3).expand(scenes, s)
        rotation, position = propose(draw, scene, s, self.candidates)
        wanted = draw.uniform(0.35, 0.95)
        sensor = Sensor(*(x.to(device) for x in sample_sensor(draw, s)))
        scale = draw.logarithmic(*self.scale)
        noise_seed = int(torch.randint(1 << 62, (), generator=generator))

        scene, focal, k1, wanted, scale = (x.to(device) for x in (scene, focal, k1, wanted, scale))
        rotation, position = rotation.to(device), position.to(device)
        scene, rotation, position = self._choose(scene, rotation, position, focal, k1, wanted, h, w)
        placed, lens = place(scene, rotation, position, focal, k1)
        picture = self._render(scene, placed, lens, rotation, position, h, w, tiles)
        noise = torch.randn(
            scenes * s, 3, h, w, device=device, generator=torch.Generator(device).manual_seed(noise_seed)
        )
        linear = torch.stack((picture.r, picture.g, picture.b), 1).unflatten(-1, (h, w))
        images = self._run(develop, linear, noise, sensor)
        normals = torch.stack((picture.nx, picture.ny, picture.nz), 1)
        return SceneBatch(
            images=images.unflatten(0, (scenes, s)),
            depth=picture.depth.view(scenes, s, h, w) * scale[:, None, None, None],
            intrinsics=pinhole(focal, h, w),
            cam_from_world=_cam_from_world(rotation, position * scale[:, None, None]),
            normals=normals.view(scenes, s, 3, h, w),
        )

    def _kinds(self, draw: Draw) -> Tensor:
        weights = torch.tensor([self.room, self.arena, self.facade, self.terrain], dtype=torch.float32)
        share = float(weights[3] / weights.sum())
        if bool(torch.rand((), generator=draw.generator) < share):
            return torch.full((draw.scenes,), 3)
        return torch.multinomial(weights[:3], draw.scenes, replacement=True, generator=draw.generator)

    def _focal(self, draw: Draw, s: int, h: int, w: int) -> Tensor:
        """[B, S] pixels: one lens a scene in four of five, otherwise one a view."""
        low, high = self.focal
        shared = draw.logarithmic(low, high, 1)
        own = (shared * draw.logarithmic(0.75, 1.35, s)).clamp(low, high)
        return torch.where(draw.chance(0.8, 1), shared, own) * math.sqrt(h * w)

    def _choose(
        self,
        scene: Scene,
        rotation: Tensor,
        position: Tensor,
        focal: Tensor,
        k1: Tensor,
        wanted: Tensor,
        h: int,
        w: int,
    ) -> tuple[Scene, Tensor, Tensor]:
        """Keep the candidate path that scores best; solids too close to its cameras leave the scene."""
        b, t, s = position.shape[:3]
        step = (torch.arange(COARSE, device=position.device) + 0.5) / COARSE
        row, column = (g.flatten() for g in torch.meshgrid(step * h - 0.5, step * w - 0.5, indexing="ij"))
        focal_t, k1_t = (v[:, None].expand(b, t, s).reshape(b, t * s) for v in (focal, k1))
        placed, lens = place(scene, rotation.flatten(1, 2), position.flatten(1, 2), focal_t, k1_t)
        depth, x, y = self._run(_probe, column, row, (w / 2, h / 2), lens, placed, scene.counts, scene.tile)
        near = (clearance(scene, position.flatten(1, 2)) < CLEAR).view(b, -1, t, s).float()
        edge = torch.stack((w / 2 / focal_t, h / 2 / focal_t), -1).view(b * t, s, 2).mean(1)
        shape = (b * t, s, COARSE * COARSE)
        overlap = overlaps(
            x.view(shape), y.view(shape), depth.view(shape), rotation.flatten(0, 1), position.flatten(0, 1), edge
        )
        bad = score(depth.view(b, t, s, -1), overlap.view(b, t, s, s), near.sum(1), wanted, scene.reach)
        best = bad.argmin(1)
        rows = torch.arange(b, device=best.device)
        gone = near.permute(0, 2, 1, 3)[rows, best].amax(-1) > 0
        gone[:, 0] = False
        return without(scene, gone), rotation[rows, best], position[rows, best]

    def _render(
        self,
        scene: Scene,
        placed: Placed,
        lens: Lens,
        rotation: Tensor,
        position: Tensor,
        h: int,
        w: int,
        tiles: Atlas,
    ) -> Picture:
        """All views in one call when compiled, otherwise in pieces that stay in the processor's cache."""
        row, column = (g.flatten().float() for g in torch.meshgrid(_steps(h, placed), _steps(w, placed), indexing="ij"))
        paint, lights = surfaces(scene, rotation.shape[1]), lit(scene, rotation, position)
        views, pixels = rotation.shape[0] * rotation.shape[1], h * w
        limit = CACHE_PIXELS if placed.origin.device.type == "cpu" else DEVICE_PIXELS
        centre = (w / 2, h / 2)

        def piece(v: slice, p: slice) -> Picture:
            cut = paint._replace(row=paint.row[v])
            return cast(
                column[p], row[p], centre, _cut(lens, v), _cut(placed, v), scene.counts, cut, _cut(lights, v), tiles,
                self.shadows,
            )  # fmt: skip

        if self.compile:
            return self._run(cast, column, row, centre, lens, placed, scene.counts, paint, lights, tiles, self.shadows)
        rows, columns = max(1, limit // pixels), min(pixels, limit)
        strips = [
            Picture(*(torch.cat(c, 1) for c in zip(*parts, strict=True)))
            for v in range(0, views, rows)
            if (parts := [piece(slice(v, v + rows), slice(p, p + columns)) for p in range(0, pixels, columns)])
        ]
        return Picture(*(torch.cat(c) for c in zip(*strips, strict=True)))

    def _run(self, function: Callable, *arguments: Any) -> Any:
        return _compiled(function, _shape_key(arguments))(*arguments) if self.compile else function(*arguments)


def _generator(*numbers: int) -> torch.Generator:
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def _steps(n: int, placed: Placed) -> Tensor:
    return torch.arange(n, device=placed.origin.device)


def _cut(group: Any, views: slice) -> Any:
    return type(group)(*(x[views] for x in group))


def _probe(
    column: Tensor, row: Tensor, centre: tuple[float, float], lens: Lens, placed: Placed, counts: Any, tile: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Coarse depth [V, P], 0 in the sky, and the rays."""
    x, y = rays(column, row, centre, lens)
    t, solid, ground = intersect(x, y, placed, counts)
    # Which face of the shell was hit decides whether it is sky.
    m = placed.local_from_cam[:, 0]
    local = [
        placed.origin[:, 0, i, None] + (m[:, i, 0, None] * x + m[:, i, 1, None] * y + m[:, i, 2, None]) * t
        for i in range(3)
    ]
    size = [v.abs() for v in local]
    on_y, on_x = (size[1] >= size[0]) & (size[1] >= size[2]), size[0] >= size[2]
    value = torch.where(on_y, local[1], torch.where(on_x, local[0], local[2]))
    face = torch.where(on_y, 2, torch.where(on_x, 0, 4)) + (value > 0).to(torch.int64)
    open_faces = (tile[:, 0] < 0).repeat_interleave(x.shape[0] // tile.shape[0], 0)
    sky = (solid == 0) & ~ground & open_faces.gather(1, face)
    return torch.where(sky, torch.zeros_like(t), t), x, y


def place(scene: Scene, rotation: Tensor, position: Tensor, focal: Tensor, k1: Tensor) -> tuple[Placed, Lens]:
    """Scenes seen from cameras: rotation [B, S, 3, 3], position [B, S, 3] world from camera; focal, k1 [B, S]."""
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
        # Reduced to one turn: the sine of a large argument loses digits.
        wave_phase=torch.remainder(start, 2 * math.pi).flatten(0, 1),
        wave_rate=rate.flatten(0, 1),
        height=-position[..., 1].reshape(-1, 1),
        world_from_cam=rotation.flatten(0, 1),
    )
    return placed, Lens(1 / focal.reshape(-1, 1), k1.reshape(-1, 1))


def surfaces(scene: Scene, views: int) -> Paint:
    """Flat face tables of the scenes for `views` views of each."""
    b, n = scene.tile.shape[:2]
    row = torch.arange(b, device=scene.tile.device, dtype=torch.int32) * (n * 6)
    tables = (scene.tile, scene.overlay, scene.repeat_u, scene.repeat_v, scene.density, scene.strength, scene.gloss)
    tint = (scene.tint[..., c].flatten() for c in range(3))
    return Paint(row.repeat_interleave(views)[:, None], *(x.flatten() for x in tables), *tint)


def lit(scene: Scene, rotation: Tensor, position: Tensor) -> Lights:
    """The lights of the scenes in the axes of every camera."""
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


def pinhole(focal: Tensor, h: int, w: int) -> Tensor:
    """Intrinsics [..., 3, 3] of focal lengths [...] in pixels, principal point at the middle."""
    k = torch.zeros(*focal.shape, 3, 3, device=focal.device)
    k[..., 0, 0] = k[..., 1, 1] = focal
    k[..., 0, 2], k[..., 1, 2], k[..., 2, 2] = w / 2, h / 2, 1
    return k


def _cam_from_world(rotation: Tensor, position: Tensor) -> Tensor:
    pose = torch.zeros(*position.shape[:-1], 4, 4, device=position.device)
    turn = rotation.transpose(-1, -2)
    pose[..., :3, :3] = turn
    pose[..., :3, 3] = -product(turn, position.unsqueeze(-1)).squeeze(-1)
    pose[..., 3, 3] = 1
    return pose


def _shape_key(arguments: Any) -> tuple:
    if isinstance(arguments, Tensor):
        return (tuple(arguments.shape), arguments.device.type)
    if isinstance(arguments, tuple):
        return tuple(_shape_key(a) for a in arguments)
    return (arguments,)


@lru_cache(maxsize=256)
def _compiled(function: Callable, key: tuple) -> Callable:
    """`function` compiled for the shapes of `key`; falls back to the plain one, warning once, when that fails."""
    del key
    fast = torch.compile(function, dynamic=False, fullgraph=True)
    state = {"call": fast, "tried": False}

    def call(*arguments: Any) -> Any:
        if state["tried"]:
            return state["call"](*arguments)
        state["tried"] = True
        try:
            with torch._dynamo.config.patch(recompile_limit=1024):
                return fast(*arguments)
        except RuntimeError as error:
            _warn_once(str(error).splitlines()[0])
            state["call"] = function
            return function(*arguments)

    return call


@lru_cache(maxsize=1)
def _warn_once(reason: str) -> None:
    warnings.warn(
        f"the ray caster could not be compiled ({reason}); it runs uncompiled, several times slower. "
        "A C++ compiler (CPU) or Triton (GPU) makes it fast; compile=False silences this.",
        stacklevel=3,
    )
