"""Cameras and depth adjusted to a network's own matches: a bundle adjustment of its patches.

A network that was trained on rendered scenes is off on photos in what it has learned of motion, but its matches hold.
Here they decide, while poses and depth stay near what the network estimated unless matches contradict it clearly
(robust priors). Letters: S views, N patches a view; pair tensors [S, S, N, ...] go from patch n of a view to the view
that it is matched with. Coordinates are normalised and centred, as in layers/matching.py. Tensors are on the CPU, in
float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lean3r.geometry.pose import invert_pose
from lean3r.geometry.rotation import skew, so3_exp, so3_log

NOISE = 0.01  # of a sure match
SPREAD, BACK = 0.3, 0.05  # a match's error by the spread of its distribution; so near the match of a match comes back
REACHES = 0.1, 0.05, 0.02  # beyond these, one after the other, errors of matches count for ever less
SHARE = 0.25  # of what a match tells: the errors of neighbours are alike
TURN_RAD, MOVE, LIKELY = 0.087, 0.1, 2.0  # expected errors of the network's poses; so many of them are still likely
FOCAL = 0.05  # of its log focal lengths
DEPTH, DEPTH_SHARE = 0.3, 0.1  # of its log depth, and of what a patch tells of it
MOST = 100_000  # matches, so that time grows with the views and not with their square
NEAR = 0.05  # what lies nearer before a camera counts as behind it
STEPS, LEAST_GAIN = 6, 0.01
EXPLAINED = 0.03


@dataclass(frozen=True)
class Guess:
    """Cameras cam_from_world [S, 4, 4], log focal lengths [S] in units of sqrt(picture area), log depth [S, N]."""

    cam_from_world: Tensor
    log_focal: Tensor
    log_depth: Tensor


@dataclass(frozen=True)
class Pairs:
    """Where patches at `grid` [S, N, 2] are in other views: `position` [S, S, N, 2], and how much that counts
    [S, S, N]. They are every `step`-th of those in `size` rows and columns."""

    grid: Tensor
    position: Tensor
    weight: Tensor
    size: tuple[int, int]
    step: int = 1

    @classmethod
    def of(
        cls,
        grid: Tensor,
        position: Tensor,
        spread: Tensor,
        visibility: Tensor,
        known: Tensor,
        size: tuple[int, int],
    ) -> Pairs:
        """Of matches: less counts where their distribution is wide (`spread` [S, S, N], a variance), the other view
        hardly shows the place (`visibility` [S, S, N], 0 to 1), or the match of the match is elsewhere; `known` [S, N]
        are the patches within their pictures. Of many views fewer patches are taken, MOST pairs in all."""
        grid, position, spread, visibility = (x.detach().cpu().double() for x in (grid, position, spread, visibility))
        step = -(-spread.numel() // MOST)
        back = _way_back(grid, position, step)
        grid, known = grid[:, ::step], known.cpu()[:, ::step]
        position, spread, visibility = (x[:, :, ::step] for x in (position, spread, visibility))
        count = visibility.square() * NOISE**2 / (NOISE**2 + SPREAD**2 * spread)
        count = count / (1 + (back / BACK).square()).square()
        itself = torch.eye(len(grid), dtype=torch.bool)[..., None]
        return cls(grid, position, count.masked_fill(itself | ~known[:, None], 0.0), size, step)


def _way_back(grid: Tensor, position: Tensor, step: int) -> Tensor:
    """How far from every `step`-th patch the match of its match is, [S, S, N]."""
    views = range(len(grid))
    return torch.stack([torch.stack([_between(grid, position, one, two, step) for two in views]) for one in views])


def _between(grid: Tensor, position: Tensor, one: int, two: int, step: int) -> Tensor:
    """`_way_back` [N] of two views."""
    there = position[one, two, ::step]
    distance, near = torch.cdist(there, grid[two]).topk(min(4, grid.shape[1]), largest=False)
    share = F.normalize((distance + 0.01) ** -2, p=1, dim=-1)[..., None]
    back = ((position[two, one] - grid[two])[near] * share).sum(-2)
    return (there + back - grid[one, ::step]).norm(dim=-1)


def adjust(start: Guess, pairs: Pairs) -> Guess:
    """Cameras, focal lengths and depth that explain the matches, near those of the start."""
    now = start
    for reach in REACHES:
        cost, damping = _cost(now, start, pairs, reach), 1e-3
        for _ in range(STEPS):
            moved = _step(now, start, pairs, reach, damping)
            after = _cost(moved, start, pairs, reach)
            if not after < cost:  # NaN, too
                damping *= 10
                continue
            gain, now, cost, damping = cost - after, moved, after, max(damping / 5, 1e-6)
            if gain < LEAST_GAIN * cost:
                break
    return now


def explained(guess: Guess, pairs: Pairs) -> float:
    """The share of the matches, by what they count, that are within EXPLAINED of where cameras and depth put them."""
    good = torch.zeros((), dtype=torch.float64)
    for view in range(len(pairs.grid)):
        seen = _seen(guess, pairs, view)
        good += (pairs.weight[view] * seen.is_ahead * (seen.error.norm(dim=-1) < EXPLAINED)).sum()
    return float(good / pairs.weight.sum().clamp_min(1e-9))


class _Seen(NamedTuple):
    """Patches of one view, as the others see them: `points` [N, 3] in its camera, `turn` [S, 3, 3] to the others and
    `there` [S, N, 3] in these, `at` [S, N, 2] in their pictures, `error` [S, N, 2] against the matches."""

    points: Tensor
    turn: Tensor
    there: Tensor
    at: Tensor
    error: Tensor

    @property
    def is_ahead(self) -> Tensor:
        """[S, N] of the other cameras."""
        return self.there[..., 2] > NEAR


def _seen(guess: Guess, pairs: Pairs, view: int) -> _Seen:
    focal = guess.log_focal.exp()
    points = F.pad(pairs.grid[view] / focal[view], (0, 1), value=1.0) * guess.log_depth[view, :, None].exp()
    pose = guess.cam_from_world @ invert_pose(guess.cam_from_world[view])
    there = points @ pose[:, :3, :3].mT + pose[:, None, :3, 3]
    at = focal[:, None, None] * there[..., :2] / there[..., 2:].clamp_min(NEAR)
    return _Seen(points, pose[:, :3, :3], there, at, at - pairs.position[view])


def _strayed(guess: Guess, start: Guess) -> Tensor:
    """How far poses are from those of the start, [S, 6], in expected errors: moves and turns of the cameras."""
    turn = guess.cam_from_world[:, :3, :3] @ start.cam_from_world[:, :3, :3].mT
    move = guess.cam_from_world[:, :3, 3] - (turn @ start.cam_from_world[:, :3, 3:])[..., 0]
    return torch.cat([move / MOVE, so3_log(turn) / TURN_RAD], -1)


def _cost(guess: Guess, start: Guess, pairs: Pairs, reach: float) -> float:
    """What is made smaller: errors of matches, and how far all is from the start."""
    matches = torch.zeros((), dtype=torch.float64)
    for view in range(len(pairs.grid)):
        seen = _seen(guess, pairs, view)
        error = (seen.error / reach).square().sum(-1)
        matches += (pairs.weight[view] * seen.is_ahead * error.log1p()).sum()
    poses = (_strayed(guess, start) / LIKELY).square().sum(-1).log1p().sum()
    depth = ((guess.log_depth - start.log_depth) / DEPTH).square().log1p().sum()
    focal = ((guess.log_focal - start.log_focal) / FOCAL).square().sum()
    return float(SHARE * (reach / NOISE) ** 2 * matches + LIKELY**2 * poses + DEPTH_SHARE * depth + focal)


def _step(now: Guess, start: Guess, pairs: Pairs, reach: float, damping: float) -> Guess:
    """One damped step of Gauss and Newton, with the weights of the robust losses at `now`; depth is eliminated."""
    views = len(now.log_depth)
    square = torch.zeros(views, views, 7, 7, dtype=torch.float64)
    slope = torch.zeros(views, 7, dtype=torch.float64)
    reduced, kept = torch.zeros(2 * (7 * views,), dtype=torch.float64), []
    least, pull = torch.zeros(7 * views, dtype=torch.float64), DEPTH_SHARE / DEPTH**2
    for view in range(views):
        seen = _seen(now, pairs, view)
        weight = pairs.weight[view] * seen.is_ahead * (SHARE / NOISE**2)
        weight = weight / (1 + (seen.error / reach).square().sum(-1))
        own, other, by_depth = _slopes(now, pairs, view, seen)
        w_own, w_other, w_depth = (
            own * weight[..., None, None],
            other * weight[..., None, None],
            by_depth * weight[..., None],
        )
        square[view, view] += torch.einsum("snka,snkb->ab", w_own, own)
        square[range(views), range(views)] += torch.einsum("snka,snkb->sab", w_other, other)
        mixed = torch.einsum("snka,snkb->sab", w_own, other)
        square[view] += mixed
        square[:, view] += mixed.mT
        slope[view] += torch.einsum("snka,snk->a", w_own, seen.error)
        slope += torch.einsum("snka,snk->sa", w_other, seen.error)
        off = (now.log_depth[view] - start.log_depth[view]) / DEPTH
        robust = pull / (1 + off.square())
        of_depth = ((w_depth * by_depth).sum((0, 2)) + robust) * (1 + damping)
        towards = (w_depth * seen.error).sum((0, 2)) + robust * off * DEPTH
        coupled = torch.einsum("snka,snk->nsa", other, w_depth)
        coupled[:, view] += torch.einsum("snka,snk->na", own, w_depth)
        coupled = coupled.flatten(1)
        reduced += coupled.T @ (coupled / of_depth[:, None])
        least += coupled.T @ (towards / of_depth)
        kept.append((coupled, of_depth, towards))
    off = _strayed(now, start)
    robust = 1 / (1 + (off / LIKELY).square().sum(-1, keepdim=True))
    unit = torch.tensor([MOVE] * 3 + [TURN_RAD] * 3, dtype=torch.float64)
    held = F.pad(robust / unit.square(), (0, 1), value=FOCAL**-2)
    slope += torch.cat([robust * off / unit, ((now.log_focal - start.log_focal) / FOCAL**2)[:, None]], -1)
    whole = square.transpose(1, 2).reshape(7 * views, 7 * views) + held.flatten().diag()
    whole = whole + (whole.diagonal() * damping).diag() - reduced
    change = -torch.linalg.solve(whole, slope.flatten() - least)
    log_depth = torch.stack([-(towards + coupled @ change) / of_depth for coupled, of_depth, towards in kept])
    move, turn, log_focal = change.reshape(views, 7).split((3, 3, 1), -1)
    cam_from_world = now.cam_from_world.clone()
    cam_from_world[:, :3] = so3_exp(turn) @ now.cam_from_world[:, :3]
    cam_from_world[:, :3, 3] += move
    return Guess(cam_from_world, now.log_focal + log_focal[:, 0], now.log_depth + log_depth.clamp(-1, 1))


def _slopes(now: Guess, pairs: Pairs, view: int, seen: _Seen) -> tuple[Tensor, Tensor, Tensor]:
    """How places in other pictures change with the view's own camera [S, N, 2, 7], the other's, and the log depth
    [S, N, 2]; a camera is a move, a turn from the left, and the log focal length."""
    focal, safe = now.log_focal.exp(), seen.there[..., 2].clamp_min(NEAR)
    project = torch.zeros(*safe.shape, 2, 3, dtype=torch.float64)
    project[..., 0, 0] = project[..., 1, 1] = 1.0
    project[..., 2] = -seen.there[..., :2] / safe[..., None]
    project = project * (focal[:, None] / safe)[..., None, None]
    turned = project @ seen.turn[:, None]
    eye = torch.eye(3, dtype=torch.float64)
    other = torch.cat([project, -project @ skew(seen.there), seen.at[..., None]], -1)
    # A longer focal length of its own brings the rays of the view together: the points move along x and y.
    aside = F.pad(seen.points[:, :2], (0, 1))
    own = -turned @ torch.cat([eye.expand(len(aside), 3, 3), -skew(seen.points), aside[..., None]], -1)
    return own, other, (turned @ seen.points[..., None])[..., 0]
