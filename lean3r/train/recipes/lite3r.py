"""Lite3R's recipe (Zhang et al. 2026): only the projections of the linear branches train, under rounded numbers.

Stage 1 rounds to 4-bit weights, without distillation; stage 2 to FP8, with attention-output distillation whose weight
falls from 0.1 to 0.01. One epoch each of pairs of pictures of 518 pixels, AdamW 1e-3, weight decay 0.05, 30 steps of
warm-up, clip 1. The paper's sets: BlendedMVS (low-res) and DTU.

This differs from the release in several ways, all listed in docs/how-to/distil.md: the attention that is replaced and
how its keys are chosen, what stage 2 rounds, the pictures, the loss, the learning-rate schedule, the weight decay.
"""

from __future__ import annotations

from dataclasses import replace

from lean3r.compress.plan import CompressionPlan, QuantizeStep
from lean3r.compress.presets import fp8, sla
from lean3r.data.world.synthetic import SyntheticWorld
from lean3r.train.config import OptimConfig, Stage, TrainConfig
from lean3r.train.recipes.distilled import Distillation, Phase
from lean3r.train.recipes.sources import Data

STEPS_WITHOUT_DATA = 1_000  # of the synthetic world, which has no epochs


def lite3r_vggt(textures: str | None = None) -> Distillation:
    """VGGT; stage 1 with activations of 16 bits, attention layers left alone."""
    return _recipe("lite3r-vggt", "vggt", (QuantizeStep("w4a16", "every linear", ("named *.attn.*",)),), textures)


def lite3r_da3(textures: str | None = None) -> Distillation:
    """Depth Anything 3, large; stage 1 with activations of 8 bits, attention layers and projections included."""
    steps = (QuantizeStep("w4a8", "every linear"), QuantizeStep("w4a8", "named *.mechanism.proj_lin"))
    return _recipe("lite3r-da3", "da3-large", steps, textures)


def _recipe(name: str, teacher: str, first: tuple[QuantizeStep, ...], textures: str | None) -> Distillation:
    stage = Stage(
        steps=STEPS_WITHOUT_DATA,
        height=392,
        width=518,
        views=(2,),
        views_per_step=2,
        train=("mechanisms",),
        checkpointing=True,
    )
    optim = OptimConfig(lr=1e-3, muon_lr=0.0, weight_decay=0.05, warmup_steps=30, clip_norm=1.0, ema_decay=0.0)
    config = TrainConfig(
        name=f"{name}-{first[0].quantize}",
        seed=1,
        stages=(stage,),
        optim=optim,
        validate_every=500,
        checkpoint_every=250,
        workers=4,
    )
    sparse = sla("all blocks", dense_below=0)
    phases = (
        Phase(
            config, sparse + CompressionPlan(first, first[0].quantize), "lite3r", {"gamma_from": 0, "gamma_to": 0}, 1
        ),
        Phase(replace(config, name=f"{name}-fp8", seed=2), sparse + fp8(), "lite3r", {}, 1),
    )
    return Distillation(name, teacher, phases, Data(world=SyntheticWorld(textures=textures, seed=301)))
