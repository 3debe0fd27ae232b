"""Dense softmax attention, the reference for every other mechanism."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lean3r.attention.base import Mechanism, Projected
from lean3r.attention.tokens import without_padding
from lean3r.errors import UsageError
from lean3r.types import TokenLayout

if TYPE_CHECKING:
    from lean3r.group import Share

Form = Literal["auto", "sdpa", "explicit"]


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None, form: Form = "auto") -> Tensor:
    """softmax(q k^T / sqrt(D)) v: q [B, H, N, D], k and v [B, H, M, D] -> [B, H, N, D].

    key_mask [B, M] is False on keys that are left out. Their values, even NaN, have no influence, and without any key
    the result is 0. Form "sdpa" is torch's fused kernel. "explicit" is matmul, softmax, matmul; its backward pass on
    CPUs in bfloat16 is several times faster at a few hundred tokens. "auto" chooses the explicit form on a CPU while
    gradients are recorded.
    """
    mask = None
    if key_mask is not None:
        # Zeros, because a weight of 0 times NaN is NaN.
        k, v = (x.masked_fill(~key_mask[:, None, :, None], 0.0) for x in (k, v))
        mask = key_mask[:, None, None, :]
    if form == "auto":
        recorded = torch.is_grad_enabled() and q.requires_grad
        form = "explicit" if q.device.type == "cpu" and recorded else "sdpa"
    if form == "sdpa":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1) @ v


def by_gathered_keys(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None,
    share: Share,
    attend: Callable[..., Tensor] = softmax_attention,
    **options: object,
) -> Tensor:
    """attend(q, k, v, key_mask) [B, H, N, D] with the keys of all views, where each process has those of its own.

    Heads come in as many turns as there are processes, if there are enough: memory stays that of one share. Each
    process sends 2 (n - 1) ceil(S / n) T C numbers, for n processes, S views of T tokens and C channels.
    """
    each = k.shape[2] // share.count
    if key_mask is not None:
        key_mask = share.gather(key_mask, each=each, purpose="masks")
    turns = []
    for heads in torch.arange(q.shape[1]).chunk(share.group.size):
        some = slice(int(heads[0]), int(heads[-1]) + 1)
        keys, values = share.gather_pair(k[:, some], v[:, some], each, "keys")
        turns.append(attend(q[:, some], keys, values, key_mask, **options))
        del keys, values
    return torch.cat(turns, 1) if len(turns) > 1 else turns[0]


class Dense(Mechanism):
    """Every token attends to every token, by `softmax_attention` in the form `implementation`.

    Time: N².
    Use: up to about 16 views, and as the yardstick.
    """

    COMPLETE: ClassVar = ({"implementation": "auto"}, {"implementation": "sdpa"}, {"implementation": "explicit"})
    reads_input: ClassVar = False

    def __init__(self, implementation: Form = "auto"):
        super().__init__()
        if implementation not in get_args(Form):
            raise UsageError(f"implementation is {implementation!r}; expected one of {', '.join(get_args(Form))}")
        self.implementation: Form = implementation

    def extra_repr(self) -> str:
        """Shown by repr(model)."""
        return f"implementation={self.implementation!r}"

    def why_not_shared(self) -> str | None:
        """See Mechanism: keys of other processes are gathered."""
        return None

    def why_not_traced(self) -> str | None:
        """See Mechanism."""
        return None

    def forward(self, p: Projected, layout: TokenLayout) -> Tensor:
        """softmax(q k^T / sqrt(D)) v over [B, H, N, D]."""
        p = without_padding(p)
        q, k = p.finish(p.q, p.k)
        if layout.share is None:
            return softmax_attention(q, k, p.v, p.key_mask, self.implementation)
        return by_gathered_keys(q, k, p.v, p.key_mask, layout.share, form=self.implementation)
