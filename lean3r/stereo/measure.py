"""Depth of every view of a scene from its pictures and cameras, around a prior."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lean3r.stereo.network import CELL, Features, StereoNet
from lean3r.stereo.posed import Depths, Posed, slopes_of, undistorted
from lean3r.stereo.rays import rays_into
from lean3r.stereo.spread import interpolate_points

FIRST, SECOND, LAST = 0.55, 0.2, 0.12  # reach of the passes, in log depth
SOURCES, MORE_SOURCES = 4, 6
AT_ONCE = 4  # views
LEAST_POINTS = 30  # for a start between the points


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
    Two starts, the prior and what lies between the points, are measured twice each, the second time with a smaller
    reach; their means, weighted by the expected precision, are measured once more with more sources. `advanced` is
    called after every view.
    """
    device = next(net.parameters()).device
    size = prior.shape[-2:]
    pad = (0, -size[1] % CELL, 0, -size[0] % CELL)
    own, seen = _features(net, scene, pad, device)
    slopes = [slopes_of(scene.optics, view, size, pad) for view in range(len(prior))]
    measured = np.array([len(others) > 0 for others in scene.sources])
    log_depth, log_b = prior.clone(), torch.zeros_like(prior)
    for start in range(0, len(prior), AT_ONCE):
        views = [view for view in range(start, min(start + AT_ONCE, len(prior))) if measured[view]]
        for count in sorted({min(len(scene.sources[view]), MORE_SOURCES) for view in views}):
            alike = [view for view in views if min(len(scene.sources[view]), MORE_SOURCES) == count]
            job = _Job(net, scene, own, seen, alike, torch.stack([slopes[view] for view in alike]).to(device), pad)
            log_depth[alike], log_b[alike] = job.run(prior[alike], *(part[alike] for part in points))
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
        self.sources = torch.from_numpy(np.stack([scene.sources[view][:MORE_SOURCES] for view in views]))
        self.rays = tuple(
            rays_into(slopes, poses[list(views)], poses[self.sources], intrinsics[self.sources], step)
            for step in (4, 2)
        )

    def run(self, prior: Tensor, points: Tensor, has: Tensor) -> tuple[Tensor, Tensor]:
        """See `measure`."""
        size = prior.shape[-2:]
        prior, points = (F.pad(x[:, None], self.pad, mode="replicate")[:, 0].to(self.device) for x in (prior, points))
        has = F.pad(has, self.pad).to(self.device)
        starts = [prior]
        between = interpolate_points(points, has)
        enough = has.flatten(1).sum(1) >= LEAST_POINTS
        starts.append(torch.where(enough[:, None, None], between, prior))
        found = []
        for start in starts:
            for reach in (FIRST, SECOND):
                start, log_b = self._pass(start, points, has, reach, SOURCES)
            found.append((start, log_b))
        precision = torch.stack([(-2 * log_b).exp() for _, log_b in found])
        mean = (precision * torch.stack([log_depth for log_depth, _ in found])).sum(0) / precision.sum(0)
        log_depth, log_b = self._pass(mean, points, has, LAST, MORE_SOURCES)
        return log_depth[:, : size[0], : size[1]].cpu(), log_b[:, : size[0], : size[1]].cpu()

    def _pass(self, prior: Tensor, points: Tensor, has: Tensor, reach: float, count: int) -> tuple[Tensor, Tensor]:
        sparse = torch.stack([torch.where(has, points - prior, 0.0), has.to(prior.dtype)], 1)
        sources = self.sources[:, :count]
        rays = tuple(type(r)(r.direction[:, :count], r.offset[:, :count]) for r in self.rays)
        found = self.net(
            self.own, self.seen.of(sources.to(self.device)), rays, prior, sparse, torch.full((len(prior),), reach)
        )
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
