"""Depth of every view of a scene from its pictures and cameras, around a prior."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lean3r.parallel import by_threads
from lean3r.stereo.network import CELL, Features, Measured, StereoNet
from lean3r.stereo.others import joined, surfaces
from lean3r.stereo.posed import Depths, Posed, grey_of, nearest_inside, slopes_of, undistorted
from lean3r.stereo.rays import Rays, grids
from lean3r.stereo.starts import starts
from lean3r.stereo.weights import load_net

FIRST, SECOND = 0.55, 0.2  # reach of the passes, in log depth
LOOKS = 2  # at every view: by itself, and around what others found, too


def measure(
    scene: Posed,
    prior: Tensor,
    points: tuple[Tensor, Tensor],
    advanced: Callable[[], None] = lambda: None,
    net: StereoNet | None = None,
) -> Depths:
    """Measure the depth of all views that have sources, with a network (None: the embedded one, on the CPU).

    prior [S, H, W]: log depth everywhere; points: log depth [S, H, W] of sparse points, and where they are [S, H, W].
    Two starts (see starts.py) are measured with a wide reach; their mean, weighted by the expected precision, is
    measured with a smaller one. Then views look again, around what they and the others found. `advanced` is called
    LOOKS times a view. After Ctrl-C the views so far are measured, if there are any.
    """
    net = load_net() if net is None else net
    device = next(net.parameters()).device
    height, width = prior.shape[-2:]
    pad = (0, -width % CELL, 0, -height % CELL)
    for_all = by_threads if device.type == "cpu" else lambda work, views: [work(view) for view in views]
    own, seen = zip(*for_all(lambda view: _features(net, scene, view, pad), range(len(prior))), strict=True)
    found = Depths(prior.clone(), torch.zeros_like(prior), np.zeros(len(prior), bool))
    one_at_a_time = Lock()

    def look(view: int, into: Depths, guesses: Sequence[Tensor], reaches: Sequence[float]) -> None:
        """Measure a view around guesses [H, W] of its log depth."""
        raster = torch.where(points[1][view], points[0][view], torch.nan)
        maps = [F.pad(x[None, None], pad, mode="replicate")[0].to(device) for x in (*guesses, raster)]
        result = _passes(_with_sources(net, scene, view, own[view], seen, pad), maps[:-1], maps[-1], reaches)
        into.log_depth[view], into.log_b[view] = (x[0, :height, :width].cpu() for x in result)
        into.measured[view] = True

    def first(view: int) -> None:
        if len(scene.sources[view]):
            guesses = starts(prior[view], points[0][view], points[1][view], grey_of(scene, view))
            look(view, found, guesses, (FIRST, SECOND))
        with one_at_a_time:
            advanced()

    def again(view: int) -> None:
        if found.measured[view]:
            look(view, better, [joined(scene, measured, found, view)], (SECOND,))
        with one_at_a_time:
            advanced()

    try:
        for_all(first, range(len(prior)))
    except KeyboardInterrupt:
        if not found.measured.any():
            raise
        return replace(found, interrupted=True)
    measured = surfaces(scene, found)
    better = replace(found, log_depth=found.log_depth.clone(), log_b=found.log_b.clone(), alone=found.log_depth)
    try:
        for_all(again, range(len(prior)))
    except KeyboardInterrupt:
        return replace(better, interrupted=True)
    return better


class View(NamedTuple):
    """Views with their sources, ready for the network."""

    net: StereoNet
    own: Features
    sources: Features
    rays: tuple[Rays, Rays]

    def measure(self, prior: Tensor, points: Tensor, reach: Tensor) -> Measured:
        """What is found around priors [B, H, W]; points [B, H, W]: log depth, NaN where there is none; reach [B]."""
        has = points.isfinite()
        sparse = torch.stack([torch.where(has, points - prior, 0.0), has.to(prior.dtype)], 1)
        return self.net(self.own, self.sources, self.rays, prior, sparse, reach)


def _with_sources(
    net: StereoNet, scene: Posed, view: int, own: Features, seen: Sequence[Features], pad: tuple[int, int, int, int]
) -> View:
    others = scene.sources[view]
    sources = Features(*(torch.stack(parts, 1) for parts in zip(*(seen[n] for n in others), strict=True)))
    slopes = slopes_of(scene.optics, view, scene.images.shape[1:3], pad)[None].to(own.coarse.device)
    poses, intrinsics = (torch.from_numpy(np.asarray(x)).double() for x in (scene.cam_from_world, scene.intrinsics))
    return View(net, own, sources, grids(slopes, poses[view][None], poses[others][None], intrinsics[others][None]))


@torch.inference_mode()
def _passes(view: View, guesses: Sequence[Tensor], points: Tensor, reaches: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Log depth [1, H, W] and the log of its expected error after passes with these reaches, the first around each of
    the guesses [1, H, W]; points [1, H, W]: log depth, NaN where there is none."""
    for reach in reaches:
        found = [view.measure(guess, points, guess.new_full((1,), reach)) for guess in guesses]
        log_depth, log_b = (torch.stack(parts) for parts in zip(*((x.log_depth, x.log_b) for x in found), strict=True))
        guesses = [((-2 * log_b).softmax(0) * log_depth).sum(0)]
    return log_depth[0], log_b[0]


@torch.inference_mode()
def _features(net: StereoNet, scene: Posed, view: int, pad: tuple[int, int, int, int]) -> tuple[Features, Features]:
    """Of a picture as it is, for a reference view, and without distortion and padding, as a source."""
    device = next(net.parameters()).device
    within = nearest_inside(scene.mask[view]) if scene.mask[view].any() else ...
    picture = torch.from_numpy(np.ascontiguousarray(scene.images[view][within])).permute(2, 0, 1)[None].float() / 255
    mask = torch.from_numpy(scene.mask[view])[None, None].float()

    def features(picture: Tensor, mask: Tensor) -> tuple[Features, Tensor]:
        mask = F.pad(mask, pad).to(device)
        return net.encoder(F.pad(picture, pad, mode="replicate").to(device), mask), mask

    own, inside = features(picture, mask)
    source, inside = features(*undistorted(scene, view, picture, mask)) if scene.has_lenses else (own, inside)
    return own, Features(*(x * (F.avg_pool2d(inside, s) > 0.99) for x, s in zip(source, (4, 2), strict=True)))
