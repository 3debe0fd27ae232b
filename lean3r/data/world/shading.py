"""Shading of hits: textures, two lights, highlights, sky; all as channels [V, P] (V views, P pixels)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lean3r.data.world.raycast import Counts, Lens, Placed, ground_slope, intersect, rays, shapes, span


class Paint(NamedTuple):
    """Surface of all faces of all solids for each view, [V, N * 6].

    tile and overlay are rows of the atlas (tile below 0: sky with the clouds of row -1 - tile); repeat_u and
    repeat_v: tiles per half extent of the face; density: tiles per world unit; strength of the overlay; gloss of
    the highlight; tint_*: linear colour.
    """

    tile: Tensor
    overlay: Tensor
    repeat_u: Tensor
    repeat_v: Tensor
    density: Tensor
    strength: Tensor
    gloss: Tensor
    tint_r: Tensor
    tint_g: Tensor
    tint_b: Tensor


class Lights(NamedTuple):
    """Two lights in camera axes: position [V, 2, 4] (w = 1: point, 0: direction), colour [V, 2, 3], fall-off
    distance `reach` [V, 2]; and the colours [V, 3] of ambient light and of the sky at zenith and horizon."""

    position: Tensor
    colour: Tensor
    reach: Tensor
    ambient: Tensor
    zenith: Tensor
    horizon: Tensor


class Atlas(NamedTuple):
    """Tiles with all mip levels one after another: texels [tiles * texels per tile] int32 0xRRGGBB; size in texels."""

    texels: Tensor
    size: int


class Picture(NamedTuple):
    """Channels [V, P]: linear red, green, blue; z-depth, 0 in the sky; camera-axes normal, 0 in the sky."""

    r: Tensor
    g: Tensor
    b: Tensor
    depth: Tensor
    nx: Tensor
    ny: Tensor
    nz: Tensor


class Surface(NamedTuple):
    """Surface at the hits, channels [V, P]: index in the flattened face tables, axis of the face, local point, unit
    normal towards the camera, cosine of the angle to the ray, position on the face in half extents."""

    face: Tensor
    on_x: Tensor
    on_y: Tensor
    local: tuple[Tensor, Tensor, Tensor]
    normal: tuple[Tensor, Tensor, Tensor]
    facing: Tensor
    u: Tensor
    v: Tensor


def cast(
    column: Tensor,
    row: Tensor,
    centre: Tensor,
    lens: Lens,
    placed: Placed,
    counts: Counts,
    paint: Paint,
    lights: Lights,
    atlas: Atlas,
    shadows: bool = False,
) -> Picture:
    """Pictures of V views at pixels column, row [V, P].

    centre [2] is the principal point in pixels; `shadows` adds shadows of the first light.
    """
    x, y = rays(column, row, centre, lens)
    t, solid, ground = intersect(x, y, placed, counts)
    length = torch.sqrt(x * x + y * y + 1)
    hit = _surface(x, y, t, length, solid, ground, placed, counts)
    tile = paint.tile.reshape(-1)[hit.face]
    sky = (tile < 0) & (solid == 0)
    # The sky is at infinity: its clouds depend only on the direction.
    world = placed.world_from_cam
    east, down, north = (world[:, i, 0, None] * x + world[:, i, 1, None] * y + world[:, i, 2, None] for i in range(3))
    up = -down / length
    lift = 1 / (length * (up.abs() + 0.25))
    u = torch.where(sky, east * lift, hit.u * paint.repeat_u.reshape(-1)[hit.face] + 0.5)
    v = torch.where(sky, north * lift, hit.v * paint.repeat_v.reshape(-1)[hit.face] + 0.5)
    footprint = t * paint.density.reshape(-1)[hit.face] * torch.rsqrt(hit.facing.clamp_min(0.15))
    footprint = torch.where(sky, torch.ones_like(t), footprint) * lens.inverse_focal
    texel = _texture(atlas, torch.where(sky, -1 - tile, tile), u, v, footprint)
    # A second, much larger tile hides the repetition of the first.
    large = _texture(atlas, paint.overlay.reshape(-1)[hit.face], u * 0.173 + 0.31, v * 0.173 + 0.73, footprint * 0.173)
    stain = (large[0] + large[1] + large[2]) * (1 / 765)
    wear = 1 + paint.strength.reshape(-1)[hit.face] * (2 * stain - 1)

    first, second, highlight = _receive_light(x, y, t, length, hit, placed, counts, paint, lights, shadows)
    nx, ny, nz = hit.normal
    hemisphere = 0.8 - 0.2 * (nx * world[:, 1, 0, None] + ny * world[:, 1, 1, None] + nz * world[:, 1, 2, None])
    lx, ly, lz = hit.local
    # Corners of a room and bases of furniture are darker.
    foot = torch.where(hit.on_y, torch.zeros_like(t), ly.clamp_min(0) ** 8)
    edges = torch.where(hit.on_x, lz, lx) ** 8 + torch.where(hit.on_y, lz, ly) ** 8
    shade = 1 - 0.22 * torch.where(solid == 0, edges, foot).clamp(0, 1.5)
    shade = torch.where(ground, torch.ones_like(t), shade)

    up = up.clamp_min(0)
    colours = []
    for c, tint in enumerate((paint.tint_r, paint.tint_g, paint.tint_b)):
        # Texels are gamma-encoded; squaring makes them linear.
        albedo = (texel[c] * wear) ** 2 * tint.reshape(-1)[hit.face] * (1 / 65025)
        glow = lights.ambient[:, c, None] * hemisphere
        glow = glow + first * lights.colour[:, 0, c, None] + second * lights.colour[:, 1, c, None]
        lit = albedo * glow * shade + highlight * lights.colour[:, 0, c, None]
        air = lights.horizon[:, c, None] + (lights.zenith[:, c, None] - lights.horizon[:, c, None]) * up
        air = air * (0.8 + 0.4 * stain) + 0.25 * (texel[0] * (1 / 255)) ** 2 * up
        colours.append(torch.where(sky, air, lit))
    seen = (~sky).to(t.dtype)
    return Picture(colours[0], colours[1], colours[2], t * seen, nx * seen, ny * seen, nz * seen)


def _surface(
    x: Tensor,
    y: Tensor,
    t: Tensor,
    length: Tensor,
    solid: Tensor,
    ground: Tensor,
    placed: Placed,
    counts: Counts,
) -> Surface:
    """Face, normal and texture coordinates of hits at depth t."""
    views = torch.arange(x.shape[0], device=x.device, dtype=torch.int32)[:, None]
    pick = views * counts.solids + solid
    m = [[placed.local_from_cam[:, :, i, j].reshape(-1)[pick] for j in range(3)] for i in range(3)]
    start = [placed.origin[:, :, i].reshape(-1)[pick] for i in range(3)]
    lx, ly, lz = (start[i] + (m[i][0] * x + m[i][1] * y + m[i][2]) * t for i in range(3))

    # A point on a box has |l| = 1 on the axis of its face; balls are mapped like cubes, cylinders around their side.
    ball = (solid > counts.boxes) & (solid <= counts.boxes + counts.ellipsoids)
    tube = solid > counts.boxes + counts.ellipsoids
    ax, ay, az = lx.abs(), ly.abs(), lz.abs()
    side = tube & (lx * lx + lz * lz > ly * ly)
    on_y = (((ay >= ax) & (ay >= az)) | tube) & ~side | ground
    on_x = ~on_y & (ax >= az)
    zero, one = torch.zeros_like(t), torch.ones_like(t)
    gx = torch.where(ball | side, lx, torch.where(on_x, lx.sign(), zero))
    gy = torch.where(side, zero, torch.where(ball, ly, torch.where(on_y, ly.sign(), zero)))
    gz = torch.where(ball | side, lz, torch.where(on_x | on_y, zero, lz.sign()))
    nx, ny, nz = (m[0][j] * gx + m[1][j] * gy + m[2][j] * gz for j in range(3))
    if placed.wave_amplitude.shape[1]:
        nx, ny, nz = (
            torch.where(ground, s, n) for s, n in zip(ground_slope(x, y, t, placed), (nx, ny, nz), strict=True)
        )
    towards = -(nx * x + ny * y + nz)
    unit = torch.rsqrt((nx * nx + ny * ny + nz * nz).clamp_min(1e-24)) * torch.where(towards < 0, -1.0, 1.0)

    value = torch.where(on_x, lx, torch.where(on_y, ly, lz))
    face = torch.where(on_x, 0, torch.where(on_y, 2, 4)) + (value > 0).to(torch.int32)
    face = torch.where(ground, 3, face)
    widest = torch.where(ball | side, value.abs().clamp_min(0.3), one)
    u = torch.where(on_x, lz, lx) / widest
    v = torch.where(on_y, lz, ly) / torch.where(ball, widest, one)
    normal = (nx * unit, ny * unit, nz * unit)
    facing = towards.abs() * unit.abs() / length
    return Surface(pick * 6 + face, on_x, on_y, (lx, ly, lz), normal, facing, u, v)


def _receive_light(
    x: Tensor,
    y: Tensor,
    t: Tensor,
    length: Tensor,
    hit: Surface,
    placed: Placed,
    counts: Counts,
    paint: Paint,
    lights: Lights,
    shadows: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Light that the surface receives from both lights, and the highlight of the first."""
    nx, ny, nz = hit.normal
    # Offset from the surface, so that it does not shadow itself.
    point = (x * t + nx * 2e-3, y * t + ny * 2e-3, t + nz * 2e-3)
    received, highlight = [], t
    for k in range(2):
        w = lights.position[:, k, 3, None]
        beam = [lights.position[:, k, i, None] - w * p for i, p in enumerate(point)]
        squared = beam[0] * beam[0] + beam[1] * beam[1] + beam[2] * beam[2]
        inverse = torch.rsqrt(squared)
        lambert = ((nx * beam[0] + ny * beam[1] + nz * beam[2]) * inverse).clamp_min(0)
        strength = 1 / (1 + w * squared / lights.reach[:, k, None] ** 2)
        if k == 0:
            if shadows:
                strength = strength * _shadow(point, beam, placed, counts)
            hx, hy, hz = beam[0] * inverse - x / length, beam[1] * inverse - y / length, beam[2] * inverse - 1 / length
            norm = torch.rsqrt((hx * hx + hy * hy + hz * hz).clamp_min(1e-12))
            shine = ((nx * hx + ny * hy + nz * hz) * norm).clamp_min(0) ** 16
            highlight = shine * strength * (lambert > 0) * paint.gloss.reshape(-1)[hit.face]
        received.append(lambert * strength)
    return received[0], received[1], highlight


def _texture(atlas: Atlas, tile: Tensor, u: Tensor, v: Tensor, footprint: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bilinear lookup with repetition, at the mip level whose texel covers `footprint` tiles; colours in 0..255."""
    levels = atlas.size.bit_length() - 1
    texels = (4 ** (levels + 1) - 1) // 3
    level = torch.log2((footprint * atlas.size).clamp_min(1e-6)).clamp(0, levels - 1).to(torch.int32)
    shift = levels - level
    side = torch.bitwise_left_shift(torch.ones_like(shift), shift)
    start = tile * texels + (4 ** (levels + 1) - 4 * side * side) // 3
    fu, fv = u * side - 0.5, v * side - 0.5
    u0, v0 = torch.floor(fu), torch.floor(fv)
    wu, wv = fu - u0, fv - v0
    mask = side - 1
    iu, iv = u0.to(torch.int32), v0.to(torch.int32)
    iu0, iu1 = iu & mask, (iu + 1) & mask
    row0, row1 = start + (iv & mask) * side, start + ((iv + 1) & mask) * side
    corners = [
        (atlas.texels[row0 + iu0], (1 - wu) * (1 - wv)),
        (atlas.texels[row0 + iu1], wu * (1 - wv)),
        (atlas.texels[row1 + iu0], (1 - wu) * wv),
        (atlas.texels[row1 + iu1], wu * wv),
    ]
    out = []
    for bits in (16, 8, 0):
        values = [((packed >> bits) & 255).to(u.dtype) * weight for packed, weight in corners]
        out.append(values[0] + values[1] + values[2] + values[3])
    return out[0], out[1], out[2]


def _shadow(point: tuple[Tensor, Tensor, Tensor], light: list[Tensor], placed: Placed, counts: Counts) -> Tensor:
    """1 where the line from points [V, P] to the light is free, 0 where a solid other than the shell blocks it."""
    px, py, pz = point
    free = torch.ones_like(px)
    m = placed.local_from_cam
    for n, shape in enumerate(shapes(counts), start=1):
        r = [[m[:, n, i, j, None] for j in range(3)] for i in range(3)]
        o = [placed.origin[:, n, i, None] + r[i][0] * px + r[i][1] * py + r[i][2] * pz for i in range(3)]
        d = [r[i][0] * light[0] + r[i][1] * light[1] + r[i][2] * light[2] for i in range(3)]
        near, far = span(shape, o, d)
        near = near.clamp_min(2e-3)
        free = torch.where((near < far) & (near < 1), torch.zeros_like(free), free)
    return free
