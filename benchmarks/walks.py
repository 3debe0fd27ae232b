"""Rendered walks of any length, with true cameras: rounds through a large furnished hall, whose places are seen again.

    python benchmarks/walks.py FOLDER [--frames 1000] [--size 320 240] [--seed 0] [--ahead | --scan]

The camera walks around a block that reaches the ceiling, past one that does not: 32 m a round and 8 cm a frame, ten
frames a second. It looks ahead and to the outer side (or with --ahead where it goes, to and fro), and passes each place
a little elsewhere every time. A scan (--scan) is held in the hand at thirty frames a second: it looks around in a part
of the hall and comes back to it again and again. Frames are rendered a few at a time, each the same whatever came
before it. As a program it writes walk.mp4, walk_poses_tum.txt (camera to world, metres) and walk_camera.json.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lean3r.data.world.camera_noise import Sensor, develop
from lean3r.data.world.places import Scene, rotate_y
from lean3r.data.world.raycast import Counts
from lean3r.data.world.render import render
from lean3r.data.world.textures import FAMILIES, atlas, family_rows
from lean3r.geometry.align import umeyama
from lean3r.geometry.rotation import quaternion_from_matrix
from lean3r.stream import sim3

SPEED_M = 0.08  # a frame of a walk
BATCH = 4  # frames that are rendered at once
FOCAL = 0.8  # of the width: 64 degrees across
EYE_M, BOB_M, STEP_S = 1.5, 0.015, 0.55
TILES, TILE_SIZE = 12 * len(FAMILIES), 512
SCAN_YAW = -1.4  # the middle of a scan: towards the low block
HALL = (11.0, 1.5, 7.5)  # half extents in metres
BLOCKS = (((4.4, 0.0), (2.9, 1.5, 3.2)), ((-4.4, 0.0), (2.9, 0.6, 3.2)))  # (x, z) and half extents
TOUR = ((0.0, -2.0), (0.0, 0.0), (0.0, 2.0), (1.2, 4.4), (3.0, 4.9), (5.8, 4.9), (7.6, 4.4))
TOUR += ((8.1, 2.0), (8.1, 0.0), (8.1, -2.0), (7.6, -4.4), (5.8, -4.9), (3.0, -4.9), (1.2, -4.4))
CLEAR_M = 0.75  # between furniture and the path
PAPERS = ("bricks", "text", "stones", "cards", "windows", "shelf", "leaves", "checks")
GOODS = ("shelf", "wood", "cards", "leaves", "text", "stones", "blobs", "speckle", "windows", "stripes")
SHELL = (("bricks", 3), ("leaves", 2), ("checks", 4), ("wood", 5), ("cards", 5), ("stones", 3))


@dataclass(frozen=True)
class Walk:
    """A walk of so many frames of `size` (width, height); another seed has other furniture and looks elsewhere. If it
    looks ahead, the picture grows more than it shifts."""

    frames: int = 1000
    size: tuple[int, int] = (320, 240)
    seed: int = 0
    looks_ahead: bool = False

    fps: ClassVar[float] = 10.0

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        """Times in seconds with pictures [H, W, 3] uint8."""
        for start in range(0, self.frames, BATCH):
            indices = range(start, min(start + BATCH, self.frames))
            yield from ((index / self.fps, image) for index, image in zip(indices, self.render(indices), strict=True))

    def render(self, indices: range) -> np.ndarray:
        """Frames [N, H, W, 3] uint8."""
        width, height = self.size
        poses = torch.from_numpy(self.world_from_cam(np.array(indices))).float()
        rotation, position = poses[None, :, :3, :3], poses[None, :, :3, 3]
        focal = torch.full((1, len(indices)), FOCAL * width)
        tiles, _ = atlas(5, TILES, TILE_SIZE, None, "cpu")
        with torch.no_grad():
            seen = _seen(self._scene, rotation[0], position[0], height / width)
            picture = render(seen, rotation, position, focal, torch.zeros_like(focal), (height, width), tiles)
            linear = torch.stack((picture.r, picture.g, picture.b), 1).unflatten(-1, (height, width))
            noise = [torch.randn(3, height, width, generator=self._generator(index)) for index in indices]
            images = develop(linear, torch.stack(noise), _sensor(torch.tensor([*indices]) / self.fps))
        return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()

    def world_from_cam(self, indices: np.ndarray) -> np.ndarray:
        """The true cameras [N, 4, 4] of frames: metres, y down."""
        way, length = indices * SPEED_M, self._track.length
        turns = np.random.default_rng(self.seed).uniform(0, 2 * np.pi, 6)
        aside = 0.3 * np.sin(2 * np.pi * way / (2.618 * length) + turns[0])  # another line in each round
        here, ahead = self._track.at(way), self._track.at(way + 1.5) - self._track.at(way - 1.5)
        heading = np.arctan2(ahead[:, 0], ahead[:, 1])
        place = here + aside[:, None] * np.stack([np.cos(heading), -np.sin(heading)], 1)
        seconds = indices / self.fps
        # To the sides as one looks around in a room, the same in each round, and a little differently each time.
        middle, swing = (0.0, 0.4) if self.looks_ahead else (-0.6, 0.25)
        yaw = heading + middle + swing * np.sin(2 * np.pi * 2 * way / length + turns[1])
        yaw += 0.2 * np.sin(2 * np.pi * seconds / 17.3 + turns[2])
        steps = 2 * np.pi * seconds / STEP_S
        pitch = 0.06 * np.sin(2 * np.pi * seconds / 11.7 + turns[3]) - 0.05 + 0.004 * np.sin(steps)
        roll = 0.03 * np.sin(2 * np.pi * seconds / 5.3 + turns[4]) + 0.004 * np.sin(steps / 2)
        poses = np.tile(np.eye(4), (len(indices), 1, 1))
        poses[:, :3, :3] = _about(1, yaw) @ _about(0, pitch) @ _about(2, roll)
        height = EYE_M + BOB_M * np.sin(steps) + 0.12 * np.sin(2 * np.pi * seconds / 41.0 + turns[5])
        poses[:, :3, 3] = np.stack([place[:, 0], -height, place[:, 1]], 1)
        return poses

    @property
    def intrinsics(self) -> np.ndarray:
        """Of all frames [3, 3], in pixels; the centre of the upper left pixel is (0.5, 0.5)."""
        width, height = self.size
        return np.array([[FOCAL * width, 0, width / 2], [0, FOCAL * width, height / 2], [0, 0, 1]])

    @property
    def round_frames(self) -> float | None:
        """Frames until the camera is back where it was; None without rounds."""
        return self._track.length / SPEED_M

    def _generator(self, index: int) -> torch.Generator:
        return torch.Generator().manual_seed(1_000_003 * (self.seed + 1) + index)

    @cached_property
    def _track(self) -> Track:
        return Track(np.array(TOUR))

    @cached_property
    def _scene(self) -> Scene:
        return _hall(np.random.default_rng([self.seed, 1]), self._track)


@dataclass(frozen=True)
class Scan(Walk):
    """A part of the hall from all around, as one scans a room: the camera sways about one place and looks to and fro.
    Every face of a thing has a picture of its own there, as in a room."""

    fps: ClassVar[float] = 30.0

    def world_from_cam(self, indices: np.ndarray) -> np.ndarray:
        """The true cameras [N, 4, 4] of frames: metres, y down."""
        seconds, turns = indices / self.fps, np.random.default_rng(self.seed).uniform(0, 2 * np.pi, 8)

        def sway(size: float, period_s: float, number: int) -> np.ndarray:
            return size * np.sin(2 * np.pi * seconds / period_s + turns[number])

        poses = np.tile(np.eye(4), (len(indices), 1, 1))
        yaw = SCAN_YAW + sway(0.7, 11.0, 0) + sway(0.25, 4.7, 1)
        pitch, roll = -0.15 + sway(0.2, 7.3, 2), sway(0.12, 6.1, 3)
        poses[:, :3, :3] = _about(1, yaw) @ _about(0, pitch) @ _about(2, roll)
        poses[:, 0, 3] = sway(0.55, 9.1, 4)
        poses[:, 1, 3] = sway(0.25, 5.9, 5) - 1.35
        poses[:, 2, 3] = sway(0.6, 13.7, 6) + sway(0.15, 3.3, 7)
        return poses

    @property
    def round_frames(self) -> None:
        """See Walk."""
        return None

    @cached_property
    def _scene(self) -> Scene:
        return _hall(np.random.default_rng([self.seed, 1]), self._track, faces=6)


class Track:
    """A smooth closed line through points [N, 2], by the way along it in metres."""

    def __init__(self, points: np.ndarray) -> None:
        share = np.linspace(0, 1, 64, endpoint=False)[None, :, None]
        a, b, c, d = (np.roll(points, shift, 0)[:, None] for shift in (1, 0, -1, -2))
        curve = 2 * b + (c - a) * share + (2 * a - 5 * b + 4 * c - d) * share**2 + (3 * b - a - 3 * c + d) * share**3
        self.line = np.concatenate([curve.reshape(-1, 2) / 2, points[:1]])  # Catmull and Rom
        self._way = np.concatenate([[0.0], np.linalg.norm(np.diff(self.line, axis=0), axis=1).cumsum()])
        self.length = float(self._way[-1])

    def at(self, way: np.ndarray) -> np.ndarray:
        """Points [N, 2]."""
        way = way % self.length
        return np.stack([np.interp(way, self._way, self.line[:, axis]) for axis in (0, 1)], 1)


def _about(axis: int, angle_rad: np.ndarray) -> np.ndarray:
    """Rotations [N, 3, 3] about an axis."""
    first, second = (axis + 1) % 3, (axis + 2) % 3
    turn = np.tile(np.eye(3), (len(angle_rad), 1, 1))
    turn[:, first, first] = turn[:, second, second] = np.cos(angle_rad)
    turn[:, second, first], turn[:, first, second] = np.sin(angle_rad), -np.sin(angle_rad)
    return turn


def _hall(rng: np.random.Generator, track: Track, faces: int = 1) -> Scene:
    """The hall as a batch of one scene: walls with posters and goods, two blocks, and furniture on the floor. Things
    have so many different `faces`, 1 or 6."""
    boxes = [(x, -half[1], z, *half, 0.0) for (x, z), half in BLOCKS]
    walls = [(0.0, 0.0, HALL, -1, HALL[1])] + [(x, z, half, 1, half[1]) for (x, z), half in BLOCKS]
    for x, z, half, side, tall in walls:  # posters and shelves on all of them
        for axis, sign in ((0, -1), (0, 1), (2, -1), (2, 1)):
            along = half[2 - axis]
            for middle in np.arange(-along + 0.9, along - 0.5, 1.5):
                wide, high, thick = rng.uniform(0.3, 0.65), rng.uniform(0.25, 0.45) * tall, rng.uniform(0.02, 0.12)
                level = rng.uniform(high, 2 * tall - high) if rng.random() < 0.7 else high
                across, down = sign * (half[axis] + side * thick), middle + rng.uniform(-0.2, 0.2)
                spot, size = ((across, down), (thick, wide)) if axis == 0 else ((down, across), (wide, thick))
                boxes.append((x + spot[0], -level, z + spot[1], size[0], high, size[1], 0.0))
    round_ones = []
    for _ in range(4000):
        spot = rng.uniform((-HALL[0], -HALL[2]), (HALL[0], HALL[2]))
        wide, deep, tall = rng.uniform(0.12, 0.5), rng.uniform(0.12, 0.4), rng.uniform(0.2, 0.75)
        inside = any(abs(spot[0] - x) < h[0] + wide and abs(spot[1] - z) < h[2] + wide for (x, z), h in BLOCKS)
        near = np.linalg.norm(track.line - spot, axis=1).min() < CLEAR_M + max(wide, deep)
        taken = any(np.hypot(spot[0] - b[0], spot[1] - b[2]) < 0.9 for b in (*boxes[2:], *round_ones))
        if inside or near or taken or len(boxes) + len(round_ones) > 150:
            continue
        one = (spot[0], -tall, spot[1], wide, tall, deep, rng.uniform(-0.6, 0.6))
        (boxes if rng.random() < 0.7 else round_ones).append(one)
    for (x, z), half in BLOCKS[1:]:  # goods on the low block
        for _ in range(10):
            wide, tall = rng.uniform(0.15, 0.45, 2)
            spot = rng.uniform(-1, 1, 2) * (half[0] - 0.5, half[2] - 0.5)
            boxes.append((x + spot[0], -2 * half[1] - tall, z + spot[1], wide, tall, wide, rng.uniform(-1, 1)))
    things = np.array([(0, -HALL[1], 0, *HALL, 0), *boxes, *round_ones])
    return _painted(things, Counts(len(boxes), 0, len(round_ones)), rng, faces)


def _painted(things: np.ndarray, counts: Counts, rng: np.random.Generator, faces: int) -> Scene:
    """Things [N, 7] (centre, half extents, yaw) with textures and lights."""
    number = len(things)
    half = torch.from_numpy(things[:, 3:6]).float()

    def tile(family: str, of: int | None = None) -> int:
        return family_rows(family, TILES)[0] + (int(rng.integers(12)) if of is None else of)

    rows = [[tile(*each) for each in SHELL]]
    rows += [[tile(str(rng.choice(PAPERS)))] * 6 for _ in BLOCKS]
    rows += [
        [tile(str(rng.choice(GOODS))) for _ in range(faces)] * (6 // faces) for _ in range(number - 1 - len(BLOCKS))
    ]
    tiles = torch.tensor(rows, dtype=torch.int32)
    large = torch.arange(number) <= len(BLOCKS)
    # Each wall shows its texture once: one that comes again every metre misleads the matches (seen: 4.6 m of 13.5).
    density = torch.where(large, 0.09, torch.from_numpy(rng.uniform(0.8, 2.0, number)).float())[:, None].expand(-1, 6)
    along = (half[:, (2, 0, 0)].repeat_interleave(2, -1), half[:, (1, 2, 1)].repeat_interleave(2, -1))
    tables = {
        "centre": torch.from_numpy(things[:, :3]).float(),
        "half": half,
        "world_from_local": rotate_y(torch.from_numpy(things[:, 6]).float()),
        "tile": tiles,
        "overlay": torch.tensor([[tile("noise")] * 6 for _ in range(number)], dtype=torch.int32),
        "repeat_u": along[0] * density,
        "repeat_v": along[1] * density,
        "density": density,
        "strength": torch.where(large, 0.6, 0.3)[:, None].expand(-1, 6),
        "gloss": torch.zeros(number, 6),
        "tint": torch.from_numpy(rng.uniform(0.7, 1.4, (number, 1, 1))).float().expand(-1, 6, 3),
        "waves": torch.zeros(0, 4),
        "light": torch.tensor([[0.4, -0.8, 0.3, 0.0], [-0.6, -0.4, -0.7, 0.0]]),
        "light_colour": torch.tensor([[0.75, 0.7, 0.6], [0.3, 0.34, 0.4]]),
        "light_reach": torch.ones(2),
        "ambient": torch.tensor([0.6, 0.6, 0.62]),
        "zenith": torch.ones(3),
        "horizon": torch.ones(3),
        "focus": torch.zeros(3),
        "reach": torch.tensor(3.0),
        "azimuth": torch.tensor(0.0),
        "elevation": torch.tensor(0.0),
    }
    return Scene(counts=counts, **{name: value.unsqueeze(0) for name, value in tables.items()})


def _seen(scene: Scene, rotation: Tensor, position: Tensor, aspect: float) -> Scene:
    """The solids that any of the cameras (rotation [S, 3, 3], position [S, 3]) can see: fewer are cast sooner."""
    local = (scene.centre[0] - position[:, None]) @ rotation
    radius = scene.half[0].norm(dim=-1)
    edge = 0.5 / FOCAL
    away = [local[..., axis].abs() - slope * local[..., 2] for axis, slope in ((0, edge), (1, edge * aspect))]
    room = [math.hypot(1, slope) * radius for slope in (edge, edge * aspect)]
    kept = ((away[0] < room[0]) & (away[1] < room[1]) & (local[..., 2] > -radius)).any(0)
    kept[0] = True
    boxes = scene.counts.boxes
    counts = Counts(int(kept[1 : 1 + boxes].sum()), 0, int(kept[1 + boxes :].sum()))
    names = ("centre", "half", "world_from_local", "tile", "overlay", "repeat_u", "repeat_v", "density", "strength")
    return replace(scene, counts=counts, **{name: getattr(scene, name)[:, kept] for name in (*names, "gloss", "tint")})


def _sensor(seconds: Tensor) -> Sensor:
    """A phone's sensor; exposure and white balance drift."""

    def value(middle: float, drift: float = 0.0) -> Tensor:
        return (middle * (1 + drift * torch.sin(seconds / 7))).view(-1, 1, 1)

    white = torch.stack([1 + share * torch.sin(seconds / 9) for share in (0.03, 0.0, -0.03)], 1)[..., None, None]
    return Sensor(value(0.22, 0.15), value(0.9), value(0.15), value(0.4), value(0.01), value(0.004), value(0.45), white)


def errors(found: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """ATE (root mean square, median, largest) and RPE from frame to frame of cameras world_from_cam [N, 4, 4]."""
    fit = umeyama(torch.from_numpy(found[:, :3, 3].copy()), torch.from_numpy(true[:, :3, 3].copy()))
    moved = fit.apply(torch.from_numpy(found[:, :3, 3].copy())).numpy()
    off = 100 * np.linalg.norm(moved - true[:, :3, 3], axis=1)
    scale = float(fit.scale)
    steps = [np.linalg.inv(poses[:-1]) @ poses[1:] for poses in (found, true)]
    shift = 100 * np.linalg.norm(scale * steps[0][:, :3, 3] - steps[1][:, :3, 3], axis=1)
    turn = sim3.angle_rad(steps[0][:, :3, :3].transpose(0, 2, 1) @ steps[1][:, :3, :3])
    return {
        "ate_cm": round(float(np.sqrt((off**2).mean())), 2),
        "median_cm": round(float(np.median(off)), 2),
        "max_cm": round(float(off.max()), 1),
        "rpe_cm": round(float(np.sqrt((shift**2).mean())), 2),
        "rpe_deg": round(float(np.rad2deg(np.sqrt((turn**2).mean()))), 3),
    }


def score(found: np.ndarray, true: np.ndarray, certain: np.ndarray) -> dict[str, Any]:
    """Errors of the frames whose cameras are certain [N] bool, after one similarity over these, and of all frames."""
    extent = float(np.linalg.norm(np.ptp(true[:, :3, 3], axis=0)))
    return {"extent_m": round(extent, 2), **errors(found[certain], true[certain]), "all_frames": errors(found, true)}


def revisits(found: np.ndarray, true: np.ndarray, apart: int) -> dict[str, float]:
    """How far the motion between frames that are `apart` is off, once all positions have the true scale: large where
    a place that is seen again is put elsewhere."""
    if len(found) <= apart:
        return {}
    scale = float(umeyama(torch.from_numpy(found[:, :3, 3].copy()), torch.from_numpy(true[:, :3, 3].copy())).scale)
    steps = [np.linalg.inv(poses[:-apart]) @ poses[apart:] for poses in (found, true)]
    shift = 100 * np.linalg.norm(scale * steps[0][:, :3, 3] - steps[1][:, :3, 3], axis=1)
    turn = np.rad2deg(sim3.angle_rad(steps[0][:, :3, :3].transpose(0, 2, 1) @ steps[1][:, :3, :3]))
    return {
        "median_cm": round(float(np.median(shift)), 1),
        "max_cm": round(float(shift.max()), 1),
        "median_deg": round(float(np.median(turn)), 2),
    }


def write(walk: Walk, folder: Path) -> None:
    """The walk as a video with its true cameras."""
    import av

    folder.mkdir(parents=True, exist_ok=True)
    width, height = walk.size
    with av.open(str(folder / "walk.mp4"), "w") as file:
        stream = file.add_stream("libx264", rate=round(walk.fps), options={"crf": "18", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.thread_count = 1
        for _, image in walk:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        file.mux(stream.encode())
    (folder / "walk_camera.json").write_text(json.dumps(camera_of(walk)))
    (folder / "walk_poses_tum.txt").write_text("\n".join(tum_lines(walk)) + "\n")


def camera_of(walk: Walk) -> dict[str, float]:
    """The pinhole of a walk."""
    k = walk.intrinsics
    return {"fx": k[0, 0], "fy": k[1, 1], "cx": k[0, 2], "cy": k[1, 2]}


def tum_lines(walk: Walk) -> Iterator[str]:
    """time, position and quaternion (x, y, z, w) of every frame."""
    poses = walk.world_from_cam(np.arange(walk.frames))
    quaternions = quaternion_from_matrix(torch.from_numpy(poses[:, :3, :3]))
    for index, (pose, q) in enumerate(zip(poses, quaternions[:, [1, 2, 3, 0]].tolist(), strict=True)):
        yield " ".join(f"{number:.9g}" for number in (index / walk.fps, *pose[:3, 3], *q))


def main() -> None:
    """Write a walk."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--size", type=int, nargs=2, default=(320, 240), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ahead", action="store_true")
    parser.add_argument("--scan", action="store_true")
    args = parser.parse_args()
    start = time.perf_counter()
    walk = (Scan if args.scan else Walk)(args.frames, tuple(args.size), args.seed, args.ahead)
    write(walk, args.folder)
    seconds = time.perf_counter() - start
    print(f"{args.frames} frames, {args.frames / seconds:.1f} rendered a second")


if __name__ == "__main__":
    main()
