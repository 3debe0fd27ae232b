"""Attention to tokens of other processes (lean3r/group.py) without gathering them all: chosen windows are fetched, and
a few queries travel to where the keys are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lean3r.attention.cut import Cut
from lean3r.attention.pieces import pieces

if TYPE_CHECKING:
    from lean3r.group import Share


@dataclass(frozen=True)
class Fetched:
    """The windows that some heads of this process's windows attend to, each scene and head (Z = B * h) with its own.

    keys and values [Z, 1, U * size, D], U windows at most for each; mask [Z, U * size] is False on places without a
    patch, None if there are none; lists [Z, 1, n, K] name windows among these U, -1 for none; `always` [Z, A] are those
    that everything attends to. `heads` are the heads that they belong to, `places` [A * size] says which places of
    these always hold a patch.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor | None
    lists: Tensor
    always: Tensor
    heads: slice
    places: Tensor

    def dense(self, special: Sequence[Tensor], patches: bool) -> tuple[Tensor, Tensor] | None:
        """Keys and values [Z, 1, E, D] that every query sees: those of special tokens, if there are any, and if asked
        for, of the patches of `always`."""
        found = []
        for number, tokens in enumerate((self.keys, self.values)):
            parts = [special[number]] if special else []
            if patches and self.always.shape[1]:
                size = len(self.places) // self.always.shape[1]
                index = (self.always[:, :, None] * size + torch.arange(size, device=tokens.device)).flatten(1)
                index = index[:, self.places, None].expand(-1, -1, tokens.shape[-1])
                parts.append(tokens[:, 0].gather(1, index)[:, None])
            found.append(torch.cat(parts, 2) if parts else None)
        keys, values = found
        return None if keys is None or values is None else (keys, values)


def fetch(k: Tensor, v: Tensor, cut: Cut, lists: Tensor, always: Sequence[int], share: Share, heads: Tensor) -> Fetched:
    """Ask the processes that have them for the windows in `lists` [B, H, n, K] and in `always`, for some heads.

    k and v [B, H, m * size, D] are the places of this process's windows. A process is asked for each window once a
    scene and head: 4 bytes; it answers with the keys and values of its places, 2 size D numbers, and with a byte for
    each place if there is padding.
    """
    some = slice(int(heads[0]), int(heads[-1]) + 1)
    lists, device, size = lists[:, some].long(), k.device, cut.size
    batch, width = lists.shape[:2]
    total = share.total * cut.windows.count
    # The last row takes what lists name below 0.
    wanted = torch.zeros(total + 1, batch, width, dtype=torch.bool, device=device)
    where = torch.where(lists < 0, total, lists).flatten(2).permute(2, 0, 1)
    wanted.scatter_(0, where, torch.ones((), dtype=torch.bool, device=device).expand_as(where))
    wanted = wanted[:-1]
    if always:
        wanted[list(always)] = True
    starts = [start * cut.windows.count for start in share.starts]
    asked = wanted.nonzero()  # by window, and so by process
    sums = wanted.flatten(1).sum(1).cumsum(0)[[start - 1 for start in starts[1:]]].tolist()
    counts = [b - a for a, b in pairwise([0, *sums])]
    owner = torch.repeat_interleave(torch.tensor(counts, device=device))
    base = torch.tensor(starts, device=device)[owner]
    codes = ((asked[:, 0] - base) * batch + asked[:, 1]) * width + asked[:, 2]
    served, coming = share.group.exchange(codes.to(torch.int32), counts, "requests")
    served = served.long()
    window, scene, head = served // (batch * width), served // width % batch, served % width
    places = [x[:, some].unflatten(2, (-1, size))[scene, head, window] for x in (k, v)]
    answer, _ = share.group.exchange(torch.stack(places, 1), coming, "windows")
    held = None
    if cut.mask is not None and cut.window_mask is not None:  # padding, not only windows that the edge cuts
        held, _ = share.group.exchange(cut.mask.unflatten(1, (-1, size))[scene, window], coming, "masks")
    slots = wanted.long().cumsum(0) - 1  # [total, B, h]
    most = int(wanted.sum(0).max()) if total else 0
    at = asked[:, 1], asked[:, 2], slots[asked[:, 0], asked[:, 1], asked[:, 2]]
    both = answer.new_zeros(2, batch, width, most, size, k.shape[-1])
    both[:, at[0], at[1], at[2]] = answer.movedim(1, 0)
    edge = (cut.windows.members >= 0).to(device)
    mask = None
    if cut.mask is not None:
        mask = torch.zeros(batch, width, most, size, dtype=torch.bool, device=device)
        mask[at] = edge[asked[:, 0] % cut.windows.count] if held is None else held
        mask = mask.flatten(0, 1).flatten(1)
    found = slots.permute(1, 2, 0).gather(2, lists.clamp_min(0).flatten(2)).view_as(lists)
    named = torch.tensor(list(always), dtype=torch.long, device=device)
    both = both.flatten(1, 2).flatten(2, 3)[:, :, None]
    return Fetched(
        both[0],
        both[1],
        mask,
        torch.where(lists < 0, -1, found).flatten(0, 1)[:, None].to(torch.int32),
        slots[named].flatten(1).mT,
        some,
        edge[named % cut.windows.count].flatten(),
    )


def attend_by_all(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, share: Share) -> Tensor:
    """Attention of a few queries of each view to the keys of all processes: q [B, H, E, D] -> [B, H, E, D].

    k and v [B, H, N, D] and key_mask [B, N] are those of this process. Queries go to everyone; what the keys of each
    process say comes back as a sum and its weight, D + 1 numbers a query.
    """
    each = q.shape[2] // share.count
    queries = share.gather(q, 2, each=each, purpose="special")
    part = partial_sums(queries, k, v, key_mask)
    rows = part.movedim(2, 0)
    back, _ = share.group.exchange(rows, [each * count for count in share.counts], "special")
    return merged(back.unflatten(0, (share.group.size, -1)).movedim(1, 3)).to(v.dtype)


def attend_once(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, share: Share) -> Tensor:
    """Attention of queries that all processes have alike, q [B, H, E, D], to the keys of all: [B, H, E, D]."""
    part = partial_sums(q, k, v, key_mask)
    return merged(share.group.gather(part[None], [1] * share.group.size, "special")).to(v.dtype)


def partial_sums(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
    """Softmax attention to some of the keys in float32 [B, H, E, D + 1]: the result, and the logarithm of the sum of
    weights behind it."""
    q, k, v = q.float(), k.float(), v.float()
    if key_mask is not None:
        k, v = (x.masked_fill(~key_mask[:, None, :, None], 0.0) for x in (k, v))
    out = q.new_empty(*q.shape[:3], v.shape[-1] + 1)
    with torch.autocast(q.device.type, enabled=False):
        for part in pieces(q.shape[2], q.shape[0] * q.shape[1] * k.shape[2], q.device):
            scores = (q[:, :, part] * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
            if key_mask is not None:
                scores = scores.masked_fill(~key_mask[:, None, None], torch.finfo(scores.dtype).min)
            weight = scores.logsumexp(-1, keepdim=True)
            out[:, :, part] = torch.cat([(scores - weight).exp() @ v, weight], -1)
    return out


def merged(parts: Tensor) -> Tensor:
    """Attention to all keys [B, H, E, D] from `partial_sums` of shares of them [n, B, H, E, D + 1]."""
    return (parts[..., :-1] * parts[..., -1:].softmax(0)).sum(0)
