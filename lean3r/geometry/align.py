"""Alignment: similarities between point sets and camera sets, scale and shift between depth maps."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lean3r.geometry.pose import camera_centers, make_pose
from lean3r.geometry.rotation import nearest_rotation


class Similarity(NamedTuple):
    """x_dst = scale * rotation @ x_src + translation; scale [...], rotation [..., 3, 3], translation [..., 3]."""

    scale: Tensor
    rotation: Tensor
    translation: Tensor

    def apply(self, points: Tensor) -> Tensor:
        """Points [..., N, 3] moved from the source frame to the destination frame."""
        return self.scale[..., None, None] * (points @ self.rotation.mT) + self.translation[..., None, :]

    def apply_to_poses(self, cam_from_world: Tensor) -> Tensor:
        """Cameras [..., S, 4, 4] of the source world, in the destination world (depths scale by `scale`)."""
        rotation = cam_from_world[..., :3, :3] @ self.rotation[..., None, :, :].mT
        center = self.apply(camera_centers(cam_from_world))
        return make_pose(rotation, -(rotation @ center[..., None]).squeeze(-1))

    def inverse(self) -> Similarity:
        """The similarity that undoes this one."""
        scale, rotation = 1 / self.scale, self.rotation.mT
        return Similarity(scale, rotation, -scale[..., None] * (rotation @ self.translation[..., None]).squeeze(-1))


def umeyama(src: Tensor, dst: Tensor, weights: Tensor | None = None, with_scale: bool = True) -> Similarity:
    """Least-squares similarity from src to dst [..., N, 3], with weights [..., N] >= 0.

    Reflections are excluded. Coincident source points get scale 1; collinear ones leave the roll about
    their line undetermined (some rotation that fits is returned). Source: Umeyama 1991.
    """
    return _fit(src, dst, weights, with_scale, None, 0.0)


def _fit(
    src: Tensor,
    dst: Tensor,
    weights: Tensor | None,
    with_scale: bool,
    rotation_hint: Tensor | None,
    hint_weight: float,
) -> Similarity:
    w = torch.ones_like(src[..., 0]) if weights is None else weights.to(src.dtype)
    w = (w / w.sum(-1, keepdim=True).clamp_min(torch.finfo(src.dtype).tiny))[..., None]
    mean_src, mean_dst = (w * src).sum(-2, keepdim=True), (w * dst).sum(-2, keepdim=True)
    a, b = src - mean_src, dst - mean_dst
    covariance = (w * b).mT @ a
    var_src, var_dst = (w * a * a).sum((-2, -1)), (w * b * b).sum((-2, -1))
    tiny = torch.finfo(src.dtype).tiny
    # Unit-free, so that the smallest and the largest worlds give the same rotation.
    target = covariance / (var_src * var_dst).sqrt().clamp_min(tiny)[..., None, None]
    if rotation_hint is not None:
        target = target + hint_weight * rotation_hint
    rotation = nearest_rotation(target)
    scale = torch.ones_like(var_src)
    if with_scale:
        fitted = (rotation * covariance).sum((-2, -1)) / var_src.clamp_min(tiny)
        scale = torch.where(var_src > tiny, fitted, scale)
    moved = scale[..., None] * (rotation @ mean_src.mT).squeeze(-1)
    return Similarity(scale, rotation, mean_dst.squeeze(-2) - moved)


def umeyama_robust(
    src: Tensor,
    dst: Tensor,
    weights: Tensor | None = None,
    with_scale: bool = True,
    iterations: int = 30,
) -> Similarity:
    """Similarity from src to dst [..., N, 3] that tolerates wrong matches (up to about a third of them).

    Iteratively reweighted: first towards the sum of distances (L1), then Geman-McClure with a width of
    2.5 robust standard deviations, so that gross outliers end with no influence.
    """
    base = torch.ones_like(src[..., 0]) if weights is None else weights.to(src.dtype)
    fit = umeyama(src, dst, base, with_scale)
    size = (dst - dst.mean(-2, keepdim=True)).square().sum(-1).mean(-1, keepdim=True).sqrt()
    floor = torch.finfo(src.dtype).eps * 16 * size + torch.finfo(src.dtype).tiny
    for step in range(iterations):
        residual = torch.linalg.vector_norm(fit.apply(src) - dst, dim=-1)
        if step < iterations // 2:
            influence = 1 / torch.maximum(residual, floor)
        else:
            masked = torch.where(base > 0, residual, torch.full_like(residual, torch.nan))
            width = torch.maximum(2.5 * 1.4826 * masked.nanmedian(-1, keepdim=True).values, floor)
            influence = 1 / (1 + (residual / width) ** 2) ** 2
        fit = umeyama(src, dst, base * influence, with_scale)
    return fit


def align_cameras(
    cam_from_world_pred: Tensor, cam_from_world_gt: Tensor, with_scale: bool = True, rotation_weight: float = 1e-3
) -> tuple[Tensor, Similarity]:
    """Predicted cameras [..., S, 4, 4] aligned to the true world, and the similarity used.

    Fitted to the camera centres. Where these do not determine the rotation (one camera, two, a straight line),
    the camera rotations do, through the small `rotation_weight`. Multiply depths by `scale`.
    """
    hint = (cam_from_world_gt[..., :3, :3].mT @ cam_from_world_pred[..., :3, :3]).mean(-3)
    centers = camera_centers(cam_from_world_pred), camera_centers(cam_from_world_gt)
    fit = _fit(*centers, None, with_scale, hint, rotation_weight)
    return fit.apply_to_poses(cam_from_world_pred), fit


def align_depth(
    pred: Tensor,
    gt: Tensor,
    mask: Tensor | None = None,
    method: Literal["median", "lstsq", "l1"] = "median",
    with_shift: bool = False,
    iterations: int = 30,
) -> tuple[Tensor, Tensor]:
    """Scale and shift, each [...], with gt = scale * pred + shift; the last dimension of [..., N] is pooled.

    Flatten dimensions that share one scale first: depth.flatten(-3) gives one scale per scene. mask [..., N]
    is True where both depths are valid. "median": ratio of the (lower) medians, or with a shift the median and
    the mean absolute deviation from it; "lstsq": least squares; "l1": least absolute deviations, robust.
    NaN without valid depth, or for a constant prediction with a shift.
    """
    mask = torch.ones_like(pred, dtype=torch.bool) if mask is None else mask
    mid_pred, mid_gt = _masked_median(pred, mask), _masked_median(gt, mask)
    if method == "median" and not with_shift:
        return mid_gt / mid_pred, torch.zeros_like(mid_gt)
    if method == "median":
        scale = _masked_mean((gt - mid_gt[..., None]).abs(), mask) / _masked_mean(
            (pred - mid_pred[..., None]).abs(), mask
        )
        return scale, mid_gt - scale * mid_pred
    scale, shift = _weighted_line(pred, gt, mask.to(pred.dtype), with_shift)
    if method == "l1":
        floor = 1e-6 * mid_gt.abs()[..., None] + torch.finfo(pred.dtype).tiny
        for _ in range(iterations):
            residual = (scale[..., None] * pred + shift[..., None] - gt).abs()
            scale, shift = _weighted_line(pred, gt, mask / torch.maximum(residual, floor), with_shift)
    return scale, shift


def _masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, x, torch.zeros_like(x)).sum(-1) / mask.sum(-1)


def _masked_median(x: Tensor, mask: Tensor) -> Tensor:
    if x.shape[-1] == 0:
        return x.new_full(x.shape[:-1], torch.nan)
    return torch.where(mask, x, torch.full_like(x, torch.nan)).nanmedian(-1).values


def _weighted_line(x: Tensor, y: Tensor, weight: Tensor, with_shift: bool) -> tuple[Tensor, Tensor]:
    """Weighted least squares y = scale * x + shift over the last dimension; entries of weight 0 may be NaN."""
    used = weight > 0
    x, y, w = (torch.where(used, v, torch.zeros_like(v)) for v in (x, y, weight))
    if not with_shift:
        scale = (w * x * y).sum(-1) / (w * x * x).sum(-1)
        return scale, torch.zeros_like(scale)
    total = w.sum(-1)
    mean_x, mean_y = (w * x).sum(-1) / total, (w * y).sum(-1) / total
    dx = x - mean_x[..., None]
    scale = (w * dx * (y - mean_y[..., None])).sum(-1) / (w * dx * dx).sum(-1)
    return scale, mean_y - scale * mean_x
