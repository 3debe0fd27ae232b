"""ckpt_*_train: both stages of a tiny whole model, by the recipe's plans, loss, optimiser and distillation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from backbone_cases import load_synthetic
from lite3r_tiny import STAGE_1, build, pictures
from torch import Tensor

from lean3r.compress import resolve_plan
from lean3r.compress.distill import attention_loss, attention_outputs, gamma
from lean3r.geometry.pose_encoding import encode_camera
from lean3r.models.base import Backbone
from lean3r.models.lite3r import released_name
from lean3r.train.config import Stage, TrainConfig
from lean3r.train.losses.lite3r import task_loss
from lean3r.train.optim import GradientBuffer, Optimizer
from lean3r.train.recipes import lite3r
from lean3r.train.students import only_trains, student_of
from lean3r.types import Views
from lite3r_cases import Golden, compare
from lite3r_cases.losses import TERMS, weights_of

FIRST, LATER = 1e-4, 1e-3
KERNEL_BITS = 4  # significant bits of four-dimensional kernels, so that the files pack well


def check_train(path: Path) -> None:
    """Every step of both stages; the second starts from the result of the first."""
    golden = Golden(path)
    case = golden.settings
    teacher = build(case)
    fill(teacher, load_synthetic(path.parents[1]), case["filler_seed"])
    branches = split(golden["proj_lin_before"], case["trained"])
    for stage, plan in (("stage1", STAGE_1[case["kind"]]), ("stage2", "lite3r")):
        student = student_of(teacher, resolve_plan(f"{plan}:keep={case['keep_ratio']}"))
        branches = check_stage(golden, stage, student, teacher, branches)


def check_stage(
    golden: Golden, stage: str, student: Backbone, teacher: Backbone, branches: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Train from these linear branches, compare all that the file has, and return the trained ones."""
    case = golden.settings
    steps, names = case["steps"], [name for name, _ in case["trained"]]
    optim = replace(lite3r.optim(case["warmup_steps"]), lr=case["lr"], clip_norm=case["grad_clip"])
    config = TrainConfig(stage, 0, (Stage(steps, 28, 28, (2,), 2, train=("mechanisms",)),), optim)
    only_trains(student, config).train()
    trained = {released(student, n): p for n, p in student.named_parameters() if p.requires_grad}
    assert sorted(trained) == sorted(names)
    with torch.no_grad():
        for name, value in branches.items():
            trained[name].copy_(value)
    check_groups(optimizer := Optimizer(student, optim, steps), case["groups"])
    buffer = GradientBuffer(student.parameters())
    found: dict[str, list[Any]] = {}
    for step in range(steps):
        given = {name: golden[f"in.{name}"][step] for name in ("gt_extrinsics", "gt_intrinsics", "gt_depth", "mask")}
        views = Views(pictures(case, golden["in.images_u8"][step]))
        with attention_outputs(student) as ours:
            loss = task(student, views, given, weights_of(case["loss"]))
        values = {name: getattr(loss, term).detach() for name, term in TERMS.items()}
        total, weight = loss.total, 0.0
        if stage == "stage2":
            with torch.no_grad(), attention_outputs(teacher) as theirs:
                teacher.decode(teacher.encode(views))
            assert [len(ours), len(theirs)] == case["recorded_attention_outputs"]
            distance = attention_loss(ours, theirs)
            highest, lowest = case["kd_gamma"]
            weight = gamma(step, steps, highest=highest, lowest=lowest)
            total = total + weight * distance.loss
            values |= {"kd": distance.loss.detach()}
        buffer.zero()
        total.backward()
        norm = float(buffer.norm())
        gradients = [torch.zeros_like(trained[n]) if trained[n].grad is None else trained[n].grad for n in names]
        values["grad"] = torch.cat([g.clone().flatten() for g in gradients if g is not None])
        buffer.clip(norm, optim.clip_norm)
        values |= {"lr": optim.lr * optimizer.factor(step), "gamma": weight, "grad_norm": norm}
        optimizer.step(step)
        values["proj_lin"] = torch.cat([trained[name].detach().flatten() for name in names])
        for name, value in values.items():
            found.setdefault(name, []).append(np.asarray(value))
    for name in [name for name in golden.arrays if name.startswith(f"{stage}.")]:
        ours, expected = np.stack(found[name.partition(".")[2]]), golden[name]
        compare(ours[:1], expected[:1], FIRST, f"{name}, first step")
        compare(ours, expected, LATER, name)
    return {name: trained[name].detach().clone() for name in names}


def task(model: Backbone, views: Views, given: Mapping[str, np.ndarray], weights: Any) -> Any:
    """The task loss of one pair."""
    size = views.images.shape[-2:]
    true = {name: torch.from_numpy(value) for name, value in given.items()}
    tokens = model.encode(views)
    depth, conf = model.depth_maps(tokens)  # type: ignore[operator]
    if model.name == "vggt":
        encodings = model.pose_encodings(tokens)  # type: ignore[operator]
    else:
        encodings = [encode_camera(*model.cameras(model.pose_encoding(tokens), tokens), *size)]  # type: ignore[operator]
    truth = encode_camera(true["gt_extrinsics"], true["gt_intrinsics"], *size)
    valid = true["mask"].bool()
    return task_loss(encodings, depth, conf, truth, true["gt_depth"], valid, weights, as_released=True)


def check_groups(optimizer: Optimizer, expected: list[list[Any]]) -> None:
    """As many trained tensors have each weight decay and betas as in the release."""
    counts: Counter[tuple[float, ...]] = Counter()
    for group in (group for part in optimizer.parts.values() for group in part.param_groups):
        counts[group["weight_decay"], *group["betas"]] += sum(p.requires_grad for p in group["params"])
    assert +counts == +Counter({(decay, *betas): count for count, decay, betas in expected})


def fill(model: Backbone, synthetic: ModuleType, seed: int) -> None:
    """Dense weights: synthetic ones by published names, with few bits; of tied names the last one counts."""
    keys, values = model.KEY_MAP, {}
    last = {name: group[-1] for group in keys.tied for name in group}
    for name, parameter in model.state_dict().items():
        key = keys.official(name)
        assert key is not None
        value = torch.from_numpy(synthetic.synthetic_tensor(last.get(key, key), parameter.shape, seed))
        values[name] = few_bits(value) if value.ndim == 4 else value.bfloat16().float()
    model.load_state_dict(values)


def few_bits(x: Tensor) -> Tensor:
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2**KERNEL_BITS).round() / 2**KERNEL_BITS, exponent)


def released(model: Backbone, name: str) -> str:
    """The release's name of our parameter."""
    key = model.KEY_MAP.official(name)
    assert key is not None
    return released_name(key)


def split(joined: np.ndarray, shapes: list[list[Any]]) -> dict[str, Tensor]:
    """Name -> tensor, from all in a row."""
    sizes = [int(np.prod(shape)) for _, shape in shapes]
    parts = torch.from_numpy(joined).split(sizes)
    return {name: part.view(shape) for (name, shape), part in zip(shapes, parts, strict=True)}


CASES = {}
