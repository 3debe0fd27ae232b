"""Matching between views, as input to the trunk: soft correspondences, and how well the cameras explain them.

Coordinates are normalised and centred, (pixel - centre) / sqrt(picture area), in the picture of each view.
Letters: B scenes, S views, N patches a view, C channels. Pair tensors [B, I, S, N, ...] go from patch n of
query view i to view j; I is all S views in training and a few at a time otherwise, so that memory grows linearly
with the number of views.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lean3r.layers.linear import Linear

PAIR_NUMBERS = 8  # offset (2), position (2), peak, spread, visibility, 1 for "another view"


@dataclass(frozen=True)
class Matches:
    """Correspondences of each patch in each other view.

    position [B, S, S, N, 2] in normalised coordinates of the other view; peak and spread [B, S, S, N] of the match
    distribution; visibility [B, S, S, N] logits; logits [B, S, S, N, N] of the patch scores, None unless gradients
    are recorded.
    """

    position: Tensor
    peak: Tensor
    spread: Tensor
    visibility: Tensor
    logits: Tensor | None


def query_chunks(views: int, keep_graph: bool, budget: int, pair_cost: int) -> Iterator[slice]:
    """Slices of query views such that one slice costs at most `budget` elements; one slice under autograd."""
    step = views if keep_graph else max(1, min(views, budget // max(1, views * pair_cost)))
    for start in range(0, views, step):
        yield slice(start, min(start + step, views))


def other_views(views: slice, total: int, like: Tensor) -> Tensor:
    """[1, I, S, 1]: 1 for pairs of different views, 0 for a view with itself."""
    rows = torch.arange(views.start, views.stop, device=like.device)[:, None]
    return (rows != torch.arange(total, device=like.device)).to(like.dtype)[None, :, :, None]


def pool_values(values: Tensor, weight: Tensor) -> Tensor:
    """Mean over the other views [B, I, S, N, C] -> [B, I, N, C], weighted by [B, I, S, N]; small weights shrink it."""
    return torch.einsum("bisnc,bisn->binc", values, weight) / (weight.sum(2) + 0.1)[..., None]


def fill(filled: list[Tensor], parts: Sequence[Tensor], rows: slice, views: int) -> None:
    """Write the results [B, I, ...] of query views `rows` into tensors [B, S, ...], allocated at the first call.

    A single slice of all views is not copied. A list of parts would fragment the memory that each slice frees and
    use several times as much.
    """
    if not filled:
        whole = rows.stop - rows.start == views
        filled.extend(p if whole else p.new_empty(p.shape[0], views, *p.shape[2:]) for p in parts)
        if whole:
            return
    for target, part in zip(filled, parts, strict=True):
        target[:, rows] = part


class PairMatcher(nn.Module):
    """Match every patch in every other view and return the evidence as an update of its token.

    Both sides share one projection. A softmax over the other view's patches gives a mean position; an MLP on both
    tokens refines it and predicts its visibility; the evidence is pooled over the other views.
    """

    def __init__(self, dim: int, match_dim: int = 64, hidden: int = 128):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.descriptor = Linear(dim, match_dim)
        self.log_sharpness = nn.Parameter(torch.tensor(2.3))
        self.own = Linear(dim, hidden)
        self.other = Linear(dim, hidden, bias=False)
        self.numbers = Linear(6, hidden, bias=False)
        self.refine = Linear(hidden, 3)
        self.embed_hidden = Linear(hidden, hidden)
        self.embed_numbers = Linear(PAIR_NUMBERS, hidden, bias=False)
        self.out = Linear(hidden, dim)

    def forward(self, patches: Tensor, grid: Tensor, valid: Tensor | None) -> tuple[Tensor, Matches]:
        """patches [B, S, N, C], grid [B, S, N, 2], valid [B, S, N] or None -> (update [B, S, N, C], Matches)."""
        x = self.norm(patches)
        descriptor = F.normalize(self.descriptor(x).float(), dim=-1).to(x.dtype) * self.log_sharpness.exp().sqrt()
        own, other = self.own(x), self.other(x)
        views, tokens = patches.shape[1:3]
        graph = torch.is_grad_enabled()
        filled: list[Tensor] = []
        logits = None
        for rows in query_chunks(views, graph, 1 << 22, tokens * (tokens + 2 * own.shape[-1])):
            logits = torch.einsum("bind,bjmd->bijnm", descriptor[:, rows], descriptor)
            if valid is not None:
                logits = logits.masked_fill(~valid[:, None, :, None, :], torch.finfo(logits.dtype).min)
            fill(filled, self._read(logits, own[:, rows], other, grid[:, rows], grid, rows), rows, views)
        update, position, peak, spread, visibility = filled
        return update, Matches(position, peak, spread, visibility, logits if graph else None)

    def _read(self, logits: Tensor, own: Tensor, other: Tensor, grid_i: Tensor, grid: Tensor, rows: slice):
        share = logits.float().softmax(-1)
        moments = torch.cat([grid, grid.square().sum(-1, keepdim=True)], dim=-1)
        with torch.autocast(logits.device.type, enabled=False):
            means = torch.einsum("bijnm,bjmk->bijnk", share, moments.float())
        position, peak = means[..., :2], share.amax(-1)
        spread = (means[..., 2] - position.square().sum(-1)).clamp_min(0.0)
        numbers = torch.cat([position - grid_i[:, :, None], position, peak[..., None], spread[..., None]], dim=-1)
        seen = torch.einsum("bijnm,bjmc->bijnc", share.to(other.dtype), other)
        hidden = F.gelu(own[:, :, None] + seen + self.numbers(numbers.to(other.dtype)))
        refined = self.refine(hidden).float()
        position = position + 0.1 * refined[..., :2]
        visibility = refined[..., 2]
        pair = other_views(rows, grid.shape[1], share).expand_as(peak)
        weight = visibility.sigmoid() * pair
        numbers = torch.cat(
            [position - grid_i[:, :, None], position]
            + [n[..., None] for n in (peak, spread, visibility.sigmoid(), pair)],
            dim=-1,
        )
        evidence = F.gelu(self.embed_hidden(hidden) + self.embed_numbers(numbers.to(hidden.dtype)))
        update = self.out(pool_values(evidence, weight.to(evidence.dtype)))
        return update, position, peak, spread, visibility


class Feedback(nn.Module):
    """An update of each patch token from how well the current cameras and depth explain its matches.

    Each patch is unprojected with the current depth and focal length and projected into every other view. The
    difference from the matched position, the residual of a bundle adjustment, is the input.
    """

    NUMBERS = 16

    def __init__(self, dim: int, hidden: int = 96):
        super().__init__()
        self.fc1 = Linear(self.NUMBERS, hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(
        self,
        matches: Matches,
        grid: Tensor,
        points: Tensor,
        focal: Tensor,
        world_from_cam: Tensor,
        cam_from_world: Tensor,
    ) -> Tensor:
        """grid [B, S, N, 2]; points [B, S, N, 3] in each camera; focal [B, S]; poses [B, S, 4, 4]; -> [B, S, N, C]."""
        views, tokens = grid.shape[1:3]
        filled: list[Tensor] = []
        for rows in query_chunks(views, torch.is_grad_enabled(), 1 << 22, tokens * (self.NUMBERS + 96)):
            with torch.autocast(grid.device.type, enabled=False):
                numbers, weight = self._residuals(matches, grid, points, focal, world_from_cam, cam_from_world, rows)
            evidence = F.gelu(self.fc1(numbers))
            fill(filled, (self.fc2(pool_values(evidence, weight.to(evidence.dtype))),), rows, views)
        return filled[0]

    def _residuals(self, matches, grid, points, focal, world_from_cam, cam_from_world, rows: slice):
        relative = cam_from_world[:, None] @ world_from_cam[:, rows, None]  # [B, I, S, 4, 4]: cam_j_from_cam_i
        there = torch.einsum("bijkl,binl->bijnk", relative[..., :3, :3], points[:, rows])
        there = there + relative[..., None, :3, 3]
        depth = there[..., 2]
        safe = depth.clamp_min(0.05)
        projected = (focal[:, None, :, None, None] * there[..., :2] / safe[..., None]).clamp(-2.0, 2.0)
        position = matches.position[:, rows]
        residual = position - projected
        visible = matches.visibility[:, rows].sigmoid()
        pair = other_views(rows, grid.shape[1], depth).expand_as(depth)
        translation = relative[..., None, :3, 3].expand_as(there)
        numbers = torch.cat(
            [residual, torch.tanh(8 * residual), projected, position - grid[:, rows, None], translation]
            + [
                n[..., None]
                for n in (
                    matches.peak[:, rows],
                    matches.spread[:, rows],
                    visible,
                    1.0 / safe.clamp_min(0.2),
                    (depth > 0.05).to(depth.dtype),
                )
            ],
            dim=-1,
        )
        return numbers, visible * pair
