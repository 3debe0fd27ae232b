"""Linear attention in plain torch; sums over tokens run in float32, whatever the inputs are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def feature_map(x: Tensor, feature: str) -> Tensor:
    """Non-negative features of x [..., D]."""
    if feature == "elu":
        return F.elu(x) + 1
    return x.relu() if feature == "relu" else x.softmax(-1)


def _wide(x: Tensor) -> Tensor:
    """Half precision has too few bits for sums over tokens."""
    return x if x.dtype == torch.float64 else x.float()


def _key_features(k: Tensor, v: Tensor, feature: str, keep: Tensor | None) -> tuple[Tensor, Tensor]:
    """(phi(k), v) with zeros where keep [B, 1, M, 1] is False; masked first, so that no gradient becomes NaN."""
    if keep is None:
        return feature_map(_wide(k), feature), _wide(v)
    k, v = k.masked_fill(~keep, 0.0), v.masked_fill(~keep, 0.0)
    return feature_map(_wide(k), feature).masked_fill(~keep, 0.0), _wide(v)


def reference(q: Tensor, k: Tensor, v: Tensor, feature: str, eps: float, key_mask: Tensor | None) -> Tensor:
    """q [B, H, N, D], k and v [B, H, M, D], key_mask [B, M] -> [B, H, N, D] in the type of v."""
    with torch.autocast(q.device.type, enabled=False):
        keep = None if key_mask is None else key_mask[:, None, :, None]
        fk, wide_v = _key_features(k, v, feature, keep)
        fq = feature_map(_wide(q), feature)
        share = fq @ fk.sum(-2)[..., None] + eps
        return (fq @ (fk.transpose(-1, -2) @ wide_v) / share).to(v.dtype)


def block_states(k: Tensor, v: Tensor, block: int, feature: str, key_mask: Tensor | None = None) -> Tensor:
    """What each block of keys adds to linear attention: [B, H, M / block, D, D + 1], phi(k)^T [v, 1].

    k and v are [B, H, M, D] with M a multiple of `block`; key_mask [B, M] is False on keys left out.
    """
    with torch.autocast(k.device.type, enabled=False):
        keep = None if key_mask is None else key_mask[:, None, :, None]
        fk, wide_v = _key_features(k, v, feature, keep)
        ones = torch.ones_like(wide_v[..., :1])
        values = torch.cat([wide_v, ones], -1).unflatten(2, (-1, block))
        return fk.unflatten(2, (-1, block)).transpose(-1, -2) @ values


def states_attention(q: Tensor, states: Tensor, chosen: Tensor, feature: str, eps: float) -> Tensor:
    """Linear attention where every block of queries has its own set of key blocks, given as `block_states`.

    q [B, H, n, block, D]; states [B, H, m, D, D + 1]; chosen [B, H, n, m] bool -> [B, H, n, block, D].
    The sums over blocks are one matrix product, for which no kernel of our own would be faster.
    """
    with torch.autocast(q.device.type, enabled=False):
        summed = chosen.to(states.dtype) @ states.flatten(3)
        result = feature_map(_wide(q), feature) @ summed.unflatten(3, states.shape[3:])
        return (result[..., :-1] / (result[..., -1:] + eps)).to(q.dtype)
