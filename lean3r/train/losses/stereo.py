"""The objective of the stereo network: depth of synthetic views around damaged priors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from lean3r.data.base import SceneBatch
from lean3r.geometry.spread import interpolate_points
from lean3r.stereo.dense import BEYOND
from lean3r.stereo.measure import SECOND
from lean3r.stereo.network import PLANES, Features, Measured, StereoNet
from lean3r.stereo.rays import pinhole_slopes, rays_into
from lean3r.stereo.starts import starts

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

    Half of the steps compare half as many `references`, whole. With `predict` (the depth [B, S, H, W] of a network,
    in any unit), the priors of half of the steps have its errors. The random draws are those of torch's generator,
    which the loop seeds at every step.
    """
    scenes, views, _, height, width = batch.images.shape
    rows, cols = min(int(rows), height), min(int(cols), width)
    if torch.rand(()) < 0.5:
        references, rows, cols = references / 2, height, width
    predicted = predict(batch).log() if predict is not None and torch.rand(()) < 0.5 else None
    images = batch.images.clamp(min=0) ** (0.35 * torch.randn(scenes, views, 1, 1, 1)).exp().to(batch.images.device)
    seen = model.encoder(images.flatten(0, 1))
    terms: list[dict[str, Tensor]] = []
    for scene in range(scenes):
        features = Features(*(x[scene * views : (scene + 1) * views] for x in seen))
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
        slopes = pinhole_slopes(batch.intrinsics[scene, own], height, width)
        poses = batch.cam_from_world[scene]
        others = shaken(poses[sources])
        cut = slopes[:, window[0], window[1]]
        rays = tuple(rays_into(cut, poses[own], others, batch.intrinsics[scene, sources], step) for step in (4, 2))
        near = Features(*(x[..., top // s : (top + rows) // s, left // s : (left + cols) // s]
                          for x, s in zip(features.of(own), (4, 2), strict=True)))  # fmt: skip
        known, prior, sparse = (depth > 0)[:, *window], prior[:, *window], sparse[:, :, *window]
        for _ in range(2):  # the second pass is of what the first found, as in use
            found = model(near, features.of(sources), rays, prior, sparse, reach)  # type: ignore[arg-type]
            terms.append(_terms(found, truth[:, *window], known, prior, reach))
            before, prior = prior, found.log_depth.detach()
            sparse = torch.stack([(sparse[:, 0] + before - prior) * sparse[:, 1], sparse[:, 1]], 1)
            reach = torch.full_like(reach, SECOND)
    mean = {name: torch.stack([each[name] for each in terms]).mean() for name in terms[0]}
    loss = 0.3 * mean["planes"] + 2 * mean["coarse"] + 10 * mean["full"] + 0.3 * mean["likelihood"]
    return loss, {name: value.detach() for name, value in mean.items()}


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
