"""Matching between views, as input to the trunk: soft correspondences, and how well the cameras explain them.

Coordinates are normalised and centred, (pixel - centre) / sqrt(picture area), in the picture of each view.
Letters: B scenes, S views, N patches a view, C channels. Pair tensors [B, I, S, N, ...] go from patch n of
query view i to view j; I is all S views in training and a few at a time otherwise, so that memory grows linearly
with the number of views. From MANY views on, outside of training, each view is matched with PARTNERS others alone, so
that time grows linearly as well: S of pair tensors is then PARTNERS.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lean3r.group import Share, of_all
from lean3r.layers.linear import Linear
from lean3r.tracing import is_traced, without_autocast

MANY, PARTNERS = 50, 32  # views: from how many on each is matched with how many others
PAIR_NUMBERS = 8  # offset (2), position (2), peak, spread, visibility, 1 for "another view"


@dataclass(frozen=True)
class Matches:
    """Correspondences of each patch in each other view.

    position [B, S, S, N, 2] in normalised coordinates of the other view; peak and spread [B, S, S, N] of the match
    distribution; visibility [B, S, S, N] logits; logits [B, S, S, N, N] of the patch scores, None unless gradients
    are recorded. others [B, S, K] are the views that each is matched with, None if that is all S: K is then the second
    S of the shapes above. With `peers` it is the number of views that they show.
    """

    position: Tensor
    peak: Tensor
    spread: Tensor
    visibility: Tensor
    logits: Tensor | None
    others: Tensor | None = None
    peers: Peers | None = None


class Peers:
    """The views that those of a call are compared with: here the views of the call, each with all others.

    In a stream (layers/frame_ring.py) earlier frames are among them, K in all, and with a `share` the views of all
    processes. `sees` [S, K] is 1 where a view of the call is compared with one of them; None: wherever they differ.
    """

    sees: Tensor | None = None
    share: Share | None = None

    @property
    def first(self) -> int:
        """The place of the call's first view among all."""
        return 0 if self.share is None else self.share.first

    def join(self, name: str, values: Tensor) -> Tensor:
        """Values [B, S, ...] of the call's views -> [B, K, ...] of all, those of the call among them."""
        return values if self.share is None else self.share.gather(values, purpose="matches")

    def before(self, values: Tensor) -> Tensor:
        """Of values [B, K, ...] of all views, for each of the call's those of the last one before it, or its own."""
        return values

    def weight(self, rows: slice, total: int, others: Tensor | None, like: Tensor) -> Tensor:
        """[B or 1, I, K, 1]: 1 for pairs that count, of query views `rows`."""
        if self.sees is None:
            return other_views(rows, total, others, like, self.first)
        return self.sees[None, rows].to(like)[..., None]


def query_chunks(views: int, keep_graph: bool, budget: int, cost: int) -> Iterator[slice]:
    """Slices of query views, each of which costs `cost` elements, such that one slice costs at most `budget`; one slice
    under autograd, and of a traced model."""
    if keep_graph or is_traced():
        yield slice(0, views)
        return
    step = max(1, min(views, budget // max(1, cost)))
    for start in range(0, views, step):
        yield slice(start, min(start + step, views))


class SharedPeers(Peers):
    """The views of all processes, each compared with all others."""

    def __init__(self, share: Share):
        self.share = share


def choose_partners(descriptor: Tensor, valid: Tensor | None, count: int, share: Share | None = None) -> Tensor:
    """The `count` other views [B, S, count] that each is matched with: every so many of a list by similarity.

    Similarity is the mean squared product of the descriptors [B, S, N, C] of patches, those that are valid [B, S, N].
    With a `share` the others are those of all processes.
    The most similar ones alone cost accuracy: cameras far apart are then known through chains only (docs/nano.md).
    """
    if valid is not None:
        descriptor = descriptor * valid[..., None]
    with without_autocast(descriptor.device.type):  # in bfloat16, most views would be alike
        moments = F.normalize(torch.einsum("bsnc,bsnd->bscd", descriptor, descriptor).flatten(2), dim=-1)
        alike = moments @ of_all(share, moments).mT
    own, every = (torch.arange(n, device=alike.device) for n in alike.shape[1:])
    itself = own[:, None] + (0 if share is None else share.first) == every
    ranked = alike.masked_fill(itself, -1.0).argsort(dim=-1, descending=True)  # a view itself comes last
    places = torch.arange(count, device=ranked.device) * (ranked.shape[-1] - 2) / (count - 1)
    return ranked[..., places.round().long()]


def seen_from(rows: slice, values: Tensor, others: Tensor | None) -> Tensor:
    """Values [B, S, ...] of the views that query views are matched with: [B, 1, S, ...] if all, else [B, I, K, ...]."""
    if others is None:
        return values[:, None]
    return values[torch.arange(len(values), device=values.device)[:, None, None], others[:, rows]]


def other_views(rows: slice, total: int, others: Tensor | None, like: Tensor, first: int = 0) -> Tensor:
    """[B or 1, I, S, 1]: 1 for pairs of different views, 0 for a view with itself; `rows` count from view `first`."""
    views = torch.arange(total, device=like.device)
    return (views[first:][rows, None] != seen_from(rows, views[None], others)).to(like.dtype)[..., None]


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

    def forward(
        self, patches: Tensor, grid: Tensor, valid: Tensor | None, peers: Peers | None = None
    ) -> tuple[Tensor, Matches]:
        """patches [B, S, N, C], grid [B, S, N, 2], valid [B, S, N] or None -> (update [B, S, N, C], Matches)."""
        x = self.norm(patches)
        descriptor = F.normalize(self.descriptor(x).float(), dim=-1).to(x.dtype) * self.log_sharpness.exp().sqrt()
        own, other = self.own(x), self.other(x)
        views, tokens = patches.shape[1:3]
        graph = torch.is_grad_enabled()
        filled: list[Tensor] = []
        logits = None
        queries, peers = descriptor, peers or Peers()
        total = views if peers.share is None else peers.share.total
        chooses = peers.sees is None and not graph and total >= MANY
        others = choose_partners(descriptor.float(), valid, PARTNERS, peers.share) if chooses else None
        if valid is not None and peers.share is not None:
            valid = peers.join("valid", valid)
        descriptor, other = peers.join("descriptor", descriptor), peers.join("other", other)
        grids = grid, peers.join("grid", grid)
        partners = descriptor.shape[1] if others is None else PARTNERS
        for rows in query_chunks(views, graph, 1 << 22, partners * tokens * (tokens + 2 * own.shape[-1])):
            logits = torch.einsum("bind,bijmd->bijnm", queries[:, rows], seen_from(rows, descriptor, others))
            if valid is not None:
                hidden = ~seen_from(rows, valid, others)[:, :, :, None]
                logits = logits.masked_fill(hidden, torch.finfo(logits.dtype).min)
            pair = peers.weight(rows, total, others, logits.float())
            fill(filled, self._read(logits, own[:, rows], other, grids, rows, others, pair), rows, views)
        update, position, peak, spread, visibility = filled
        return update, Matches(position, peak, spread, visibility, logits if graph else None, others, peers)

    def _read(
        self,
        logits: Tensor,
        own: Tensor,
        other: Tensor,
        grids: tuple[Tensor, Tensor],
        rows: slice,
        others: Tensor | None,
        pair: Tensor,
    ):
        share, grid_i, grid = logits.float().softmax(-1), grids[0][:, rows], grids[1]
        moments = torch.cat([grid, grid.square().sum(-1, keepdim=True)], dim=-1)
        with without_autocast(logits.device.type):
            means = torch.einsum("bijnm,bijmk->bijnk", share, seen_from(rows, moments.float(), others))
        position, peak = means[..., :2], share.amax(-1)
        spread = (means[..., 2] - position.square().sum(-1)).clamp_min(0.0)
        numbers = torch.cat([position - grid_i[:, :, None], position, peak[..., None], spread[..., None]], dim=-1)
        seen = torch.einsum("bijnm,bijmc->bijnc", share.to(other.dtype), seen_from(rows, other, others))
        hidden = F.gelu(own[:, :, None] + seen + self.numbers(numbers.to(other.dtype)))
        refined = self.refine(hidden).float()
        position = position + 0.1 * refined[..., :2]
        visibility = refined[..., 2]
        pair = pair.expand_as(peak)
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
        """grid [B, S, N, 2]; points [B, S, N, 3] in each camera; focal [B, K]; world_from_cam [B, S, 4, 4] and
        cam_from_world [B, K, 4, 4], of the views that they are matched with; -> [B, S, N, C]."""
        views, tokens = grid.shape[1:3]
        filled: list[Tensor] = []
        cost = matches.peak.shape[2] * tokens * (self.NUMBERS + 96)
        for rows in query_chunks(views, torch.is_grad_enabled(), 1 << 22, cost):
            with without_autocast(grid.device.type):
                numbers, weight = self._residuals(matches, grid, points, focal, world_from_cam, cam_from_world, rows)
            evidence = F.gelu(self.fc1(numbers))
            fill(filled, (self.fc2(pool_values(evidence, weight.to(evidence.dtype))),), rows, views)
        return filled[0]

    def _residuals(self, matches, grid, points, focal, world_from_cam, cam_from_world, rows: slice):
        relative = (
            seen_from(rows, cam_from_world, matches.others) @ world_from_cam[:, rows, None]
        )  # [B, I, S, 4, 4]: cam_j_from_cam_i
        there = torch.einsum("bijkl,binl->bijnk", relative[..., :3, :3], points[:, rows])
        there = there + relative[..., None, :3, 3]
        depth = there[..., 2]
        safe = depth.clamp_min(0.05)
        projected = (seen_from(rows, focal, matches.others)[..., None, None] * there[..., :2] / safe[..., None]).clamp(
            -2.0, 2.0
        )
        position = matches.position[:, rows]
        residual = position - projected
        visible = matches.visibility[:, rows].sigmoid()
        peers = matches.peers or Peers()
        pair = peers.weight(rows, cam_from_world.shape[1], matches.others, depth).expand_as(depth)
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
