"""A prior and what is measured at some of its pixels, joined by their weights."""

from __future__ import annotations

from torch import Tensor

from lean3r.geometry.spread import spread
from lean3r.stereo.semi_global import EDGE

STEPS = 60  # of conjugate gradients
LEAST_LINK = 0.01  # weight of the prior's shape across the strongest edge


def join(change: Tensor, weight: Tensor, grey: Tensor, anchor: Tensor | float = 0.0) -> Tensor:
    """What to add to a prior [H, W] where measurements differ from it by `change` with some weight, in log depth.

    The minimum u of weight (u - change)^2 + anchor u^2 + link |grad u|^2, where links are weak across edges of the
    picture `grey` [H, W] in 0..1: what has no weight keeps the prior's shape, joined to the rest; `anchor` [H, W] or a
    number draws it to the prior itself.
    """
    full = weight + anchor
    right, down = ((-grey.diff(dim=dim).abs() / EDGE).exp().clamp(min=LEAST_LINK) for dim in (1, 0))

    def system(u: Tensor) -> Tensor:
        result = full * u
        for dim, link in ((1, right), (0, down)):
            flow = link * u.diff(dim=dim)
            result.narrow(dim, 1, flow.shape[dim]).add_(flow)
            result.narrow(dim, 0, flow.shape[dim]).sub_(flow)
        return result

    diagonal = full + 1e-6
    for dim, link in ((1, right), (0, down)):
        for start in (0, 1):
            diagonal.narrow(dim, start, link.shape[dim]).add_(link)
    u = spread(change[None], weight[None])[0]
    rest = weight * change - system(u)
    along = z = rest / diagonal
    power = (rest * z).sum()
    for _ in range(STEPS):
        pushed = system(along)
        step = power / (along * pushed).sum().clamp(min=1e-30)
        u = u + step * along
        rest = rest - step * pushed
        z = rest / diagonal
        before, power = power, (rest * z).sum()
        along = z + power / before.clamp(min=1e-30) * along
    return u
