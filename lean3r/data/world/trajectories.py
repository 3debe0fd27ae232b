"""Camera paths: several candidates per scene, and a score by the overlap of their views."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lean3r.data.world.draw import Draw, table
from lean3r.data.world.places import Scene, ground_height, rotate_x, rotate_y
from lean3r.data.world.raycast import product

CLEAR = 0.25
PATHS = ("orbit", "walk", "pan", "unordered", "wide")
WEIGHTS = table(0.3, 0.25, 0.1, 0.15, 0.2)

# One row per path: (low, high) of the half range; angles in radians, lengths relative to the distance to the focus.
SWING = table((0.12, 0.6), (0.0, 0.08), (0.0, 0.02), (0.1, 0.5), (0.3, 1.0))
SHIFT = table((0.0, 0.15), (0.15, 0.8), (0.004, 0.05), (0.1, 0.6), (0.0, 0.4))
TURN = table((0.0, 0.08), (0.02, 0.3), (0.08, 0.5), (0.02, 0.3), (0.0, 0.15))
PARALLEL = table(0.0, 0.85, 1.0, 0.5, 0.0)
ORDERED = table(1.0, 1.0, 0.8, 0.0, 0.5)


def look_at(position: Tensor, target: Tensor) -> Tensor:
    """world_from_cam rotations [..., 3, 3] of upright cameras at `position` that look at `target` [..., 3]."""
    forward = torch.nn.functional.normalize(target - position, dim=-1)
    down = torch.zeros_like(forward)
    down[..., 1] = 1
    right = torch.nn.functional.normalize(torch.linalg.cross(down, forward), dim=-1, eps=1e-9)
    return torch.stack((right, torch.linalg.cross(forward, right), forward), -1)


def propose(draw: Draw, scene: Scene, views: int, candidates: int) -> tuple[Tensor, Tensor]:
    """T candidate paths: world_from_cam rotation [B, T, S, 3, 3] and camera centre [B, T, S, 3]."""
    b, t, s = draw.scenes, candidates, views
    path = torch.multinomial(WEIGHTS, b, replacement=True, generator=draw.generator)

    def amplitude(table: Tensor) -> Tensor:
        low, high = table[path].unbind(-1)
        skewed = draw.uniform(0, 1, t) ** 1.3
        return (low[:, None] + (high - low)[:, None] * skewed).unsqueeze(-1)

    grow = (max(s, 2) / 4) ** 0.3
    line = torch.linspace(-1, 1, s) if s > 1 else torch.zeros(1)
    ordered = draw.chance(ORDERED[path][:, None], t).unsqueeze(-1)
    mixed = draw.uniform(-1, 1, t, s)
    along = torch.where(ordered, line + 0.15 * mixed, mixed) * grow

    def wobble(share: float, *shape: int) -> Tensor:
        return share * draw.uniform(-1, 1, t, s, *shape)

    swing = amplitude(SWING)
    azimuth = scene.azimuth[:, None, None] + 0.6 * draw.normal(t, 1) * (scene.azimuth != 0)[:, None, None] * 0.5
    azimuth = azimuth + along * swing
    elevation = scene.elevation[:, None, None] + draw.uniform(-0.3, 0.3, t, 1) * along * swing + wobble(0.2) * swing
    elevation = elevation.clamp(-0.1, 1.45)
    radius = scene.reach[:, None, None] * (1 + 0.5 * draw.uniform(-1, 1, t, 1) * along * swing + wobble(0.2) * swing)
    offset = torch.stack(
        (elevation.cos() * azimuth.cos(), -elevation.sin(), elevation.cos() * azimuth.sin()), -1
    ) * radius.unsqueeze(-1)
    focus = scene.focus[:, None, None]
    shift = amplitude(SHIFT).unsqueeze(-1)
    heading = draw.uniform(0, 2 * math.pi, t, 1)
    way = torch.stack((heading.cos(), draw.uniform(-0.25, 0.25, t, 1), heading.sin()), -1)
    loose = torch.where(ordered, torch.full((), 0.2), torch.full((), 1.0)).unsqueeze(-1)
    moved = (way * along.unsqueeze(-1) * (1 - 0.7 * (loose > 0.5)) + loose * wobble(0.8, 3)) * shift
    position = _inside(scene, focus + offset + moved * scene.reach[:, None, None, None])

    parallel = PARALLEL[path][:, None, None, None]
    reach = torch.linalg.vector_norm(position - focus, dim=-1, keepdim=True)
    ahead = position + (focus - position.mean(2, keepdim=True))
    target = focus + (ahead - focus) * parallel + wobble(0.12, 3) * shift.clamp_min(0.1) * reach
    rotation = look_at(position, target)
    turn = amplitude(TURN)
    yaw = along * turn * torch.where(draw.chance(0.5, t, 1), 1.0, -1.0) + wobble(0.15) * turn
    pitch = wobble(0.25) * turn + draw.uniform(-0.12, 0.12, t, 1)
    roll = 0.04 * draw.normal(t, 1) + 0.02 * draw.normal(t, s)
    extra = product(rotate_y(yaw), rotate_x(pitch))
    spin = rotate_x(roll)[..., (2, 0, 1), :][..., :, (2, 0, 1)]
    return product(product(rotation, extra), spin), position


def _inside(scene: Scene, position: Tensor) -> Tensor:
    """Positions [B, T, S, 3] clamped to the inside of the shell and above the ground."""
    shell, centre = scene.half[:, 0, None, None], scene.centre[:, 0, None, None]
    margin = (shell - 0.35).clamp_min(0.1)
    position = torch.maximum(torch.minimum(position, centre + margin), centre - margin)
    if scene.waves.shape[1]:
        surface = -ground_height(scene.waves, position[..., 0], position[..., 2])
        position = torch.stack((position[..., 0], torch.minimum(position[..., 1], surface - 1.0), position[..., 2]), -1)
    return position


def overlaps(x: Tensor, y: Tensor, depth: Tensor, rotation: Tensor, position: Tensor, edge: Tensor) -> Tensor:
    """Share [M, S, S] of view i that is visible in view j, from a coarse grid of rays.

    x, y [M, 1, P] rays; depth [M, S, P] with 0 in the sky; rotation [M, S, 3, 3] and position [M, S, 3] world
    from camera; edge [M, 2] tangent of half the horizontal and vertical field of view. Occlusion is approximate.
    """
    m, s, p = depth.shape
    side = math.isqrt(p)
    relative = product(rotation.transpose(-1, -2)[:, None], rotation[:, :, None])
    step = product(rotation.transpose(-1, -2)[:, None], (position[:, :, None] - position[:, None]).unsqueeze(-1))
    r = relative.unsqueeze(-3)
    seen = [
        (r[..., k, 0] * x[:, :, None] + r[..., k, 1] * y[:, :, None] + r[..., k, 2]) * depth[:, :, None]
        + step[..., k, :]
        for k in range(3)
    ]
    z = seen[2].clamp_min(1e-3)
    u, v = seen[0] / (z * edge[:, 0, None, None, None]), seen[1] / (z * edge[:, 1, None, None, None])
    inside = (seen[2] > 1e-2) & (u.abs() < 1) & (v.abs() < 1) & (depth > 0)[:, :, None]
    column = ((u * 0.5 + 0.5) * side).clamp(0, side - 1).to(torch.int64)
    row = ((v * 0.5 + 0.5) * side).clamp(0, side - 1).to(torch.int64)
    there = depth[:, None].expand(m, s, s, p).gather(3, row * side + column)
    visible = inside & ((z < 1.25 * there) | (there <= 0))
    return visible.float().sum(-1) / (depth > 0).sum(-1).clamp_min(1)[:, :, None]


def score(depth: Tensor, overlap: Tensor, near: Tensor, wanted: Tensor, reach: Tensor) -> Tensor:
    """Penalty [B, T] of each candidate path, from depth [B, T, S, P] on a coarse grid, overlap [B, T, S, S], number of
    solids that are too close near [B, T, S], wanted [B] mean overlap, and reach [B], the usual distance."""
    s = depth.shape[2]
    full = (depth > 0).float().mean(-1)
    close = (depth.clamp_min(0) < 0.12 * reach[:, None, None, None]) & (depth > 0)
    bad = 1.0 * near.sum(-1) + 3 * (0.55 - full).clamp_min(0).sum(-1)
    bad = bad + 3 * (close.float().mean(-1) - 0.15).clamp_min(0).sum(-1)
    if s == 1:
        return bad
    off = ~torch.eye(s, dtype=torch.bool, device=depth.device)
    best = (overlap * off).amax(-1)
    mean = (overlap * off).sum((-1, -2)) / (s * (s - 1))
    return bad + 8 * (0.35 - best).clamp_min(0).sum(-1) + 1.5 * (mean - wanted[:, None]).abs()


def pinhole(focal: Tensor, h: int, w: int) -> Tensor:
    """Intrinsics [..., 3, 3] of focal lengths [...] in pixels, with the principal point at the centre."""
    k = torch.zeros(*focal.shape, 3, 3, device=focal.device)
    k[..., 0, 0] = k[..., 1, 1] = focal
    k[..., 0, 2], k[..., 1, 2], k[..., 2, 2] = w / 2, h / 2, 1
    return k


def world_to_camera(rotation: Tensor, position: Tensor) -> Tensor:
    """cam_from_world [..., 4, 4] of cameras at `position` [..., 3] with world_from_cam `rotation` [..., 3, 3]."""
    pose = torch.zeros(*position.shape[:-1], 4, 4, device=position.device)
    turn = rotation.transpose(-1, -2)
    pose[..., :3, :3] = turn
    pose[..., :3, 3] = -product(turn, position.unsqueeze(-1)).squeeze(-1)
    pose[..., 3, 3] = 1
    return pose
