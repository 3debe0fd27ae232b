"""Depth errors after alignment: the video-depth benchmarks, Lite3R, and our own AbsRel.

Depth is z-depth, any shape; all values of one call share one alignment.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lean3r.errors import InputError, MissingExtraError
from lean3r.eval import DEPTH_ALIGNMENTS
from lean3r.geometry.align import align_depth


class DepthSetting(NamedTuple):
    """True depths of at least `max_depth` are ignored; aligned predictions are clipped to `clip` (None: neither)."""

    max_depth: float | None
    clip: float | None


VIDEO_DEPTH_SETTINGS = {
    "sintel": DepthSetting(70.0, 70.0),
    "bonn": DepthSetting(70.0, None),
    "kitti": DepthSetting(None, None),
}


class DepthScore(NamedTuple):
    """Errors over `valid_pixels`, in the order of published tables; log is natural, delta strict.

    delta_lt_1 is always 0; it is here because the reference prints it.
    """

    abs_rel: float
    sq_rel: float
    rmse: float
    log_rmse: float
    delta_lt_1: float
    delta1: float
    delta2: float
    delta3: float
    valid_pixels: float


def align_none(pred: Tensor, gt: Tensor) -> tuple[float, float]:
    """Metric depth: scale 1, shift 0."""
    return 1.0, 0.0


def align_median(pred: Tensor, gt: Tensor) -> tuple[float, float]:
    """Ratio of medians, the lower of two for even counts."""
    return (gt.median() / pred.median()).item(), 0.0


def align_scale_l1(pred: Tensor, gt: Tensor) -> tuple[float, float]:
    """Ten rounds of least squares weighted by 1 / residual, from the ratio of means; nearly the L1 optimum.

    Computed in the dtype of the input on purpose: with a floor of 1e-8, the weights and thus the published tables
    depend on rounding.
    """
    scale = gt.mean() / pred.mean()
    for _ in range(10):
        weight = 1 / ((scale * pred - gt).abs() + 1e-8)
        scale = (weight * pred * gt).sum() / (weight * pred * pred).sum()
    return max(scale.item(), 1e-3) if not scale.isnan() else math.nan, 0.0


def align_scale_lstsq(pred: Tensor, gt: Tensor) -> tuple[float, float]:
    """Least-squares scale."""
    scale, _ = align_depth(pred.double(), gt.double(), method="lstsq")
    return scale.item(), 0.0


def align_lstsq(pred: Tensor, gt: Tensor) -> tuple[float, float]:
    """Least-squares scale and shift; the minimum-norm solution if all predictions are equal."""
    if not (pred.isfinite().all() and gt.isfinite().all()):
        return math.nan, math.nan
    columns = np.stack([pred.double().numpy(), np.ones(pred.numel())], -1)
    scale, shift = np.linalg.lstsq(columns, gt.double().numpy(), rcond=None)[0]
    return float(scale), float(shift)


def align_lad2(pred: Tensor, gt: Tensor, learning_rate: float = 1e-4, max_steps: int = 1000) -> tuple[float, float]:
    """The published "scale & shift": Adam on the sum of absolute errors, from the ratio of medians.

    It stops when the loss changes by less than 1e-6, usually before convergence, so the result depends on the unit:
    use it only to compare with tables. In the reference, `learning_rate` is 1e-3 for NYU.
    """
    start, _ = align_median(pred, gt)
    scale = torch.tensor([start], dtype=pred.dtype, requires_grad=True)
    shift = torch.zeros(1, dtype=pred.dtype, requires_grad=True)
    optimizer = torch.optim.Adam([scale, shift], lr=learning_rate)
    before = math.inf
    for _ in range(max_steps):
        optimizer.zero_grad()
        loss = (scale * pred + shift - gt).abs().sum()
        loss.backward()
        optimizer.step()
        if abs(before - loss.item()) < 1e-6:
            break
        before = loss.item()
    return scale.item(), shift.item()


def align_lad_bfgs(pred: Tensor, gt: Tensor) -> tuple[float, float]:
    """Least absolute deviations by scipy's BFGS, from the ratio of medians. Raises MissingExtraError without scipy."""
    try:
        from scipy.optimize import minimize
    except ImportError as error:
        raise MissingExtraError.of("the alignment scale_shift_lad_bfgs", "eval") from error
    p, g = pred.numpy(), gt.numpy()
    start, _ = align_median(pred, gt)
    with np.errstate(invalid="ignore"):
        scale, shift = minimize(lambda x: np.abs(x[0] * p + x[1] - g).sum(), [start, 0.0]).x
    return float(scale), float(shift)


def depth_score(pred: Tensor, gt: Tensor) -> DepthScore:
    """Errors of aligned predictions against true depths > 0, both [N]; all zero if N is 0."""
    if gt.numel() == 0:
        return DepthScore._make([0.0] * 9)
    difference = (pred - gt).abs()
    floored = pred.clamp_min(1e-5)
    ratio = torch.maximum(floored / gt, gt / floored)
    deltas = [(ratio < 1.25**k).double().mean().item() for k in range(4)]
    return DepthScore._make(
        [
            (difference / gt).mean().item(),
            (difference**2 / gt).mean().item(),
            (difference**2).mean().sqrt().item(),
            ((floored.log() - gt.log()) ** 2).mean().sqrt().item(),
            *deltas,
            float(gt.numel()),
        ]
    )


def video_depth_score(
    pred: Tensor, gt: Tensor, setting: str = "kitti", alignment: str = "scale", custom_mask: Tensor | None = None
) -> DepthScore:
    """Errors of one sequence (Pi3, CUT3R, MonST3R): all frames share one alignment, a name in DEPTH_ALIGNMENTS.

    Valid pixels have 0 < gt < max_depth of `setting`, a name in VIDEO_DEPTH_SETTINGS. Predictions are not masked: one
    NaN makes the sequence NaN. `custom_mask` (bool, shape of gt) selects pixels after the alignment. Raises InputError
    for an unknown setting.
    """
    if setting not in VIDEO_DEPTH_SETTINGS:
        raise InputError(f"unknown depth setting '{setting}': expected one of {', '.join(VIDEO_DEPTH_SETTINGS)}")
    max_depth, clip = VIDEO_DEPTH_SETTINGS[setting]
    align = DEPTH_ALIGNMENTS.get(alignment)
    valid = gt > 0 if max_depth is None else (gt > 0) & (gt < max_depth)
    p, g = pred[valid].cpu(), gt[valid].cpu()
    if g.numel() == 0:
        return depth_score(p, g)
    if alignment != "metric":
        scale, shift = align(p, g)
        p = scale * p + shift
    if clip is not None:
        p = p.clamp(max=clip)
    if custom_mask is not None:
        p, g = p[custom_mask[valid].cpu()], g[custom_mask[valid].cpu()]
    return depth_score(p, g)


def pool_depth_scores(scores: list[DepthScore]) -> DepthScore:
    """Average over sequences, weighted by valid pixels; `valid_pixels` is their sum."""
    table = np.array(scores, dtype=np.float64)
    weight = table[:, -1]
    if weight.sum() == 0:
        return depth_score(torch.empty(0), torch.empty(0))
    means = (table[:, :-1] * weight[:, None]).sum(0) / weight.sum()
    return DepthScore._make([*means.tolist(), float(weight.sum())])


def resize_depth_bicubic(depth: Tensor, height: int, width: int) -> Tensor:
    """Resize depth [..., H, W] as the video benchmarks do: bicubic (a = -0.75), without antialiasing."""
    flat = depth.reshape(-1, 1, *depth.shape[-2:])
    resized = torch.nn.functional.interpolate(flat, (height, width), mode="bicubic", align_corners=False)
    return resized.reshape(*depth.shape[:-2], height, width)


def lite3r_depth_score(pred: Tensor, gt: Tensor, mask: Tensor, with_scale: bool = True) -> dict[str, float]:
    """Lite3R's depth errors. Both depths are first raised to at least 1e-3, so `mask` must exclude invalid pixels.

    Fewer than 100 pixels under `mask` give NaN. One least-squares scale is fitted to all values.
    """
    p, g = (x.double().clamp_min(1e-3) for x in (pred, gt))
    used = mask & (g > 0)
    p, g = p[used], g[used]
    if g.numel() < 100:
        return dict.fromkeys(("abs_rel", "delta1", "delta2", "delta3", "rmse"), math.nan)
    if with_scale:
        p = (g * p).sum() / (p * p).sum() * p
    ratio = torch.maximum(p / g, g / p)
    deltas = {f"delta{k}": (ratio < 1.25**k).double().mean().item() for k in (1, 2, 3)}
    rmse = ((p - g) ** 2).mean().sqrt().item()
    return {"abs_rel": ((p - g).abs() / g).mean().item(), **deltas, "rmse": rmse}


def abs_rel(
    pred: Tensor,
    gt: Tensor,
    valid: Tensor | None = None,
    alignment: Literal["none", "median", "lstsq", "l1"] = "median",
) -> float:
    """Mean of |pred - gt| / gt over `valid` and gt > 0, after one scale for all values (one scene).

    NaN if no pixel is valid or a prediction under `valid` is not finite.
    """
    used = gt > 0 if valid is None else valid & (gt > 0)
    p, g = pred[used].double(), gt[used].double()
    if not p.isfinite().all():
        return math.nan
    if alignment != "none":
        scale, _ = align_depth(p, g, method=alignment)
        p = scale * p
    return ((p - g).abs() / g).mean().item()
