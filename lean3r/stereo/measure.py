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

from lean3r.parallel import Result, by_threads
from lean3r.stereo.network import CELL, Features, Measured, StereoNet
from lean3r.stereo.others import agree, joined, surfaces
from lean3r.stereo.planes import drawn, planes_of
from lean3r.stereo.posed import Depths, Posed, grey_of, nearest_inside, slopes_of, undistorted
from lean3r.stereo.rays import Rays, grids
from lean3r.stereo.sizes import Size, first_size, larger, smaller, smaller_depth, smaller_points
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
    measured with a smaller one. Then views look again, around what they and the others found; the first look is at
    large pictures in a smaller size (see sizes.py). What stays unsure is drawn to large planes (see planes.py), and the
    mean of all that see a place is its depth. `advanced` is called LOOKS times a view. After Ctrl-C the views so far
    are measured, if there are any.
    """
    net = load_net() if net is None else net
    size = (prior.shape[1], prior.shape[2])
    small = first_size(*size)
    first = _Looks(net, smaller(scene, small), smaller_points(points, small))
    begin = smaller_depth(prior, small)
    found = Depths(begin.clone(), torch.zeros_like(begin), np.zeros(len(prior), bool))
    one_at_a_time = Lock()

    def advance() -> None:
        with one_at_a_time:
            advanced()

    def look(view: int) -> None:
        if len(scene.sources[view]):
            guesses = starts(begin[view], first.points[0][view], first.points[1][view], grey_of(first.scene, view))
            first.look(found, view, guesses, (FIRST, SECOND))
        advance()

    def again(view: int) -> None:
        if found.measured[view]:
            guess = joined(first.scene, measured, found, view)
            guess = larger(drawn(first.scene, planes, guess, found.log_b[view], view), size)
            second.look(better, view, [guess], (SECOND,))
            better.log_depth[view] = drawn(scene, planes, better.log_depth[view], better.log_b[view], view)
        advance()

    try:
        first.for_all(look)
    except KeyboardInterrupt:
        if not found.measured.any():
            raise
        return replace(_larger(found, size), interrupted=True)
    measured, better = surfaces(first.scene, found), _larger(found, size)
    planes = planes_of(first.scene, measured, found)
    better = replace(better, alone=better.log_depth.clone())
    try:
        second = first if small == size else _Looks(net, scene, points)
        second.for_all(again)
        agree(scene, better)
    except KeyboardInterrupt:
        return replace(better, interrupted=True)
    return better


def _larger(found: Depths, size: Size) -> Depths:
    """What was found in smaller pictures; a copy."""
    log_depth = torch.stack([larger(each, size) for each in found.log_depth])
    log_b = F.interpolate(found.log_b[None], size, mode="bilinear", align_corners=False)[0]
    return replace(found, log_depth=log_depth, log_b=log_b)


class _Looks:
    """A scene in one size, as the network sees it."""

    def __init__(self, net: StereoNet, scene: Posed, points: tuple[Tensor, Tensor]) -> None:
        self.net, self.scene, self.points = net, scene, points
        height, width = self.size = scene.mask.shape[1:]
        self.pad = (0, -width % CELL, 0, -height % CELL)
        self.device = next(net.parameters()).device
        features = self.for_all(lambda view: _features(net, scene, view, self.pad))
        self.own, self.seen = zip(*features, strict=True)

    def for_all(self, work: Callable[[int], Result]) -> list[Result]:
        """What work gives for every view."""
        views = range(len(self.scene.mask))
        return by_threads(work, views) if self.device.type == "cpu" else [work(view) for view in views]

    def look(self, into: Depths, view: int, guesses: Sequence[Tensor], reaches: Sequence[float]) -> None:
        """Measure a view around guesses [H, W] of its log depth."""
        raster = torch.where(self.points[1][view], self.points[0][view], torch.nan)
        maps = [F.pad(x[None, None], self.pad, mode="replicate")[0].to(self.device) for x in (*guesses, raster)]
        seen = _with_sources(self.net, self.scene, view, self.own[view], self.seen, self.pad)
        height, width = self.size
        result = _passes(seen, maps[:-1], maps[-1], reaches)
        into.log_depth[view], into.log_b[view] = (x[0, :height, :width].cpu() for x in result)
        into.measured[view] = True


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
