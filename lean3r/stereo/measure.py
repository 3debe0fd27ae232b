"""Depth of every view of a scene from its pictures and cameras, around a prior."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lean3r.parallel import by_threads
from lean3r.stereo.network import CELL, Features, StereoNet
from lean3r.stereo.posed import Depths, Posed, grey_of, slopes_of, undistorted
from lean3r.stereo.rays import rays_into
from lean3r.stereo.starts import starts

FIRST, SECOND = 0.55, 0.2  # reach of the passes, in log depth
SOURCES = 4
AT_ONCE = 4  # views


@torch.inference_mode()
def measure(
    net: StereoNet,
    scene: Posed,
    prior: Tensor,
    points: tuple[Tensor, Tensor],
    advanced: Callable[[], None] = lambda: None,
) -> Depths:
    """Measure the depth of all views that have sources.

    prior [S, H, W]: log depth everywhere; points: log depth [S, H, W] of sparse points, and where they are [S, H, W].
    Two starts (see starts.py) are measured with a wide reach; their mean, weighted by the expected precision, is
    measured once more with a smaller one. `advanced` is called after every view.
    """
    device = next(net.parameters()).device
    size = prior.shape[-2:]
    pad = (0, -size[1] % CELL, 0, -size[0] % CELL)
    own, seen = _features(net, scene, pad, device)
    slopes = [slopes_of(scene.optics, view, size, pad) for view in range(len(prior))]
    measured = np.array([len(others) > 0 for others in scene.sources])
    log_depth, log_b = prior.clone(), torch.zeros_like(prior)
    begun = by_threads(lambda v: starts(prior[v], points[0][v], points[1][v], grey_of(scene, v)), range(len(prior)))
    for start in range(0, len(prior), AT_ONCE):
        views = [view for view in range(start, min(start + AT_ONCE, len(prior))) if measured[view]]
        for count in sorted({min(len(scene.sources[view]), SOURCES) for view in views}):
            alike = [view for view in views if min(len(scene.sources[view]), SOURCES) == count]
            job = _Job(net, scene, own, seen, alike, torch.stack([slopes[view] for view in alike]).to(device), pad)
            guesses = [torch.stack([begun[view][number] for view in alike]) for number in range(2)]
            log_depth[alike], log_b[alike] = job.run(guesses, *(part[alike] for part in points))
        for _ in range(start, min(start + AT_ONCE, len(prior))):
            advanced()
    return Depths(log_depth, log_b, measured)


class _Job:
    """Passes over some views with equally many sources."""

    def __init__(
        self,
        net: StereoNet,
        scene: Posed,
        own: Features,
        seen: Features,
        views: Sequence[int],
        slopes: Tensor,
        pad: tuple[int, int, int, int],
    ) -> None:
        self.net, self.pad, self.device, self.seen = net, pad, slopes.device, seen
        self.own = own.of(torch.as_tensor(views, device=slopes.device))
        poses, intrinsics = (torch.from_numpy(np.asarray(x)).double() for x in (scene.cam_from_world, scene.intrinsics))
        self.sources = torch.from_numpy(np.stack([scene.sources[view][:SOURCES] for view in views]))
        self.rays = tuple(
            rays_into(slopes, poses[list(views)], poses[self.sources], intrinsics[self.sources], step)
            for step in (4, 2)
        )

    def run(self, guesses: Sequence[Tensor], points: Tensor, has: Tensor) -> tuple[Tensor, Tensor]:
        """See `measure`; guesses: log depth [B, H, W] each."""
        height, width = points.shape[-2:]
        points, *guesses = (self._padded(x) for x in (points, *guesses))
        has = F.pad(has, self.pad).to(self.device)
        log_depth, log_b = (
            torch.stack(x) for x in zip(*(self._pass(g, points, has, FIRST) for g in guesses), strict=True)
        )
        share = (-2 * log_b).softmax(0)
        log_depth, log_b = self._pass((share * log_depth).sum(0), points, has, SECOND)
        return log_depth[:, :height, :width].cpu(), log_b[:, :height, :width].cpu()

    def _padded(self, values: Tensor) -> Tensor:
        return F.pad(values[:, None], self.pad, mode="replicate")[:, 0].to(self.device)

    def _pass(self, prior: Tensor, points: Tensor, has: Tensor, reach: float) -> tuple[Tensor, Tensor]:
        sparse = torch.stack([torch.where(has, points - prior, 0.0), has.to(prior.dtype)], 1)
        seen = self.seen.of(self.sources.to(self.device))
        reaches = torch.full((len(prior),), reach, device=self.device)
        found = self.net(self.own, seen, self.rays, prior, sparse, reaches)
        return found.log_depth, found.log_b


def _features(
    net: StereoNet, scene: Posed, pad: tuple[int, int, int, int], device: torch.device
) -> tuple[Features, Features]:
    """Of the pictures as they are, for reference views, and without distortion and padding, as sources."""
    own: list[Features] = []
    seen: list[Features] = []
    for view, image in enumerate(scene.images):
        picture = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255
        mask = torch.from_numpy(scene.mask[view])[None, None].float()
        own.append(net.encoder(F.pad(picture, pad, mode="replicate").to(device)))
        source = own[-1]
        if scene.has_lenses:
            picture, mask = undistorted(scene, view, picture, mask)
            source = net.encoder(F.pad(picture, pad, mode="replicate").to(device))
        mask = F.pad(mask, pad).to(device)
        seen.append(Features(*(x * (F.avg_pool2d(mask, s) > 0.99) for x, s in zip(source, (4, 2), strict=True))))
    return tuple(Features(*(torch.cat(parts) for parts in zip(*each, strict=True))) for each in (own, seen))  # type: ignore[return-value]
