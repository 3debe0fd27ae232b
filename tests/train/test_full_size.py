"""Two real optimiser steps of every stage of Lite3R's recipes, on networks of full size with random weights."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SIDE = 126  # pixels: 9 x 9 patches a picture, so that two steps of VGGT take some six CPU minutes
LIMIT = 20e9  # bytes
RUN = r"""
import json, re, sys
from dataclasses import replace
from pathlib import Path
import torch
from lean3r.models import MODELS
from lean3r.train import DISTILLATIONS
from lean3r.train.optim import GradientBuffer, Optimizer
from lean3r.train.recipes.distilled import OBJECTIVES
from lean3r.train.sharding import Call, checkpointed
from lean3r.train.students import only_trains, student_of

name, phase, side = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
recipe = DISTILLATIONS.get(name)(None)
chosen = recipe.phases[phase]
stage = replace(chosen.config.stages[0], height=side, width=side)
config = replace(chosen.config, stages=(stage,), optim=replace(chosen.config.optim, warmup_steps=0))
torch.manual_seed(0)
teacher = MODELS.get(recipe.teacher)().eval()
student = only_trains(student_of(teacher, chosen.plan), config).train()
objective = OBJECTIVES.get(chosen.objective)(teacher, **chosen.settings)
trained = {n: p for n, p in student.named_parameters() if p.requires_grad}
before = {n: p.detach().clone() for n, p in trained.items()}
buffer, optimizer = GradientBuffer(trained.values()), Optimizer(student, config.optim, config.total_steps)
losses = []
for step in range(2):
    buffer.zero()
    batch = recipe.batch(phase, step, stage, 0, 1)
    with checkpointed(student):
        loss, _ = Call(student)(objective, batch, step / config.total_steps, **stage.loss)
    loss.backward()
    buffer.clip(float(buffer.norm()), config.optim.clip_norm)
    optimizer.step(step)
    losses.append(float(loss.detach()))
moved = [n for n, p in trained.items() if not torch.equal(p, before[n])]
peak = 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
print(json.dumps({"losses": losses, "trained": len(trained), "moved": len(moved), "peak": peak}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("phase", [0, 1])
@pytest.mark.parametrize(("name", "trained", "moved"), [("lite3r-vggt", 76, 76), ("lite3r-da3", 28, 24)])
def test_two_steps_of_full_size_stay_below_the_limit(name: str, trained: int, moved: int, phase: int) -> None:
    """`cam_enc` of Depth Anything 3 does not run without given cameras, so its four matrices stay."""
    command = [sys.executable, "-c", RUN, name, str(phase), str(SIDE)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(found)
    assert all(abs(loss) < float("inf") for loss in found["losses"])
    assert (found["trained"], found["moved"]) == (trained, moved)
    assert found["peak"] < LIMIT
