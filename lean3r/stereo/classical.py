"""Depth of every view by classical stereo: the first look where no depth is known, and the yardstick of the network.

Views are matched without the prior; where other views then agree, the depth is trusted. Only what remains is filled
with the shape of the prior. A prior in the cost of matching would make views agree with it instead of each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from threading import Lock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lean3r.geometry.consistency import Scene
from lean3r.parallel import by_threads
from lean3r.stereo.joining import join
from lean3r.stereo.posed import Depths, Posed, grey_of, slopes_of, undistorted
from lean3r.stereo.rays import Rays, rays_into
from lean3r.stereo.semi_global import PLANES, Match, match

SOURCES, CHECKED = 4, 6  # others that a view is matched with, and whose depth is compared
USUAL, MOST_PLANES = 62_500, 256  # pixels up to which PLANES are fine enough; bound of memory and time
NEARER, FARTHER = 1.2, 1.5  # margins of the planes around what prior and points span
AGREE = 0.02  # relative difference of depth up to which views agree
AGREEING, WEAK = 2, 0.1  # views that agree for full weight, and the weight where fewer do
LEAST_SCORE = 0.4  # of a plane that is trusted
SPECK, LEAST_SHARE = 15, 0.5  # side of a window, and how much of it must be trusted with its middle
LEAST_TRUST = 0.03  # of a view: less may be chance, and would pull everything
ROUND = 64  # steps in which the span of planes moves, in log depth: what differs by rounding has the same planes
SAMPLE = 1_000_000  # numbers that a quantile is taken from: exact below, a regular sample above
UNKNOWN = 0.2  # expected error of a prior that stereo does not meet, in log depth
AT_ONCE = 16  # rows whose distances are found together: they stay in the caches
DARK = 0.05  # added to the spread of grey, so that flat pictures stay flat


def measure_classically(
    scene: Posed,
    prior: Tensor,
    points: tuple[Tensor, Tensor],
    advanced: Callable[[], None] = lambda: None,
    planes_tried: int | None = None,
) -> Depths:
    """Measure the depth of all views that have sources.

    prior [S, H, W]: log depth everywhere; points: log depth [S, H, W] of sparse points, and where they are [S, H, W];
    they only say how far to look, at so many planes (None: by the size of the pictures). `advanced` is called after
    every view. After Ctrl-C the views that are matched by then are measured.
    """
    greys = by_threads(lambda view: grey_of(scene, view), range(len(prior)))
    plain = by_threads(lambda view: _as_source(scene, view, greys[view]), range(len(prior)))
    found: dict[int, Match] = {}
    one_at_a_time = Lock()

    def work(view: int) -> None:
        if len(scene.sources[view]):
            sparse = points[0][view][points[1][view]]
            found[view] = _matched(scene, view, greys[view], plain, prior[view], sparse, planes_tried)
        with one_at_a_time:
            advanced()

    interrupted = False
    try:
        by_threads(work, range(len(prior)))
    except KeyboardInterrupt:
        interrupted = True
    views = sorted(found)
    maps = np.zeros(prior.shape)
    for view in views:
        maps[view] = np.where(scene.mask[view], 1 / found[view].near.numpy(), 0)
    confirming = set(found)
    if scene.stored.size:
        confirming |= {view for view in range(len(prior)) if scene.stored[view].any()}
        maps = np.where(scene.stored > 0, scene.stored, maps)
    matched = Scene(maps, scene.cam_from_world, scene.optics)
    log_depth, log_b = prior.clone(), torch.zeros_like(prior)
    sure = torch.zeros(prior.shape, dtype=torch.bool)

    def finish(view: int) -> None:
        others = [int(other) for other in scene.sources[view][:CHECKED] if int(other) in confirming]
        log_depth[view], log_b[view], sure[view] = _joined(matched, view, others, found[view], prior[view], greys[view])

    by_threads(finish, views)
    return Depths(log_depth, log_b, np.isin(np.arange(len(prior)), views), interrupted, sure)


@torch.inference_mode()
def _matched(
    scene: Posed, view: int, grey: Tensor, pictures: Sequence[Tensor], prior: Tensor, sparse: Tensor, count: int | None
) -> Match:
    """A view, with its grey [H, W], matched with its sources among the pictures S x [H, W]."""
    others = scene.sources[view][:SOURCES]
    unit = unit_of(scene.cam_from_world, view, others)
    mask = torch.from_numpy(scene.mask[view])
    own = torch.where(mask, _standard(grey, mask), torch.nan)
    near = planes(prior - math.log(unit), sparse - math.log(unit), count)
    found = match(own, grey, torch.stack([pictures[n] for n in others]), _rays(scene, view, others, unit), near)
    return found._replace(near=found.near.double() / unit)  # in float64 no unit of the world rounds otherwise


@torch.inference_mode()
def _joined(
    scene: Scene, view: int, others: list[int], found: Match, prior: Tensor, grey: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Log depth [H, W] of prior [H, W] and stereo together, the log of its expected error, and where other views
    confirm it; `scene`: what was matched."""
    agree = agreeing(scene, view, others)
    sure = without_specks((agree > 0) & (found.score > LEAST_SCORE) & found.vague.isfinite())
    weight = sure * torch.where(agree >= min(AGREEING, len(others)), 1.0, WEAK)
    change = (-found.near.log() - prior).float()
    return prior + join(change, weight, grey), expected_error(found.vague, weight, change).log(), sure


def unit_of(cam_from_world: np.ndarray, view: int, others: np.ndarray) -> float:
    """Mean distance of other cameras: with it as unit of length, no unit of the world rounds otherwise."""
    rotation, moved = cam_from_world[:, :3, :3], cam_from_world[:, :3, 3]
    centres = -np.einsum("sji,sj->si", rotation, moved)
    return float(np.linalg.norm(centres[others] - centres[view], axis=1).mean()) or 1.0


def plane_count(pixels: int) -> int:
    """How many planes a picture is matched at: in larger ones, steps of the same pixels are smaller steps of depth."""
    return min(max(PLANES, round(PLANES * (pixels / USUAL) ** 0.5)), MOST_PLANES)


def planes(prior: Tensor, points: Tensor, count: int | None = None) -> Tensor:
    """Inverse depths [count] in equal steps over what the prior [H, W] and the points [P] of a view span, both in log
    depth and without the outermost 1 %; as many as `plane_count` says, if not told."""
    share = torch.tensor([0.01, 0.99])
    # quantile takes at most 16 million numbers
    some = (x.flatten()[:: 1 + x.numel() // SAMPLE] for x in (prior, points) if x.numel())
    spans = torch.stack([torch.quantile(x, share) for x in some])
    nearest, farthest = float(spans.amin(0)[0]), float(spans.amax(0)[1])
    nearest, farthest = math.floor(nearest * ROUND) / ROUND, math.ceil(farthest * ROUND) / ROUND
    count = count or plane_count(prior.numel())
    return torch.linspace(math.exp(-farthest) / FARTHER, math.exp(-nearest) * NEARER, count)


def agreeing(scene: Scene, view: int, others: list[int]) -> Tensor:
    """How many other views [H, W] have the same depth, to `AGREE`, where the points of this view are."""
    height, width = scene.depth.shape[1:]
    rows, cols = (a.ravel() for a in np.mgrid[:height, :width])
    world = scene.world_points(view, rows, cols)
    count = np.zeros(height * width, np.int64)
    for other in others:
        z, depth = scene.seen(other, world)
        count += np.abs(np.where(z > 0, z, np.nan) / depth - 1) < AGREE
    return torch.from_numpy(count.reshape(height, width))


def without_specks(sure: Tensor) -> Tensor:
    """Only pixels [H, W] with others around them, and only where they are many: the rest may agree by chance."""
    share = F.avg_pool2d(sure[None].float(), SPECK, 1, SPECK // 2, count_include_pad=False)[0]
    sure = sure & (share > LEAST_SHARE)
    return sure & (sure.float().mean() > LEAST_TRUST)


def expected_error(vague: Tensor, weight: Tensor, change: Tensor) -> Tensor:
    """Expected error of log depth [H, W]; vague [H, W]: see `Match`; weight and change [H, W]: see `join`.

    Where stereo has weight, errors are those of the planes and, near the border of such areas, of windows across an
    edge. Elsewhere they begin as the latter, and far away they are those of the prior, which the rest of the view
    shows. The rule and its numbers were fitted by hand to the means of 72 views of 12 synthetic scenes (208x272 pixels,
    priors off by 3, 8 and 18 %, errors cut at 0.5). Real pictures have worse: cameras, gloss, what moves.
    """
    sure = weight > 0
    inside = 0.001 + 0.1 * vague + torch.where(weight < 1, 0.03, 0.016) / distance(~sure)
    away = distance(sure)
    prior = change[sure].abs().clamp(max=0.5).mean() if sure.any() else UNKNOWN
    share = 1 - torch.exp(-away / (0.1 * math.hypot(*sure.shape)))
    outside = (1 - share) * 0.055 * (1 - torch.exp(-away / 1.7)) + share * 1.1 * prior
    return torch.where(sure, inside, outside).clamp(max=0.5)


def distance(there: Tensor, most: float = math.inf) -> Tensor:
    """Distance [H, W] of each pixel to the nearest that is `there` [H, W], in pixels; more than the picture if none.

    Distances beyond `most` may be too large, but are beyond it; the work grows with the farthest that count.
    """
    height, width = there.shape
    none = 2 * (height + width)
    if not there.any():
        return torch.full((height, width), float(none))
    row = torch.arange(height)[:, None]
    above = torch.where(there, row, -none).cummax(0).values
    below = torch.where(there, row, height + none).flip(0).cummin(0).values.flip(0)
    upright = torch.minimum(row - above, below - row).float().square()
    nearest = upright.clone()
    for best, lines in zip(nearest.split(AT_ONCE), upright.split(AT_ONCE), strict=True):
        for aside in range(1, width):
            if aside > most or aside**2 >= best.amax():
                break
            for to, of in ((slice(aside, None), slice(None, -aside)), (slice(None, -aside), slice(aside, None))):
                torch.minimum(best[:, to], lines[:, of] + aside**2, out=best[:, to])
    return nearest.sqrt()


def _standard(grey: Tensor, mask: Tensor) -> Tensor:
    """Without brightness and contrast of the whole picture, which differ between cameras and exposures."""
    inside = grey[mask]
    return (grey - inside.mean()) / (inside.std(correction=0) + DARK)


def _as_source(scene: Posed, view: int, grey: Tensor) -> Tensor:
    """A picture [H, W] without distortion, standardised, NaN where there is none."""
    mask = torch.from_numpy(scene.mask[view])
    picture, there = undistorted(scene, view, _standard(grey, mask)[None, None], mask[None, None].float())
    return torch.where(there[0, 0] > 0.99, picture[0, 0], torch.nan)


def _rays(scene: Posed, view: int, others: np.ndarray, unit: float) -> Rays:
    """Rays of a view into others, in a unit of length."""
    poses = np.array(scene.cam_from_world, dtype=np.float64)
    poses[:, :3, 3] /= unit
    slopes = slopes_of(scene.optics, view, scene.images.shape[1:3])[None]
    own, theirs, intrinsics = (
        torch.from_numpy(x)[None] for x in (poses[view], poses[others], scene.intrinsics[others].astype(np.float64))
    )
    return rays_into(slopes, own, theirs, intrinsics, 1)
