"""The synthetic world: unlimited scenes with exact depth, normals, poses and intrinsics, by seed and index."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lean3r.data.base import SceneBatch
from lean3r.data.world.camera_noise import Sensor, develop, sample_sensor
from lean3r.data.world.draw import Draw
from lean3r.data.world.places import KINDS, Scene, clearance, remove_solids, sample_scene
from lean3r.data.world.render import look, render, run
from lean3r.data.world.textures import FAMILIES, atlas
from lean3r.data.world.trajectories import CLEAR, overlaps, pinhole, propose, score, world_to_camera
from lean3r.errors import UsageError

COARSE = 8
HELD_OUT_SEED = 1_000_003  # names the stream of scenes that no recipe trains on


@dataclass(frozen=True)
class SyntheticWorld:
    """Configuration of a stream of scenes; `batch(index, scenes)` is a pure function of it and its arguments.

    height, width: pixels; views: views per scene; textures: folder of photo crops that are mixed with the procedural
    tiles; seed: number of the stream (each seed has its own scenes and textures); room, arena, facade, terrain:
    weights of the kinds (terrain fills whole batches); tiles: number of procedural tiles in the atlas; tile_size: their
    side in texels; focal: range of focal / sqrt(height * width); distortion: bound of |k1|, usually far smaller
    (intrinsics are the pinhole part, depth is along the true ray); scale: range of the factor on world units;
    candidates: camera paths to choose from per scene; shadows: whether the main light casts shadows; compile: compile
    the ray caster (a few graphs for all sizes; a minute or two on a CPU, the first time).
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
                raise UsageError(f"{name} is {getattr(self, name)}; expected at least 1")
        weights = (self.room, self.arena, self.facade, self.terrain)
        if min(weights) < 0 or sum(weights) <= 0:
            raise UsageError(f"weights of the kinds {KINDS} are {weights}; expected none below 0 and one above 0")
        if self.tile_size < 16 or self.tile_size & (self.tile_size - 1):
            raise UsageError(f"tile_size is {self.tile_size}; expected a power of two, at least 16")
        if self.tiles < len(FAMILIES):
            raise UsageError(f"tiles is {self.tiles}; expected at least {len(FAMILIES)}, one for each family")
        for name in ("focal", "scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise UsageError(f"{name} is {low}..{high}; expected a positive range (low, high)")
        if not 0 <= self.distortion <= 0.1:
            raise UsageError(f"distortion is {self.distortion}; expected 0..0.1")

    def batch(
        self, index: int, scenes: int, *, views: int | None = None, height: int | None = None, width: int | None = None
    ) -> SceneBatch:
        """Batch `index` of the stream, with `scenes` scenes; number of views and size are the world's unless given.

        Depth is the z-depth along the ray of each pixel centre, 0 in the sky; the unit is arbitrary.
        """
        s, h, w = views or self.views, height or self.height, width or self.width
        device = torch.device(self.device)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return self._batch(_generator(self.seed, index, scenes, s, h, w), scenes, s, h, w, device)

    def _batch(
        self, generator: torch.Generator, scenes: int, s: int, h: int, w: int, device: torch.device
    ) -> SceneBatch:
        with torch.device("cpu"):  # that of the generator, whatever torch's default is
            draw = Draw(generator, scenes)
            tiles, photos = atlas(self.seed, self.tiles, self.tile_size, self.textures, self.device)
            procedural = self.tiles // len(FAMILIES) * len(FAMILIES)
            scene = sample_scene(draw, self._kinds(draw), procedural, photos)
            focal = self._focal(draw, s, h, w)
            k1 = (self.distortion * draw.uniform(-1, 1, 1) ** 3).expand(scenes, s)
            rotation, position = propose(draw, scene, s, self.candidates)
            wanted = draw.uniform(0.25, 0.85)
            sensor = Sensor(*(x.to(device) for x in sample_sensor(draw, s)))
            scale = draw.logarithmic(*self.scale)
            noise_seed = int(torch.randint(1 << 62, (), generator=generator))

        scene, rotation, position = scene.to(device), rotation.to(device), position.to(device)
        focal, k1, wanted, scale = (x.to(device) for x in (focal, k1, wanted, scale))
        scene, rotation, position = self._choose(scene, rotation, position, focal, k1, wanted, h, w)
        picture = render(scene, rotation, position, focal, k1, (h, w), tiles, shadows=self.shadows, fast=self.compile)
        noise = torch.randn(
            scenes * s, 3, h, w, device=device, generator=torch.Generator(device).manual_seed(noise_seed)
        )
        linear = torch.stack((picture.r, picture.g, picture.b), 1).unflatten(-1, (h, w))
        images = run(develop, self.compile, linear, noise, sensor, any_size=True)
        normals = torch.stack((picture.nx, picture.ny, picture.nz), 1)
        return SceneBatch(
            images=images.unflatten(0, (scenes, s)),
            depth=picture.depth.view(scenes, s, h, w) * scale[:, None, None, None],
            intrinsics=pinhole(focal, h, w),
            cam_from_world=world_to_camera(rotation, position * scale[:, None, None]),
            normals=normals.view(scenes, s, 3, h, w),
        )

    def _kinds(self, draw: Draw) -> Tensor:
        weights = torch.tensor([self.room, self.arena, self.facade, self.terrain], dtype=torch.float32)
        share = float(weights[3] / weights.sum())
        if bool(torch.rand((), generator=draw.generator) < share):
            return torch.full((draw.scenes,), 3)
        return torch.multinomial(weights[:3], draw.scenes, replacement=True, generator=draw.generator)

    def _focal(self, draw: Draw, s: int, h: int, w: int) -> Tensor:
        """Focal lengths [B, S] in pixels: one per scene in four of five scenes, otherwise one per view."""
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
        """Choose the best candidate path; solids too close to its cameras are removed."""
        b, t, s = position.shape[:3]
        focal_t, k1_t = (v[:, None].expand(b, t, s).reshape(b, t * s) for v in (focal, k1))
        paths = (rotation.flatten(1, 2), position.flatten(1, 2))
        depth, x, y = look(scene, *paths, focal_t, k1_t, (h, w), COARSE, fast=self.compile)
        near = (clearance(scene, paths[1]) < CLEAR).view(b, -1, t, s).float()
        edge = torch.stack((w / 2 / focal_t, h / 2 / focal_t), -1).view(b * t, s, 2).mean(1)
        shape = (b * t, s, COARSE * COARSE)
        flat = (rotation.flatten(0, 1), position.flatten(0, 1))
        overlap = overlaps(x.view(shape), y.view(shape), depth.view(shape), *flat, edge)
        bad = score(depth.view(b, t, s, -1), overlap.view(b, t, s, s), near.sum(1), wanted, scene.reach)
        best = bad.argmin(1)
        rows = torch.arange(b, device=best.device)
        gone = near.permute(0, 2, 1, 3)[rows, best].amax(-1) > 0
        gone[:, 0] = False
        return remove_solids(scene, gone), rotation[rows, best], position[rows, best]


def _generator(*numbers: int) -> torch.Generator:
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
