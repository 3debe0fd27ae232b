"""Ray casting of scenes made of boxes, ellipsoids, cylinders and a height field.

All values are separate channel tensors of shape [V, P] (V views, P pixels), so that a compiler can fuse a
whole picture into one loop. Rays are (x, y, 1) in camera axes, hence the ray parameter is the z-depth. Every
solid is the unit box, ball or cylinder in its own scaled local frame.
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
    """Numbers of solids of each shape, which follow the shell (solid 0) in this order."""

    boxes: int
    ellipsoids: int
    cylinders: int

    @property
    def solids(self) -> int:
        """Number of all solids, with the shell."""
        return 1 + self.boxes + self.ellipsoids + self.cylinders


class Placed(NamedTuple):
    """Solids relative to the cameras of V views.

    origin [V, N, 3] is the camera centre and local_from_cam [V, N, 3, 3] maps directions, both in the scaled local
    frame of each solid. wave_amplitude and wave_phase [V, K], wave_rate [V, K, 3] (camera axes) and height [V, 1] of
    the camera above the mean ground describe the ground; K is 0 without ground. world_from_cam [V, 3, 3].
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


def product(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product [..., i, j] x [..., j, k] in full fp32, independent of matmul settings (tf32, autocast)."""
    return (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(-2)


def rays(column: Tensor, row: Tensor, centre: Tensor, lens: Lens) -> tuple[Tensor, Tensor]:
    """x, y [V, P] of the ray (x, y, 1) through pixels column, row [V, P] (0-based; centres at + 0.5)."""
    xd = (column + 0.5 - centre[0]) * lens.inverse_focal
    yd = (row + 0.5 - centre[1]) * lens.inverse_focal
    bend = lens.k1 * (xd * xd + yd * yd)
    undo = 1 - bend + 3 * bend * bend
    return xd * undo, yd * undo


def _safe(d: Tensor) -> Tensor:
    """Replace zeros of directions, so that no slab is 0 * inf."""
    return torch.where(d.abs() < 1e-9, torch.full_like(d, 1e-9), d)


def _slab(o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    inverse = 1 / _safe(d)
    middle, width = -o * inverse, inverse.abs()
    return middle - width, middle + width


def _quadratic(a: Tensor, b: Tensor, cross: Tensor) -> tuple[Tensor, Tensor]:
    """Entry and exit of the unit ball or circle; cross = |o x d|^2 avoids the cancellation in b^2 - ac."""
    free = a - cross
    root = free.clamp_min(0).sqrt()
    miss = free <= 0
    inverse = 1 / a.clamp_min(1e-18)
    near = torch.where(miss, torch.full_like(a, FAR), (-b - root) * inverse)
    return near, torch.where(miss, torch.full_like(a, -FAR), (root - b) * inverse)


def span(shape: int, o: list[Tensor], d: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Interval (entry, exit) of a ray in the unit box (0), ball (1) or cylinder about y (2)."""
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


def shapes(counts: Counts) -> list[int]:
    """Shape numbers (see `span`) of all solids after the shell."""
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
    for n, shape in enumerate(shapes(counts), start=1):
        near, far = span(shape, *_local(placed, n, x, y))
        hit = (near < far) & (near > 1e-4) & (near < t)
        t = torch.where(hit, near, t)
        solid = torch.where(hit, n, solid)
    return t, solid, ground & (solid == 0)


def _march(x: Tensor, y: Tensor, placed: Placed, leave: Tensor) -> tuple[Tensor, Tensor]:
    """First crossing of the ground before `leave`: steps through its slab, finer steps, then false position.

    All steps of one round are in one tensor, because an unrolled loop takes minutes to compile.
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
        """Index of the first step at start + length * share [K] that is under the ground; K if none is."""
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
    crosses = (step < COARSE_STEPS) & (end > enter)
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
    return torch.where(crosses, t, leave), crosses


def ground_slope(x: Tensor, y: Tensor, t: Tensor, placed: Placed) -> list[Tensor]:
    """Gradient of the height field at depth t in camera axes, three channels [V, P]; not of unit length."""
    rate = placed.wave_rate
    turn = rate[:, :, 0, None] * x[:, None] + rate[:, :, 1, None] * y[:, None] + rate[:, :, 2, None]
    wave = placed.wave_amplitude.unsqueeze(-1) * torch.cos(placed.wave_phase.unsqueeze(-1) + turn * t[:, None])
    return [placed.world_from_cam[:, 1, i, None] + (wave * rate[..., i, None]).sum(1) for i in range(3)]
