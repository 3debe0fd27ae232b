"""Sparse FP8 students of nano: train the mechanisms, then trunk and heads, then trunk and heads quantised."""

from __future__ import annotations

from dataclasses import replace

from lean3r.compress.plan import CompressionPlan
from lean3r.compress.presets import fp8, gsa, sla
from lean3r.data.world.synthetic import SyntheticWorld
from lean3r.train.config import OptimConfig, Stage, TrainConfig
from lean3r.train.recipes.distilled import Distillation, Phase
from lean3r.train.recipes.sources import Data

# Parts that the student shares with the teacher: those before the first sparse block, and the guided head.
SHARED = ("special", "matcher", "trunk.blocks.0.", "upsampler")  # the stem is in neither trunk nor heads


def nano_gsa_fp8(textures: str | None = None) -> Distillation:
    """Speed3R's attention: with 8 views of 225 patches, a patch attends to 12 of 128 windows, under 10 per cent."""
    return _student("nano-gsa", gsa(dense_below=0, top_k=12), textures)


def nano_sla_fp8(textures: str | None = None) -> Distillation:
    """Lite3R's attention in the global blocks: exact attention to a tenth of the keys, in blocks of 4 x 4 patches.

    Special tokens attend to everything: as tokens like others they cost 14 points of AUC@30, of which training for
    2,900 steps left 1.7.
    """
    plan = sla("global blocks", dense_below=0, keep=0.1, block=16, window=4, special="dense")
    return _student("nano-sla", plan, textures)


def _student(name: str, plan: CompressionPlan, textures: str | None) -> Distillation:
    mechanisms = TrainConfig(
        name=f"{name}-mechanisms",
        seed=11,
        stages=(
            Stage(
                steps=100,
                height=120,
                width=120,
                views=(2, 4, 8, 8),
                views_per_step=16,
                train=("mechanisms",),
                pixels=(13_800, 15_000),
                aspect=(2 / 3, 3 / 2),
                multiple=8,
            ),
        ),
        optim=OptimConfig(lr=1e-2, muon_lr=0.0, weight_decay=0.0, warmup_steps=10, ema_decay=0.95),
        validate_every=100,
        checkpoint_every=100,
        log_every=20,
        best_key="auc30",
    )
    sparse = replace(
        mechanisms,
        name=name,
        seed=12,
        stages=(replace(mechanisms.stages[0], steps=1_000, train=("trunk", "heads"), frozen=SHARED),),
        optim=OptimConfig(lr=3e-4, muon_lr=5e-4, weight_decay=0.0, warmup_steps=50, ema_decay=0.99),
        validate_every=250,
    )
    rounded = replace(
        sparse,
        name=f"{name}-fp8",
        seed=13,
        stages=(replace(sparse.stages[0], steps=300),),
        optim=replace(sparse.optim, lr=1e-4, muon_lr=1.5e-4, warmup_steps=20),
        validate_every=150,
    )
    phases = (
        Phase(mechanisms, plan, "nano"),
        Phase(sparse, plan, "nano"),
        Phase(rounded, plan + fp8(), "nano"),
    )
    data = Data(world=SyntheticWorld(textures=textures, seed=101))
    return Distillation(rounded.name, "nano", phases, data)
