"""loss_*: the task loss, its terms and all gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from lean3r.geometry.pose_encoding import encode_camera
from lean3r.train.losses.lite3r import (
    TaskWeights,
    depth_scale,
    finite_or_zero,
    task_loss,
    threshold,
    translation_scale,
    without_largest,
)
from lite3r_cases import Golden, compare

LIMIT = 2e-5
TERMS = {
    "loss_camera": "camera",
    "loss_T": "translation",
    "loss_R": "rotation",
    "loss_FL": "field",
    "loss_conf_depth": "confident",
    "loss_reg_depth": "residual",
    "loss_grad_depth": "gradient",
    "objective": "total",
}


def weights_of(settings: dict) -> TaskWeights:
    """The weights that a case names."""
    camera, depth = settings["camera"], settings["depth"]
    assert camera["loss_type"] == "l1" and camera["pose_encoding_type"] == "absT_quaR_FoV"
    return TaskWeights(
        camera=camera["weight"],
        depth=depth["weight"],
        translation=camera["weight_trans"],
        rotation=camera["weight_rot"],
        field=camera["weight_focal"],
        decay=camera["gamma"],
        confidence=depth["gamma"],
        reward=depth["alpha"],
        quantile=max(0.0, depth["valid_range"]),
        gradient=float(depth["gradient_loss_fn"] == "grad"),
    )


def check_loss(path: Path) -> None:
    """All of one file."""
    case = Golden(path)
    given = {k.removeprefix("in."): torch.from_numpy(v) for k, v in case.arrays.items() if k.startswith("in.")}
    leaves = {k: v.clone().requires_grad_() for k, v in given.items() if k.startswith("pred_")}
    depth, conf, valid = leaves["pred_depth"], leaves["pred_conf"], given["mask"].bool()
    size = depth.shape[-2:]
    truth = encode_camera(given["gt_extrinsics"], given["gt_intrinsics"], *size)
    compare(truth, case["out.gt_pose_encoding"], LIMIT, "encoding of the truth")
    if "pred_pose" in leaves:
        encodings = list(leaves["pred_pose"])
    else:
        encodings = [encode_camera(leaves["pred_extrinsics"], leaves["pred_intrinsics"], *size)]
    weights = weights_of(case.settings)
    released, corrected = (
        task_loss(encodings, depth, conf, truth, given["gt_depth"], valid, weights, as_released=as_released)
        for as_released in (True, False)
    )
    for name, ours in TERMS.items():
        compare(getattr(released, ours).detach(), case[f"out.{name}"], LIMIT, name)
    released.total.backward(retain_graph=True)
    for name, leaf in leaves.items():
        grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        compare(grad, case[f"out.grad_{name}"], LIMIT, f"gradient of {name}")
        leaf.grad = None
    corrected.total.backward()
    assert corrected.total.isfinite() and all(
        leaf.grad is None or leaf.grad.isfinite().all() for leaf in leaves.values()
    )
    if all(value.isfinite().all() for value in given.values()):
        compare(corrected.total.detach(), case["out.objective"], LIMIT, "corrected")
    check_derived(case, [e.detach() for e in encodings], truth, weights, valid)


def check_derived(
    case: Golden, encodings: list, truth: torch.Tensor, weights: TaskWeights, valid: torch.Tensor
) -> None:
    """Scales, thresholds and counts of the filter, where the file has them."""
    found: dict[str, object] = {}
    counts = valid[:, 0].sum((-1, -2)) > 100
    if counts.any():
        found["scale_translation"] = [translation_scale(e[counts][..., :3], truth[counts][..., :3]) for e in encodings]
    y, d, c = (torch.from_numpy(case[f"in.{name}"])[valid] for name in ("pred_depth", "gt_depth", "pred_conf"))
    if len(y) < 100:
        return
    found["scale_depth"] = scale = depth_scale(y, d) if len(y) > 100 else torch.ones(())
    residual = finite_or_zero((d - scale * y).abs()).clamp(max=100)
    sure = c.clamp_min(1e-3)
    for name, entries in (
        ("conf", (weights.confidence * residual * sure - weights.reward * sure.log()).clamp(-100, 100)),
        ("reg", residual),
    ):
        found[f"kept_{name}"] = len(without_largest(entries, weights.quantile))
        if len(entries) > 1000:
            found[f"threshold_{name}"] = threshold(entries.clamp(max=100), weights.quantile)
    for name, value in found.items():
        if f"derived.{name}" in case.arrays:
            compare(np.asarray(value), case[f"derived.{name}"], LIMIT, name)


CASES = {"loss_": check_loss}
