"""Ray casting and shading of scenes made of boxes, ellipsoids, cylinders and a height field.

Everything is written as separate channel tensors of shape [V, P] (V views, P pixels), so that a compiler can
fuse a whole picture into one loop. Rays are (x, y, 1) in camera axes, hence the ray parameter IS the z-depth.
Every solid lives in its own local frame, scaled so that it is the unit box, ball or cylinder there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FAR = 1e9
COARSE_STEPS = 20
FINE_STEPS = 8
REFINE_STEPS = 2
STEP_POWER = 1.4


class Counts(NamedTuple):
    """How many solids of each shape follow the shell (solid 0), in this order."""

    boxes: int
    ellipsoids: int
    cylinders: int

    @property
    def solids(self) -> int:
        """All solids, the shell included."""
        return 1 + self.boxes + self.ellipsoids + self.cylinders


class Placed(NamedTuple):
    """Solids of V views seen from their cameras.

    origin [V, N, 3] camera centre and local_from_cam [V, N, 3, 3] directions, both in the scaled local frame
    of each solid. wave_amplitude and wave_phase [V, K], wave_rate [V, K, 3] (camera axes) and height [V, 1] of
    the camera above the mean ground describe the ground; K is 0 where there is none. world_from_cam [V, 3, 3].
    """

    origin: Tensor
    local_from_cam: Tensor
    wave_amplitude: Tensor
    wave_phase: Tensor
    wave_rate: Tensor
    height: Tensor
    world_from_cam: Tensor


class Lens(NamedTuple):
    """inverse_focal and k1 [V, 1]: focal length in pixels, first radial distortion coefficient."""

    inverse_focal: Tensor
    k1: Tensor


class Paint(NamedTuple):
    """Surface of every face of every solid, flat [B * N * 6]; `row` [V, 1] is where the scene of a view starts.

    tile and overlay are rows of the atlas (tile below 0: sky with the clouds of row -1 - tile); repeat_u and
    repeat_v tiles in half the extent of the face, density tiles a world unit, strength of the overlay, gloss of
    the highlight, tint_* linear colour.
    """

    row: Tensor
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
    """Two lights in camera axes: position [V, 2, 4] (last: 1 point, 0 direction), colour [V, 2, 3], fall-off
    distance `reach` [V, 2]; ambient, zenith and horizon colour [V, 3] of everything else and of the sky."""

    position: Tensor
    colour: Tensor
    reach: Tensor
    ambient: Tensor
    zenith: Tensor
    horizon: Tensor


class Atlas(NamedTuple):
    """Tiles with all mip levels behind each other: texels [tiles * texels of one] int32 0xRRGGBB."""

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


def product(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product [..., i, j] x [..., j, k] in full fp32 whatever the matmul settings (tf32, autocast)."""
    return (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(-2)


def rays(column: Tensor, row: Tensor, centre: Tensor, lens: Lens) -> tuple[Tensor, Tensor]:
    """x, y [V, P] of the ray (x, y, 1) through pixels column, row [V, P] (0-based; centres at + 0.5)."""
    xd = (column + 0.5 - centre[0]) * lens.inverse_focal
    yd = (row + 0.5 - centre[1]) * lens.inverse_focal
    bend = lens.k1 * (xd * xd + yd * yd)
    undo = 1 - bend + 3 * bend * bend
    return xd * undo, yd * undo


def _safe(d: Tensor) -> Tensor:
    """Directions without zeros, so that no slab is 0 * inf."""
    return torch.where(d.abs() < 1e-9, torch.full_like(d, 1e-9), d)


def _slab(o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    inverse = 1 / _safe(d)
    middle, width = -o * inverse, inverse.abs()
    return middle - width, middle + width


def _quadratic(a: Tensor, b: Tensor, cross: Tensor) -> tuple[Tensor, Tensor]:
    """Entry and exit of the unit ball or circle; cross = |o x d|^2 keeps digits that b^2 - ac would lose."""
    free = a - cross
    root = free.clamp_min(0).sqrt()
    miss = free <= 0
    inverse = 1 / a.clamp_min(1e-18)
    near = torch.where(miss, torch.full_like(a, FAR), (-b - root) * inverse)
    return near, torch.where(miss, torch.full_like(a, -FAR), (root - b) * inverse)


def _span(shape: int, o: list[Tensor], d: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Ray interval inside a unit box (0), ball (1) or cylinder about y (2)."""
    if shape == 1:
        cross = (o[1] * d[2] - o[2] * d[1]) ** 2 + (o[2] * d[0] - o[0] * d[2]) ** 2 + (o[0] * d[1] - o[1] * d[0]) ** 2
        a = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
        return _quadratic(a, o[0] * d[0] + o[1] * d[1] + o[2] * d[2], cross)
    low, high = _slab(o[1], d[1])
    if shape == 2:
        near, far = _quadratic(d[0] * d[0] + d[2] * d[2], o[0] * d[0] + o[2] * d[2], (o[2] * d[0] - o[0] * d[2]) ** 2)
        return torch.maximum(low, near), torch.minimum(high, far)
    for axis in (0, 2):
        near, far = _slab(o[axis], d[axis])
        low, high = torch.maximum(low, near), torch.minimum(high, far)
    return low, high


def _shapes(counts: Counts) -> list[int]:
    return [0] * counts.boxes + [1] * counts.ellipsoids + [2] * counts.cylinders


def _local(placed: Placed, n: int, x: Tensor, y: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    m = placed.local_from_cam
    o = [placed.origin[:, n, i, None] for i in range(3)]
    return o, [m[:, n, i, 0, None] * x + m[:, n, i, 1, None] * y + m[:, n, i, 2, None] for i in range(3)]


def intersect(x: Tensor, y: Tensor, placed: Placed, counts: Counts) -> tuple[Tensor, Tensor, Tensor]:
    """Nearest hit of rays (x, y, 1): z-depth [V, P], solid [V, P] int32, whether it is the ground [V, P]."""
    o, d = _local(placed, 0, x, y)
    exits = [_slab(o[axis], d[axis])[1] for axis in range(3)]
    t = torch.minimum(torch.minimum(exits[0], exits[1]), exits[2])
    solid = torch.zeros_like(t, dtype=torch.int32)
    ground = torch.zeros_like(t, dtype=torch.bool)
    if placed.wave_amplitude.shape[1]:
        t, ground = _march(x, y, placed, t)
    for n, shape in enumerate(_shapes(counts), start=1):
        near, far = _span(shape, *_local(placed, n, x, y))
        hit = (near < far) & (near > 1e-4) & (near < t)
        t = torch.where(hit, near, t)
        solid = torch.where(hit, n, solid)
    return t, solid, ground & (solid == 0)


def _march(x: Tensor, y: Tensor, placed: Placed, leave: Tensor) -> tuple[Tensor, Tensor]:
    """First crossing of the ground before `leave`: steps through its slab, finer steps, then false position.

    The steps of one round stand side by side in a tensor; a loop written out would compile for minutes.
    """
    amplitude, phase, rate = placed.wave_amplitude, placed.wave_phase, placed.wave_rate
    fall = placed.world_from_cam[:, 1, 0, None] * x + placed.world_from_cam[:, 1, 1, None] * y
    fall = fall + placed.world_from_cam[:, 1, 2, None]

    def gap(t: Tensor) -> Tensor:
        """Height of the ray above the ground at t [V, P]."""
        turn = rate[:, :, 0, None] * x[:, None] + rate[:, :, 1, None] * y[:, None] + rate[:, :, 2, None]
        wave = amplitude.unsqueeze(-1) * torch.sin(phase.unsqueeze(-1) + turn * t[:, None])
        return placed.height - fall * t - wave.sum(1)

    def first_under(start: Tensor, length: Tensor, share: Tensor) -> Tensor:
        """Number of the first step at start + length * share [K] that is under the ground; K if none is."""
        t = start.unsqueeze(1) + length.unsqueeze(1) * share[:, None]
        above = placed.height.unsqueeze(1) - fall.unsqueeze(1) * t
        for k in range(amplitude.shape[1]):
            turn = rate[:, k, 0, None] * x + rate[:, k, 1, None] * y + rate[:, k, 2, None]
            above = above - amplitude[:, k, None, None] * torch.sin(phase[:, k, None, None] + turn.unsqueeze(1) * t)
        number = torch.arange(len(share), device=x.device, dtype=torch.int32)[:, None]
        return torch.where(above <= 0, number, len(share)).amin(1)

    top = amplitude.abs().sum(1, keepdim=True) + 1e-3
    enter, end = _slab(-placed.height / top, fall / top)
    enter = enter.clamp_min(0)
    end = torch.maximum(torch.minimum(end, leave), enter)
    coarse = (torch.arange(1, COARSE_STEPS + 1, device=x.device) / COARSE_STEPS) ** STEP_POWER
    step = first_under(enter, end - enter, coarse)
    found = (step < COARSE_STEPS) & (end > enter)
    low, high = ((n / COARSE_STEPS) ** STEP_POWER for n in (step, (step + 1).clamp_max(COARSE_STEPS)))
    a, length = enter + (end - enter) * low, (end - enter) * (high - low)
    fine = torch.arange(1, FINE_STEPS, device=x.device) / FINE_STEPS
    step = first_under(a, length, fine)
    a, b = a + length * (step / FINE_STEPS), a + length * ((step + 1) / FINE_STEPS)
    above, below = gap(a), gap(b)
    for _ in range(REFINE_STEPS):
        middle = a + (b - a) * (above / (above - below).clamp_min(1e-12)).clamp(0.02, 0.98)
        value = gap(middle)
        over = value > 0
        a, b = torch.where(over, middle, a), torch.where(over, b, middle)
        above, below = torch.where(over, value, above), torch.where(over, below, value)
    t = a + (b - a) * (above / (above - below).clamp_min(1e-12)).clamp(0, 1)
    return torch.where(found, t, leave), found


def _texture(atlas: Atlas, tile: Tensor, u: Tensor, v: Tensor, footprint: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bilinear lookup, repeating, at the mip level whose texel covers `footprint` tiles; colours in 0..255."""
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


def _shadow(px: Tensor, py: Tensor, pz: Tensor, light: list[Tensor], placed: Placed, counts: Counts) -> Tensor:
    """1 where the way from points [V, P] to the light is free, 0 where a solid other than the shell is in it."""
    free = torch.ones_like(px)
    m = placed.local_from_cam
    for n, shape in enumerate(_shapes(counts), start=1):
        r = [[m[:, n, i, j, None] for j in range(3)] for i in range(3)]
        o = [placed.origin[:, n, i, None] + r[i][0] * px + r[i][1] * py + r[i][2] * pz for i in range(3)]
        d = [r[i][0] * light[0] + r[i][1] * light[1] + r[i][2] * light[2] for i in range(3)]
        near, far = _span(shape, o, d)
        near = near.clamp_min(2e-3)
        free = torch.where((near < far) & (near < 1), torch.zeros_like(free), free)
    return free


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

    centre [2] is the principal point in pixels; `shadows` adds those that the first light casts.
    """
    x, y = rays(column, row, centre, lens)
    t, solid, ground = intersect(x, y, placed, counts)
    count = counts.solids
    views = torch.arange(x.shape[0], device=x.device, dtype=torch.int32)[:, None]
    pick = views * count + solid
    m = [[placed.local_from_cam[:, :, i, j].reshape(-1)[pick] for j in range(3)] for i in range(3)]
    px, py, pz = x * t, y * t, t
    local = [placed.origin[:, :, i].reshape(-1)[pick] + m[i][0] * px + m[i][1] * py + m[i][2] * pz for i in range(3)]
    lx, ly, lz = local

    # The face: a point on a box has |l| = 1 on the axis of the face that it lies on; balls are mapped like cubes.
    ball = (solid > counts.boxes) & (solid <= counts.boxes + counts.ellipsoids)
    tube = solid > counts.boxes + counts.ellipsoids
    ax, ay, az = lx.abs(), ly.abs(), lz.abs()
    side = tube & (lx * lx + lz * lz > ly * ly)
    on_y = (((ay >= ax) & (ay >= az)) | (tube & ~side)) & ~side | ground
    on_x = ~on_y & (ax >= az)
    zero = torch.zeros_like(t)
    gx = torch.where(ball | side, lx, torch.where(on_x, lx.sign(), zero))
    gy = torch.where(side, zero, torch.where(ball, ly, torch.where(on_y, ly.sign(), zero)))
    gz = torch.where(ball | side, lz, torch.where(on_x | on_y, zero, lz.sign()))
    nx, ny, nz = (m[0][j] * gx + m[1][j] * gy + m[2][j] * gz for j in range(3))
    if placed.wave_amplitude.shape[1]:
        nx, ny, nz = _ground_normal(x, y, t, placed, ground, nx, ny, nz)
    towards = -(nx * x + ny * y + nz)
    scale = torch.rsqrt((nx * nx + ny * ny + nz * nz).clamp_min(1e-24)) * torch.where(towards < 0, -1.0, 1.0)
    nx, ny, nz = nx * scale, ny * scale, nz * scale

    axis_value = torch.where(on_x, lx, torch.where(on_y, ly, lz))
    face = torch.where(on_x, 0, torch.where(on_y, 2, 4)) + (axis_value > 0).to(torch.int32)
    face = torch.where(ground, 3, face)
    index = paint.row + solid * 6 + face
    tile = paint.tile[index]
    sky = (tile < 0) & (solid == 0)
    widest = torch.where(ball | (side & on_x) | side, axis_value.abs().clamp_min(0.3), torch.ones_like(t))
    fu = torch.where(on_x, lz, lx) / widest
    fv = torch.where(on_y, lz, ly) / torch.where(ball, widest, torch.ones_like(t))
    # The sky is infinitely far: its clouds follow the direction alone.
    up = -(
        placed.world_from_cam[:, 1, 0, None] * x
        + placed.world_from_cam[:, 1, 1, None] * y
        + placed.world_from_cam[:, 1, 2, None]
    )
    length = torch.sqrt(x * x + y * y + 1)
    up = up / length
    lift = 1 / (length * (up.abs() + 0.25))
    world = placed.world_from_cam
    su, sv = ((world[:, i, 0, None] * x + world[:, i, 1, None] * y + world[:, i, 2, None]) * lift for i in (0, 2))
    density = paint.density[index]
    fu = torch.where(sky, su, fu * paint.repeat_u[index] + 0.5)
    fv = torch.where(sky, sv, fv * paint.repeat_v[index] + 0.5)
    facing = (towards.abs() * scale.abs() / length).clamp_min(0.15)
    footprint = torch.where(sky, lens.inverse_focal, t * lens.inverse_focal * density * torch.rsqrt(facing))
    tr, tg, tb = _texture(atlas, torch.where(sky, -1 - tile, tile), fu, fv, footprint)
    mr, mg, mb = _texture(atlas, paint.overlay[index], fu * 0.173 + 0.31, fv * 0.173 + 0.73, footprint * 0.173)
    wear = 1 + paint.strength[index] * ((mr + mg + mb) / 382.5 - 1)

    # Light: ambient that is a little stronger from above, two lamps, one highlight, darker corners.
    px, py, pz = px + nx * 2e-3, py + ny * 2e-3, pz + nz * 2e-3
    hemisphere = 0.8 - 0.2 * (
        nx * placed.world_from_cam[:, 1, 0, None]
        + ny * placed.world_from_cam[:, 1, 1, None]
        + nz * placed.world_from_cam[:, 1, 2, None]
    )
    received, highlight = [], zero
    for k in range(2):
        w = lights.position[:, k, 3, None]
        beam = [lights.position[:, k, i, None] - w * p for i, p in enumerate((px, py, pz))]
        squared = beam[0] * beam[0] + beam[1] * beam[1] + beam[2] * beam[2]
        inverse = torch.rsqrt(squared)
        lambert = ((nx * beam[0] + ny * beam[1] + nz * beam[2]) * inverse).clamp_min(0)
        strength = 1 / (1 + w * squared / lights.reach[:, k, None] ** 2)
        if k == 0:
            if shadows:
                strength = strength * _shadow(px, py, pz, beam, placed, counts)
            halves = [beam[0] * inverse - x / length, beam[1] * inverse - y / length, beam[2] * inverse - 1 / length]
            norm = torch.rsqrt((halves[0] ** 2 + halves[1] ** 2 + halves[2] ** 2).clamp_min(1e-12))
            shine = ((nx * halves[0] + ny * halves[1] + nz * halves[2]) * norm).clamp_min(0) ** 16
            highlight = shine * strength * (lambert > 0) * paint.gloss[index]
        received.append(lambert * strength)
    corner = torch.where(on_y, zero, ly.clamp_min(0) ** 8)
    edges = torch.where(on_x, az, ax) ** 8 + torch.where(on_y, az, ay) ** 8
    shade = torch.where(ground, torch.ones_like(t), 1 - 0.22 * torch.where(solid == 0, edges, corner).clamp(0, 1.5))

    up = up.clamp_min(0)
    colours = []
    for c, (texel, tint) in enumerate(((tr, paint.tint_r), (tg, paint.tint_g), (tb, paint.tint_b))):
        # Texels are stored like pictures; squaring makes them linear.
        albedo = texel * texel * wear * wear * tint[index] * (1 / 65025)
        glow = lights.ambient[:, c, None] * hemisphere
        glow = glow + received[0] * lights.colour[:, 0, c, None] + received[1] * lights.colour[:, 1, c, None]
        lit = albedo * glow * shade + highlight * lights.colour[:, 0, c, None]
        air = lights.horizon[:, c, None] + (lights.zenith[:, c, None] - lights.horizon[:, c, None]) * up
        air = air * (0.8 + 0.4 * (mr + mg + mb) * (1 / 765)) + 0.25 * (tr * (1 / 255)) ** 2 * up
        colours.append(torch.where(sky, air, lit))
    seen = (~sky).to(t.dtype)
    return Picture(*colours, t * seen, nx * seen, ny * seen, nz * seen)


def _ground_normal(
    x: Tensor, y: Tensor, t: Tensor, placed: Placed, ground: Tensor, nx: Tensor, ny: Tensor, nz: Tensor
) -> tuple[Tensor, ...]:
    """Replace the normal by the gradient of the height field where the ground was hit."""
    rate = placed.wave_rate
    turn = rate[:, :, 0, None] * x[:, None] + rate[:, :, 1, None] * y[:, None] + rate[:, :, 2, None]
    wave = placed.wave_amplitude.unsqueeze(-1) * torch.cos(placed.wave_phase.unsqueeze(-1) + turn * t[:, None])
    slope = [placed.world_from_cam[:, 1, i, None] + (wave * rate[..., i, None]).sum(1) for i in range(3)]
    return tuple(torch.where(ground, s, n) for s, n in zip(slope, (nx, ny, nz), strict=True))
