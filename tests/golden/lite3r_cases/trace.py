"""trace_*: optimiser steps of one block and a linear layer, by the recipe's plans, losses and optimiser."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from backbone_cases import load_synthetic
from torch import Tensor, nn

from lean3r.compress import presets
from lean3r.compress.distill import attention_loss, attention_outputs, gamma
from lean3r.compress.fp8_linear import FakeQuantLinear
from lean3r.compress.plan import CompressionPlan, QuantizeStep
from lean3r.layers.trunk import Trunk
from lean3r.train.config import Stage, TrainConfig
from lean3r.train.optim import GradientBuffer, Optimizer
from lean3r.train.recipes import lite3r
from lean3r.train.students import only_trains, student_of
from lean3r.types import TokenLayout
from lite3r_cases import Golden, compare

LIMIT, LIMIT_16_BITS = 2e-5, 1e-4
EPS = {"vggt": 1e-5, "da3": 1e-6}
NAMES = (("trunk.blocks.0.", "block."), (".mechanism.", "."))


class Toy(nn.Module):
    """One block and a linear layer."""

    def __init__(self, kind: str, dim: int, heads: int, outputs: int):
        super().__init__()
        self.trunk = Trunk(("frame",), dim, heads, layer_scale=1.0, eps=EPS[kind])
        self.head = nn.Linear(dim, outputs)

    def forward(self, x: Tensor, layout: TokenLayout) -> Tensor:
        """[1, N, C] -> [1, N, outputs]."""
        return self.head(self.trunk(x[None], layout)[0][0])


def grouped(plan: CompressionPlan, group: int) -> CompressionPlan:
    """The plan with other groups of inputs in its quantisation, if `group` is not 0."""
    own = {"group_size": group} if group else {}
    steps = [replace(s, settings={**s.settings, **own}) if isinstance(s, QuantizeStep) else s for s in plan.steps]
    return CompressionPlan(tuple(steps), plan.name)


def official(name: str) -> str:
    """Our name of a parameter or layer -> the file's."""
    for ours, theirs in NAMES:
        name = name.replace(ours, theirs)
    return name


def check_trace(path: Path) -> None:
    """All steps of one file."""
    case, synthetic = Golden(path), load_synthetic(path.parents[1])
    s = case.settings["settings"]
    seed, (rows, cols) = s["seed"], s["grid"]
    layout = TokenLayout(1, 0, rows, cols)
    check_positions(case["pos"], rows, cols)
    teacher = Toy(s["kind"], s["dim"], s["heads"], case["out_step0"].shape[-1])
    fill(teacher, synthetic, seed)
    student = student_of(teacher, grouped(presets.lite3r(s["stage"], keep=s["keep"]), s["group"]))
    fill(student, synthetic, seed)
    check_linears(student, case.settings["linears"])
    optim = replace(lite3r.optim(s["warm"]), lr=s["lr"], clip_norm=s["clip"])
    config = TrainConfig("trace", 0, (Stage(s["total"], rows, cols, (1,), 1, train=("mechanisms",)),), optim)
    only_trains(student, config).train()
    trained = {official(n): p for n, p in student.named_parameters() if p.requires_grad}
    assert sorted(official(n) for n, _ in student.named_parameters()) == sorted(case.settings["parameters"])
    assert list(trained) == case.settings["trained"]
    (proj_lin,) = trained.values()
    compare(proj_lin.detach(), case["proj_lin_before"], LIMIT, "proj_lin before")
    optimizer, buffer = Optimizer(student, optim, s["total"]), GradientBuffer(student.parameters())
    found: dict[str, list[np.ndarray]] = {}
    sixteen = s["stage"] == "w4a16"
    for step in range(s["steps"]):
        x, target = (
            torch.from_numpy(synthetic.noise(f"{name}{step}", rows * cols * width, seed)).view(1, rows * cols, width)
            for name, width in (("x", s["dim"]), ("target", case["out_step0"].shape[-1]))
        )
        with attention_outputs(student) as ours:
            out = student(x, layout)
        with torch.no_grad(), attention_outputs(teacher) as theirs:
            teacher(x, layout)
        if step == 0:
            compare(out.detach(), case["out_step0"], LIMIT_16_BITS if sixteen else LIMIT, "output of step 0")
        task = F.mse_loss(out, target)
        distance = attention_loss(ours, theirs).loss
        weight = gamma(step, s["total"]) if s["stage"] == "fp8" else 0.0
        total = task + weight * distance
        buffer.zero()
        total.backward()
        norm = float(buffer.norm())
        assert proj_lin.grad is not None
        gradient = proj_lin.grad.clone()
        buffer.clip(norm, optim.clip_norm)
        optimizer.step(step)
        values = {
            "task": task,
            "kd": distance if weight else torch.zeros(()),
            "gamma": torch.tensor(weight, dtype=torch.float64),
            "total": total,
            "lr": torch.tensor(optim.lr * optimizer.factor(step), dtype=torch.float64),
            "grad_norm": torch.tensor(norm),
            "grad": gradient,
            "proj_lin": proj_lin,
        }
        for name, value in values.items():
            found.setdefault(name, []).append(value.detach().clone().numpy())
    for name, series in found.items():
        limit = LIMIT_16_BITS if sixteen and name in ("task", "total") else LIMIT
        compare(np.stack(series), case[f"trace.{name}"], limit, name)
    state = optimizer.parts["adamw"].state[proj_lin]
    for name in ("exp_avg", "exp_avg_sq"):
        compare(state[name], case[f"adam.{name}"], LIMIT, name)


def fill(model: nn.Module, synthetic, seed: int) -> None:
    """Values by the file's names; proj_lin is halved, lam is a half."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            key = official(name)
            if key.endswith(".lam"):
                parameter.fill_(0.5)
                continue
            parameter.copy_(torch.from_numpy(synthetic.synthetic_tensor(key, parameter.shape, seed)))
            if "proj_lin" in key:
                parameter.mul_(0.5)


def check_positions(positions: np.ndarray, rows: int, cols: int) -> None:
    """The file's positions are those of our layout: (row, column) from 1."""
    row, col = np.meshgrid(np.arange(rows) + 1, np.arange(cols) + 1, indexing="ij")
    assert np.array_equal(positions[0], np.stack([row.ravel(), col.ravel()], -1))


def check_linears(student: nn.Module, expected: dict[str, list]) -> None:
    """The layers that the plan rounds are those of the file, with the same bits and groups."""
    linears = {official(n): m for n, m in student.named_modules() if isinstance(m, nn.Linear)}
    assert set(linears) == set(expected)
    for name, (kind, settings) in expected.items():
        layer = linears[name]
        assert isinstance(layer, FakeQuantLinear) == (kind != "Linear"), name
        if settings:
            assert isinstance(layer, FakeQuantLinear)
            ours = vars(layer.scheme) | {"bits": getattr(layer.scheme, "BITS", 0)}
            assert (ours["group_size"], ours["bits"]) == (settings["group"], settings["weight_bits"]), name
            assert ours["act_bits"] == settings["act_bits"] * settings["act"], name


CASES = {"trace_": check_trace}
