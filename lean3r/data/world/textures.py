"""Texture atlas: procedural tiles of many families, and crops of the user's photographs, with mip levels."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lean3r.data.world.shading import Atlas
from lean3r.errors import InputError


class Canvas:
    """Draws n tiles of T x T texels at a time; all random numbers come from one generator."""

    def __init__(self, n: int, size: int, generator: torch.Generator):
        self.n, self.size, self.generator = n, size, generator
        grid = (torch.arange(size) + 0.5) / size
        self.v, self.u = (g[None].expand(n, size, size) for g in torch.meshgrid(grid, grid, indexing="ij"))

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Uniform numbers [n, *shape]."""
        return low + (high - low) * torch.rand(self.n, *shape, generator=self.generator)

    def whole(self, low: int, high: int) -> Tensor:
        """Random integers [n, 1, 1] from low to high, both included."""
        return torch.randint(low, high + 1, (self.n, 1, 1), generator=self.generator).float()

    def fractal(self, low: float = 0.8, high: float = 1.9, stretch: float = 1.0) -> Tensor:
        """Periodic noise [n, T, T] in 0..1 with spectrum 1 / f^beta; stretch > 1 elongates it along u."""
        t = self.size
        fy, fx = torch.fft.fftfreq(t)[:, None] * t, torch.fft.rfftfreq(t)[None] * t
        radius = torch.sqrt(fy**2 + (fx * stretch) ** 2).clamp_min(1.0)
        white = torch.randn(self.n, t, t, generator=self.generator)
        noise = torch.fft.irfft2(torch.fft.rfft2(white) * radius ** -self.uniform(low, high, 1, 1), s=(t, t))
        noise = noise - noise.mean((1, 2), keepdim=True)
        return (0.5 + 0.22 * noise / noise.std((1, 2), keepdim=True)).clamp(0, 1)

    def colour(self, saturation: float = 0.6) -> Tensor:
        """Random colours [n, 3, 1, 1], many greyish as in real rooms."""
        which, hue, spread = self.uniform(0, 1, 1), self.uniform(0, 1, 1), 0.04 * self.uniform(-1, 1, 3).sum(1, True)
        # Half of the hues are warm (wood, skin, stone, paint), a fifth are blue.
        hue = torch.where(which < 0.5, 0.08 + spread, torch.where(which < 0.7, 0.6 + spread, hue))
        value = self.uniform(0.12, 1.0, 1)
        chroma = value * saturation * self.uniform(0, 1, 1) ** 1.5
        wheel = (hue * 6 + torch.tensor([5.0, 3.0, 1.0])) % 6
        rgb = value - chroma * torch.minimum(wheel, 4 - wheel).clamp(0, 1)
        return rgb[:, :, None, None]

    def ramp(self, value: Tensor) -> Tensor:
        """Colours [n, 3, T, T] for values 0..1, interpolated between three random colours."""
        a, b, c = self.colour(), self.colour(), self.colour()
        x = value.unsqueeze(1) * 2
        return torch.where(x < 1, a + (b - a) * x, b + (c - b) * (x - 1))

    def warp(self, amount: float) -> tuple[Tensor, Tensor]:
        """Coordinates u, v distorted by smooth noise of random strength up to `amount` tiles."""
        push = self.uniform(0, amount, 1, 1)
        return self.u + push * (self.fractal(1.8, 2.4) - 0.5), self.v + push * (self.fractal(1.8, 2.4) - 0.5)

    def cells(self, rows: Tensor, columns: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A random number for each cell of a periodic grid, and the position 0..1 within the cell."""
        column, row = torch.floor(u * columns), torch.floor(v * rows)
        salt = self.uniform(1, 99, 1, 1)
        key = torch.sin((column % columns) * 12.9898 + (row % rows) * 78.233 + salt) * 43758.5453
        return key - torch.floor(key), u * columns - column, v * rows - row

    def seeds(self, points: int, power: float) -> tuple[Tensor, Tensor]:
        """Distance [n, T, T] to the nearest of `points` random points (periodic), and its index / `points`."""
        best = torch.full((self.n, self.size, self.size), 9.0)
        seed = torch.zeros_like(best)
        for i in range(points):
            pu, pv = self.uniform(0, 1, 1, 1), self.uniform(0, 1, 1, 1)
            du, dv = (self.u - pu + 0.5) % 1 - 0.5, (self.v - pv + 0.5) % 1 - 0.5
            distance = (du.abs() ** power + dv.abs() ** power) ** (1 / power)
            seed = torch.where(distance < best, float(i), seed)
            best = torch.minimum(best, distance)
        return best, seed / points


def _noise(c: Canvas) -> Tensor:
    return c.ramp(c.fractal())


def _cloudy(c: Canvas) -> Tensor:
    value = c.fractal(1.2, 1.8)
    return c.ramp(((value - 0.4) * c.uniform(1, 4, 1, 1)).clamp(0, 1))


def _blobs(c: Canvas) -> Tensor:
    level = torch.floor(c.fractal(1.3, 2.2) * c.whole(3, 7)) / 6
    return c.ramp(((level * 7.31) % 1).clamp(0, 1)) * (0.8 + 0.4 * c.fractal()).unsqueeze(1)


def _checks(c: Canvas) -> Tensor:
    u, v = c.warp(0.15)
    key, fu, fv = c.cells(c.whole(2, 10), c.whole(2, 10), u, v)
    gap = c.uniform(0, 0.08, 1, 1)
    joint = ((fu < gap) | (fv < gap)).float().unsqueeze(1)
    return c.ramp(key) * (1 - joint) * (0.85 + 0.3 * c.fractal()).unsqueeze(1) + joint * c.colour()


def _bricks(c: Canvas) -> Tensor:
    rows, columns = c.whole(3, 8) * 2, c.whole(2, 5)
    shift = (torch.floor(c.v * rows) % 2) * 0.5 / columns
    key, fu, fv = c.cells(rows, columns, c.u + shift, c.v)
    gap = c.uniform(0.04, 0.12, 1, 1)
    joint = ((fu < gap * 0.6) | (fv < gap)).float().unsqueeze(1)
    body = c.colour(0.8) * (1 + c.uniform(0.1, 0.5, 1, 1, 1) * (key - 0.5).unsqueeze(1))
    return (body * (1 - joint) + joint * c.colour(0.2)) * (0.75 + 0.5 * c.fractal(0.6, 1.2)).unsqueeze(1)


def _stripes(c: Canvas) -> Tensor:
    u, _ = c.warp(0.3)
    wave = torch.sin(2 * math.pi * u * c.whole(2, 14))
    sharp = (wave * c.uniform(1, 8, 1, 1)).clamp(-1, 1) * 0.5 + 0.5
    return c.ramp(sharp) * (0.85 + 0.3 * c.fractal()).unsqueeze(1)


def _wood(c: Canvas) -> Tensor:
    key, _, fv = c.cells(c.whole(2, 6), torch.ones(c.n, 1, 1), c.u, c.v)
    grain = c.fractal(0.9, 1.5, stretch=8.0)
    rings = 0.5 + 0.5 * torch.sin(30 * (grain + key))
    hue = torch.tensor([1.0, 0.72, 0.47])[None, :, None, None] * (1 + 0.25 * c.uniform(-1, 1, 3, 1, 1))
    light = (0.45 + 0.3 * key + 0.25 * rings * c.uniform(0, 1, 1, 1) + 0.5 * (grain - 0.5)) * c.uniform(0.5, 1, 1, 1)
    return hue * (light * (1 - 0.6 * (fv < 0.04).float())).unsqueeze(1)


def _speckle(c: Canvas) -> Tensor:
    grain = c.fractal(0.0, 0.8)
    drops = (c.fractal(0.2, 1.0) > c.uniform(0.7, 0.95, 1, 1)).float().unsqueeze(1)
    body = c.colour() * (0.7 + 0.6 * grain).unsqueeze(1)
    return body * (1 - drops) + drops * c.colour(0.8)


def _plain(c: Canvas) -> Tensor:
    distance, seed = c.seeds(5, 2.0)
    marks = (distance < 0.02 + 0.03 * seed).float().unsqueeze(1)
    body = c.colour() * (0.92 + 0.16 * c.fractal(0.8, 1.6)).unsqueeze(1)
    return body * (1 - marks) + marks * c.colour()


def _text(c: Canvas) -> Tensor:
    lines = c.whole(4, 12)
    letters = lines * 2.5
    key, fu, fv = c.cells(lines, torch.floor(letters), c.u, c.v)
    fine, _, _ = c.cells(lines * 5, torch.floor(letters) * 4, c.u, c.v)
    ink = (fine > 0.45) & (key > 0.2) & (fv > 0.25) & (fv < 0.85) & (fu > 0.12)
    ink = ink.float().unsqueeze(1)
    paper = c.colour(0.4).clamp_min(0.55) * (0.9 + 0.2 * c.fractal()).unsqueeze(1)
    return paper * (1 - ink) + ink * c.colour(0.9) * 0.4


def _windows(c: Canvas) -> Tensor:
    key, fu, fv = c.cells(c.whole(2, 4), c.whole(2, 4), c.u, c.v)
    edge = c.uniform(0.12, 0.3, 1, 1)
    inside = (fu - 0.5).abs().maximum((fv - 0.5).abs())
    pane, frame = (inside < 0.5 - edge), (inside < 0.5 - edge + 0.05)
    bar = ((fu - 0.5).abs() < 0.02) | ((fv - 0.4).abs() < 0.02)
    glass = c.colour(0.4) * (0.2 + 0.7 * (key + 0.4 * c.fractal(1.5, 2.0))).unsqueeze(1)
    wall = c.colour() * (0.85 + 0.3 * c.fractal(0.5, 1.2)).unsqueeze(1)
    out = torch.where(frame.unsqueeze(1), c.colour(0.2), wall)
    return torch.where((pane & ~bar).unsqueeze(1), glass, out)


def _stones(c: Canvas) -> Tensor:
    distance, seed = c.seeds(28, 2.0)
    shade = 1 - c.uniform(0, 4, 1, 1) * distance
    return c.ramp((seed * 5.7) % 1) * (shade.clamp(0.2, 1) * (0.7 + 0.6 * c.fractal())).unsqueeze(1)


def _dead_leaves(c: Canvas, square: bool = False) -> Tensor:
    """Overlapping discs or cards with power-law sizes, which have the image statistics of occluding objects."""
    out, free = c.ramp(c.fractal()), torch.ones(c.n, 1, c.size, c.size)
    inner = 0.8 + 0.4 * c.fractal(0.5, 1.5).unsqueeze(1)
    for _ in range(36):
        radius = 0.035 / c.uniform(0.1, 1, 1, 1).clamp_min(0.12)
        du, dv = ((g - c.uniform(0, 1, 1, 1) + 0.5) % 1 - 0.5 for g in (c.u, c.v))
        if square:
            turn = c.uniform(0, math.pi, 1, 1)
            du, dv = du * turn.cos() - dv * turn.sin(), du * turn.sin() + dv * turn.cos()
            size = torch.maximum(du.abs() * c.uniform(0.5, 2, 1, 1), dv.abs())
        else:
            size = torch.sqrt(du * du + dv * dv)
        cover = (size < radius).float().unsqueeze(1) * free
        out = out * (1 - cover) + cover * c.colour(0.9) * (0.7 + 0.3 * (size / radius).unsqueeze(1))
        free = free - cover
    return out * inner


def _cards(c: Canvas) -> Tensor:
    return _dead_leaves(c, square=True)


def _shelf(c: Canvas) -> Tensor:
    rows = c.whole(2, 4)
    key, fu, fv = c.cells(rows, c.whole(6, 16), c.u + 0.02 * c.fractal(), c.v)
    book = (fv > 0.1 + 0.4 * key) & (fu > 0.08)
    title = (fu > 0.35) & (fu < 0.7) & (fv > 0.55) & (fv < 0.55 + 0.35 * key)
    spine = c.ramp((key * 3.7) % 1) * (0.9 + 0.2 * c.fractal()).unsqueeze(1)
    spine = torch.where(title.unsqueeze(1), spine * 0.4 + 0.5, spine)
    board = torch.where((fv < 0.07).unsqueeze(1), c.colour(0.5), c.colour(0.5) * 0.3)
    return torch.where(book.unsqueeze(1), spine, board)


def _grass(c: Canvas) -> Tensor:
    hue = torch.tensor([0.7, 0.9, 0.35])[None, :, None, None] * (1 + 0.35 * c.uniform(-1, 1, 3, 1, 1))
    value = 0.4 * c.fractal(0.2, 0.7) + 0.6 * c.fractal(0.9, 1.6)
    return hue * (value * c.uniform(0.6, 1.4, 1, 1)).unsqueeze(1)


FAMILIES = {
    "noise": _noise,
    "cloudy": _cloudy,
    "blobs": _blobs,
    "checks": _checks,
    "bricks": _bricks,
    "stripes": _stripes,
    "wood": _wood,
    "speckle": _speckle,
    "plain": _plain,
    "text": _text,
    "windows": _windows,
    "stones": _stones,
    "leaves": _dead_leaves,
    "cards": _cards,
    "shelf": _shelf,
    "grass": _grass,
}


def family_rows(name: str, tiles: int) -> tuple[int, int]:
    """First row and number of rows of a family in an atlas with `tiles` procedural tiles."""
    each = tiles // len(FAMILIES)
    return list(FAMILIES).index(name) * each, each


def _photo_tiles(folder: str, size: int, generator: torch.Generator) -> Tensor:
    """Two random square crops of each JPEG or PNG in a folder, with edges blended so that they tile. Raises InputError
    if there is none."""
    from PIL import Image

    files = sorted(p for p in Path(folder).glob("[!.]*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not files:
        raise InputError(f"no .jpg or .png file in the texture folder {folder}: give a folder of photo crops")
    tiles, margin = [], size // 8
    for file in files:
        picture = Image.open(file).convert("RGB")
        for _ in range(2):
            part, left, top = torch.rand(3, generator=generator).tolist()
            side = max(16, int(min(picture.size) * (0.5 + 0.5 * part)))
            x, y = int(left * (picture.width - side)), int(top * (picture.height - side))
            crop = picture.crop((x, y, x + side, y + side))
            crop = crop.resize((size + margin, size + margin), Image.Resampling.BOX)
            tiles.append(torch.from_numpy(np.asarray(crop).copy()).permute(2, 0, 1).float() / 255)
    stack = torch.stack(tiles)
    fade = torch.linspace(0, 1, margin)
    stack[..., :margin] = stack[..., :margin] * fade + stack[..., size:] * (1 - fade)
    fade = fade[:, None]
    stack[..., :margin, :] = stack[..., :margin, :] * fade + stack[..., size:, :] * (1 - fade)
    return stack[..., :size, :size]


def _pack(tiles: Tensor) -> Tensor:
    """Pack tiles [n, 3, T, T] in 0..1 as int32 texels, tile after tile with all mip levels averaged as light."""
    linear, levels = tiles.clamp(0, 1) ** 2, []
    while True:
        r, g, b = (linear.sqrt() * 255).round().to(torch.int32).unbind(1)
        levels.append(((r << 16) | (g << 8) | b).flatten(1))
        if linear.shape[-1] == 1:
            return torch.cat(levels, 1).flatten()
        linear = F.avg_pool2d(linear, 2)


@lru_cache(maxsize=4)
def atlas(seed: int, tiles: int, size: int, folder: str | None, device: str) -> tuple[Atlas, int]:
    """The atlas of a seed (size: a power of two), and the number of photo tiles after the procedural ones."""
    generator = torch.Generator().manual_seed(seed ^ 0x7E87)
    each = tiles // len(FAMILIES)
    parts = []
    for paint in FAMILIES.values():
        canvas = Canvas(each, size, generator)
        parts.append(_pack(paint(canvas)))
    photos = 0
    if folder is not None:
        crops = _photo_tiles(folder, size, generator)
        photos = len(crops)
        parts.append(_pack(crops))
    return Atlas(torch.cat(parts).to(device), size), photos
