"""What layers choose by rank is chosen in float32, under autocast too: in bfloat16, alike views would be equal."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lean3r.layers.kv_cache import CacheSizes, FrameCache
from lean3r.layers.matching import choose_partners
from lean3r.layers.reference import choose_reference
from lean3r.layers.time_rope import TimeRope
from lean3r.types import TokenLayout


def alike(*shape: int, seed: int = 1) -> Tensor:
    """Vectors that differ little from one another."""
    mean, noise = (torch.randn(s, generator=torch.Generator().manual_seed(seed)) for s in (shape[-1:], shape))
    return mean + 0.1 * noise


def test_partners_under_autocast() -> None:
    descriptor = F.normalize(alike(1, 60, 40, 64), dim=-1)
    exact = choose_partners(descriptor, None, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(choose_partners(descriptor, None, 32), exact)


def test_the_reference_view_under_autocast() -> None:
    scenes = alike(64, 40, 32)
    for strategy in ("saddle_balanced", "saddle_sim_range"):
        exact = choose_reference(scenes, strategy)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(choose_reference(scenes, strategy), exact)


def test_pages_of_a_cache_under_autocast() -> None:
    cache = FrameCache(CacheSizes(1, 2, 32, 1, 6, 1, 40, 41), top_pages=4, recent=1)
    rope, layout = TimeRope(range(1)), TokenLayout(1, 1, 2, 3)
    for frame in range(40):
        cache.begin(1, keep=True)
        k = alike(1, 2, 7, 32, seed=frame % 3) + 0.02 * torch.randn(32, generator=torch.Generator().manual_seed(frame))
        cache.sight(0, rope).attend(k, k, k, layout, None)
        cache.end()
    cache.begin(1, keep=False)
    buffer, others = cache.buffers[0], torch.tensor(cache._candidates()[1])
    assert buffer is not None and len(others) == 38
    for seed in range(20):
        q = alike(1, 2, 7, 32, seed=seed)
        exact = cache._best(buffer, q, others)
        with torch.autocast("cpu", torch.bfloat16):
            found = cache._best(buffer, q, others)
        assert len(exact) == 4 and torch.equal(found, exact)
