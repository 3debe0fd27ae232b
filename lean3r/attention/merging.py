"""Merge similar tokens before attention, and copy results back after it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lean3r.attention.pieces import pieces
from lean3r.attention.tokens import rows_of
from lean3r.ops.repeats import pieces_of
from lean3r.tracing import without_autocast


@dataclass(frozen=True)
class MergePlan:
    """Merges of N tokens, as indices [n], the same for all scenes, or [B, n].

    The merged sequence is [unmerged, destinations, protected]. A destination is the mean of itself and of the sources
    whose `targets` [B, n] (positions in `destinations`) point to it. A token that is both a destination and protected
    occurs twice, the second time with its own value.
    """

    destinations: Tensor
    sources: Tensor
    targets: Tensor
    unmerged: Tensor
    protected: Tensor


def best_match(
    metric: Tensor, sources: Tensor, destinations: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cosine of each source with its most similar destination, and this destination: ([B, n], [B, n] int64).

    metric [B, N, C]; sources and destinations index its tokens. Ties go to the first destination. Where mask [B, N] is
    False, a destination is never chosen and a source has similarity -inf.
    """
    unit = F.normalize(metric.detach().to(_wide(metric)), dim=-1)
    to = unit[:, destinations]
    hidden = None if mask is None else ~mask[:, destinations][:, None]
    best = unit.new_empty(len(metric), len(sources))
    which = torch.empty(best.shape, dtype=torch.int64, device=metric.device)
    for part in pieces_of(list(pieces(len(sources), len(metric) * len(destinations), metric.device))):
        with without_autocast(unit.device.type):  # in bfloat16, most similarities of alike tokens would be equal
            similarity = unit[:, sources[part]] @ to.transpose(1, 2)
        if hidden is not None:
            similarity = similarity.masked_fill(hidden, -torch.inf)
        best[:, part], which[:, part] = similarity.max(-1)
    if mask is not None:
        best.masked_fill_(~mask[:, sources], -torch.inf)
    return best, which


def merge(x: Tensor, plan: MergePlan, mask: Tensor | None = None) -> Tensor:
    """Merge tokens x [B, H, N, D] to [B, H, M, D]; tokens with False in mask [B, N] are in no mean."""
    x = x if mask is None else x.masked_fill(~mask[:, None, :, None], 0.0)
    counts = _counts(plan, x, mask)
    index = plan.targets[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])
    base, added = (rows_of(x, i).to(_wide(x)) for i in (plan.destinations, plan.sources))
    mean = base.scatter_add(2, index, added) / counts[:, None, :, None].clamp_min(1).to(_wide(x))
    return torch.cat([rows_of(x, plan.unmerged), mean.to(x.dtype), rows_of(x, plan.protected)], 2)


def merged_mask(plan: MergePlan, mask: Tensor) -> Tensor:
    """Mask [B, M] of the tokens of the merged sequence that are not padding, from mask [B, N]."""
    row = mask[:, None, :, None]
    unmerged, protected = (rows_of(row, i)[:, 0, :, 0] for i in (plan.unmerged, plan.protected))
    return torch.cat([unmerged, _counts(plan, row, mask) > 0, protected], 1)


def unmerge(out: Tensor, plan: MergePlan, tokens: int) -> Tensor:
    """Copy results [B, H, M, D] to all tokens [B, H, N, D]: a source receives the row of its destination."""
    return rows_of(out, places(plan, tokens))


def places(plan: MergePlan, tokens: int) -> Tensor:
    """[B, N] position in the merged sequence that each token reads; protected rows take precedence."""
    batch, device = len(plan.targets), plan.targets.device
    first, second = plan.unmerged.shape[-1], plan.destinations.shape[-1]
    place = torch.zeros(batch, tokens, dtype=torch.int64, device=device)
    for index, value in (
        (plan.unmerged, torch.arange(first, device=device)),
        (plan.destinations, first + torch.arange(second, device=device)),
        (plan.sources, first + plan.targets),
        (plan.protected, first + second + torch.arange(plan.protected.shape[-1], device=device)),
    ):
        place.scatter_(1, index.expand(batch, -1), value.expand(batch, -1))
    return place


def _counts(plan: MergePlan, x: Tensor, mask: Tensor | None) -> Tensor:
    """Number of tokens in each mean [B, destinations], in float32 because float16 is exact only up to 2,048."""
    ones = torch.ones(len(x), x.shape[2], device=x.device) if mask is None else mask.float()
    column = ones[:, None, :, None]
    base, added = rows_of(column, plan.destinations)[:, 0, :, 0], rows_of(column, plan.sources)[:, 0, :, 0]
    return base.scatter_add(1, plan.targets, added)


def _wide(x: Tensor) -> torch.dtype:
    """The type for sums over tokens: half precision has too few bits for them."""
    return torch.promote_types(x.dtype, torch.float32)
