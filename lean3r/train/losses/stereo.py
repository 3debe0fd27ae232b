"""The objective of the stereo network: depth of synthetic views around damaged priors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lean3r.data.base import SceneBatch
from lean3r.geometry.lens import Optics
from lean3r.geometry.spread import interpolate_points
from lean3r.stereo.dense import BEYOND
from lean3r.stereo.measure import SECOND, View
from lean3r.stereo.network import PLANES, Features, Measured, StereoNet
from lean3r.stereo.others import joined, surfaces
from lean3r.stereo.posed import Depths, Posed
from lean3r.stereo.rays import grids, pinhole_slopes
from lean3r.stereo.starts import starts

SMALLER, NEARER = 2, 0.35  # times that pictures are smaller in half of the steps, and the reach after them
CLAMP = 0.5  # errors of log depth beyond it pull no further


def stereo_loss(
    model: StereoNet,
    batch: SceneBatch,
    progress: float,
    *,
    predict: Callable[[SceneBatch], Tensor] | None = None,
    references: float = 4,
    rows: float = 128,
    cols: float = 160,
) -> tuple[Tensor, Mapping[str, Tensor | float]]:
    """Loss over crops of `rows` x `cols` pixels of some views of every scene, each compared with up to four others.

    Half of the steps compare half as many `references`, whole. Half of them begin with smaller pictures, and half end
    around what other views found, too, as the second look of `lean3r.stereo` does. With `predict` (the depth [B, S, H,
    W] of a network, in any unit), the priors of half of the steps have its errors. The random draws are those of
    torch's generator, which the loop seeds at every step.
    """
    scenes, views, _, height, width = batch.images.shape
    rows, cols = min(int(rows), height), min(int(cols), width)
    if torch.rand(()) < 0.5:
        references, rows, cols = references / 2, height, width
    predicted = predict(batch).log() if predict is not None and torch.rand(()) < 0.5 else None
    images = batch.images.clamp(min=0) ** (0.35 * torch.randn(scenes, views, 1, 1, 1)).exp().to(batch.images.device)
    sizes = (SMALLER, 1) if torch.rand(()) < 0.5 else (1,)
    seen = {times: model.encoder(F.avg_pool2d(images.flatten(0, 1), times)) for times in sizes}
    terms: list[dict[str, Tensor]] = []
    for scene in range(scenes):
        own = torch.randperm(views)[: int(references)]
        count = min(4, views - 1) if torch.rand(()) < 0.6 else int(torch.randint(1, min(4, views - 1) + 1, ()))
        sources = torch.stack([_others(int(view), views, count) for view in own])
        top, left = (
            int(torch.randint(0, (side - crop) // 16 + 1, ())) * 16 for side, crop in ((height, rows), (width, cols))
        )
        window = (slice(top, top + rows), slice(left, left + cols))
        depth = batch.depth[scene, own]
        truth = torch.where(depth > 0, depth, 1).log()
        grey = batch.images[scene, own].mean(1)
        prior, sparse, reach = damage(truth, depth > 0, grey, None if predicted is None else predicted[scene, own])
        points = torch.where(sparse[:, 1] > 0, prior + sparse[:, 0], torch.nan)
        truth, known, prior, points = (x[:, *window] for x in (truth, depth > 0, prior, points))
        slopes = pinhole_slopes(batch.intrinsics[scene, own], height, width)[:, *window]
        poses, intrinsics = batch.cam_from_world[scene], batch.intrinsics[scene]
        others = shaken(poses[sources])
        looks: dict[int, View] = {}
        for times, features in seen.items():
            of_scene = Features(*(x[scene * views : (scene + 1) * views] for x in features))
            near = Features(
                *(
                    x[..., top // cell : (top + rows) // cell, left // cell : (left + cols) // cell]
                    for x, cell in zip(of_scene.of(own), (4 * times, 2 * times), strict=True)
                )
            )
            rays = grids(slopes, poses[own], others, intrinsics[sources], times)
            looks[times] = View(model, near, of_scene.of(sources), rays)
        if SMALLER in looks:
            small = _smaller(prior)
            found = looks[SMALLER].measure(small, _smaller_points(points), reach)
            share = _smaller(known.float())
            means = _smaller(torch.where(known, truth, 0.0)) / share.clamp(min=1e-6)
            terms.append(_terms(found, means, share > 0.9, small, reach))
            prior, reach = _larger(found.log_depth.detach()), torch.full_like(reach, NEARER)
        found = looks[1].measure(prior, points, reach)
        terms.append(_terms(found, truth, known, prior, reach))
        prior, reach = found.log_depth.detach(), torch.full_like(reach, SECOND)
        if torch.rand(()) < 0.5:  # as in the second look
            prior = joined_windows(found, own, sources, poses, intrinsics, window, (views, height, width))
        found = looks[1].measure(prior, points, reach)
        terms.append(_terms(found, truth, known, prior, reach))
    mean = {name: torch.stack([each[name] for each in terms]).mean() for name in terms[0]}
    loss = 0.3 * mean["planes"] + 2 * mean["coarse"] + 10 * mean["full"] + 0.3 * mean["likelihood"]
    return loss, {name: value.detach() for name, value in mean.items()}


@torch.no_grad()
def joined_windows(
    found: Measured,
    own: Tensor,
    sources: Tensor,
    poses: Tensor,
    intrinsics: Tensor,
    window: tuple[slice, slice],
    shape: tuple[int, int, int],
) -> Tensor:
    """Log depth in the windows [B, h, w] of the views `own` [B], each joined with what was found in its `sources`
    [B, N], where they are among those views. All views have poses [S, 4, 4], intrinsics [S, 3, 3] and `shape` S, H, W.
    """
    log_depth, log_b, has = torch.zeros(shape), torch.zeros(shape), np.zeros(shape, bool)
    log_depth[own, *window], log_b[own, *window], has[own, *window] = found.log_depth.cpu(), found.log_b.cpu(), True
    compared: list[np.ndarray] = [np.zeros(0, int)] * shape[0]
    for view, others in zip(own.tolist(), sources, strict=True):
        compared[view] = others[torch.isin(others, own)].numpy()
    cameras, pinholes = shaken(poses).double().cpu().numpy(), intrinsics.cpu().numpy()
    scene = Posed(np.zeros(0), has, cameras, pinholes, Optics((), pinholes), compared)
    depths = Depths(log_depth, log_b, np.isin(np.arange(shape[0]), own))
    surface = surfaces(scene, depths)
    return torch.stack([joined(scene, surface, depths, view)[window] for view in own.tolist()]).to(found.log_depth)


def _smaller(log_depth: Tensor) -> Tensor:
    """Means [B, H / SMALLER, W / SMALLER] of log depth [B, H, W]."""
    return F.avg_pool2d(log_depth[:, None], SMALLER)[:, 0]


def _smaller_points(points: Tensor) -> Tensor:
    """`_smaller` of log depth with NaN where there is none: of what there is."""
    share = _smaller(points.isfinite().to(points.dtype))
    return torch.where(share > 0, _smaller(points.nan_to_num(0.0)) / share.clamp(min=1e-6), torch.nan)


def _larger(log_depth: Tensor) -> Tensor:
    """Log depth [B, H, W] at SMALLER times its size."""
    return F.interpolate(log_depth[:, None], scale_factor=float(SMALLER), mode="bilinear", align_corners=False)[:, 0]


def _others(view: int, views: int, count: int) -> Tensor:
    order = torch.randperm(views - 1)[:count]
    return order + (order >= view).long()


def _terms(found: Measured, truth: Tensor, known: Tensor, prior: Tensor, reach: Tensor) -> dict[str, Tensor]:
    share = known.float()
    error = (found.log_depth - truth).abs()
    full = (error.clamp(max=CLAMP) * share).sum() / share.sum().clamp(min=1)
    spread = error.detach().clamp(max=CLAMP) / found.log_b.exp()
    likelihood = ((spread + found.log_b) * share).sum() / share.sum().clamp(min=1)
    whole = F.avg_pool2d(share[:, None], 4)[:, 0]
    there = whole > 0.9
    small = F.avg_pool2d((truth * share)[:, None], 4)[:, 0] / whole.clamp(min=1e-6)
    count = there.sum().clamp(min=1)
    coarse = ((found.coarse - small).abs().clamp(max=CLAMP) * there).sum() / count
    place = (small - F.avg_pool2d(prior[:, None], 4)[:, 0]) / reach[:, None, None]
    place = (place.clamp(-1, 1) + 1) / 2 * (PLANES - 1)
    low = place.floor().clamp(max=PLANES - 2).long()
    high_share = place - low
    logs = found.planes.log_softmax(1)
    pick = [logs.gather(1, each[:, None])[:, 0] for each in (low, low + 1)]
    planes = -((pick[0] * (1 - high_share) + pick[1] * high_share) * there).sum() / count
    before = ((prior - truth).abs().clamp(max=CLAMP) * share).sum() / share.sum().clamp(min=1)
    return {"full": full, "coarse": coarse, "planes": planes, "likelihood": likelihood, "prior": before}


def damage(
    truth: Tensor, known: Tensor, grey: Tensor, predicted: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Priors [B, H, W], sparse points relative to them [B, 2, H, W] and reaches [B], from true log depth [B, H, W] of
    pictures `grey` [B, H, W] in 0..1.

    A prior is a blurred, shifted and bent truth, what lies between sparse points, or has the errors of the `predicted`
    log depth [B, H, W], mostly drawn to the points. Its errors grow with the reach, so that most of them are within
    it, but not all.
    """
    b, height, width = truth.shape
    device = truth.device
    reach = torch.empty(b).uniform_(math.log(0.1), math.log(0.8)).exp()
    far = torch.where(known, truth, -torch.inf).flatten(1).amax(1).nan_to_num(0, 0, 0).clamp(-20, 20)
    filled = torch.where(known, truth, far[:, None, None] + BEYOND)
    priors, sparse_values, sparse_has = [], [], []
    for view in range(b):
        amount = float(reach[view])
        picture, true, there = grey[view].cpu(), filled[view].cpu(), known[view].cpu()
        row, col = _corners(picture, int(torch.empty(()).uniform_(math.log(30), math.log(900)).exp()))
        noise = torch.randn(len(row)) * 0.01 + (torch.rand(len(row)) < 0.04) * torch.randn(len(row)) * 0.3
        value, has = torch.zeros(height, width), torch.zeros(height, width, dtype=torch.bool)
        value[row, col] = true[row, col] + noise
        has[row, col] = there[row, col]
        if torch.rand(()) < 0.35 and bool(has.any()):
            prior = interpolate_points(value[None], has[None])[0]
        elif predicted is not None and bool(there.any()):
            reach[view] = amount = max(amount, 0.3)
            wrong = predicted[view].cpu() - true
            wrong = (wrong - wrong[there].median()) * torch.empty(()).uniform_(0.5, 1.6)
            prior = true + wrong
            if torch.rand(()) < 0.7:
                prior = starts(prior, value, has, picture)[0]
        else:
            prior = _bent(true, amount)
        priors.append(prior)
        sparse_values.append(torch.where(has, value - prior, 0.0))
        sparse_has.append(has.float() * float(torch.rand(()) < 0.8))
    prior = torch.stack(priors).to(device)
    has = torch.stack(sparse_has).to(device)
    sparse = torch.stack([torch.stack(sparse_values).to(device) * has, has], 1)
    return prior, sparse, reach.to(device)


def _corners(picture: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Rows and columns [count] of a picture [H, W]: anywhere, or mostly where it has texture, as features are."""
    height, width = picture.shape
    if torch.rand(()) < 0.5:
        return torch.randint(height, (count,)), torch.randint(width, (count,))
    texture = torch.zeros_like(picture)
    texture[:-1] += picture.diff(dim=0).abs()
    texture[:, :-1] += picture.diff(dim=1).abs()
    texture = F.avg_pool2d(texture[None, None], 5, 1, 2)[0, 0] ** 2 + 1e-6
    index = torch.multinomial(texture.flatten(), count, replacement=True)
    return index // width, index % width


def _bent(truth: Tensor, amount: float) -> Tensor:
    """A log depth [H, W] as a network with errors of about a third of `amount` predicts it."""
    height, width = truth.shape
    sigma = float(torch.empty(()).uniform_(0.5, 4 + 40 * amount))
    small = max(1, round(sigma))
    size = (max(2, height // small), max(2, width // small))
    blurred = F.interpolate(
        F.interpolate(truth[None, None], size, mode="area"), (height, width), mode="bilinear", align_corners=False
    )[0, 0]
    strength = amount * float(torch.rand(()))
    bend = torch.zeros_like(truth)
    for cells in (2, 4, 8, 16):
        noise = torch.randn(1, 1, cells, cells) * strength * (0.35 * float(torch.rand(())))
        bend += F.interpolate(noise, (height, width), mode="bicubic", align_corners=False)[0, 0]
    return blurred + bend + 0.2 * strength * float(torch.randn(()))


def shaken(poses: Tensor) -> Tensor:
    """Poses [..., 4, 4] turned by about half a pixel, as bundle adjustment leaves them."""
    angle = 0.0008 * torch.rand(()) * torch.randn(*poses.shape[:-2], 3)
    x, y, z = angle.to(poses.device, poses.dtype).unbind(-1)
    zero = torch.zeros_like(x)
    turn = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    moved = poses.clone()
    moved[..., :3, :] += turn @ poses[..., :3, :]
    return moved
