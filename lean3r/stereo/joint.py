"""Depth of every view by the network and classical stereo together.

The network judges where matching cannot, such as on plain walls and at edges; matching at full size is exact where
views agree. So the network comes first, and what it finds is the prior of the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from lean3r.stereo.classical import measure_classically
from lean3r.stereo.measure import measure
from lean3r.stereo.network import StereoNet
from lean3r.stereo.posed import Depths, Posed
from lean3r.stereo.weights import load_net


def measure_jointly(
    scene: Posed,
    prior: Tensor,
    points: tuple[Tensor, Tensor],
    advanced: Callable[[], None] = lambda: None,
    net: StereoNet | None = None,
) -> Depths:
    """Measure the depth of all views that have sources, with a network (None: the embedded one, on the CPU).

    prior [S, H, W]: log depth everywhere; points: log depth [S, H, W] of sparse points, and where they are [S, H, W].
    `advanced` is called twice for every view. After Ctrl-C in the second half the views that are matched by then are
    measured by both, the rest by the network.
    """
    first = measure(load_net() if net is None else net, scene, prior, points, advanced)
    both = measure_classically(scene, first.log_depth, points, advanced, prior_log_b=first.log_b)
    return replace(both, measured=first.measured)
