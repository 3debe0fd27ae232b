"""Lite3R's recipe (Zhang et al. 2026): only the projections of the linear branches train, in a quantised network.

Stage 1 quantises weights to 4 bits, without distillation. Stage 2 quantises to FP8, with attention-output distillation
whose weight falls from 0.1 to 0.01. Each stage is one epoch of pairs of pictures of 518 pixels: AdamW 1e-3, weight
decay 0.05, 30 steps of warm-up, clip 1. The paper's data sets: BlendedMVS (low-res) and DTU.

Differences from the release are listed in docs/how-to/distil.md: the attention that is replaced and the choice of its
keys, the layers that stage 2 quantises, the pictures, the loss, the learning-rate schedule, the weight decay.
"""

from __future__ import annotations

from dataclasses import replace

from lean3r.compress.plan import CompressionPlan, QuantizeStep
from lean3r.compress.presets import fp8, sla
from lean3r.data.world.synthetic import SyntheticWorld
from lean3r.train.config import OptimConfig, Stage, TrainConfig
from lean3r.train.recipes.distilled import Distillation, Phase
from lean3r.train.recipes.sources import Data

STEPS_WITHOUT_DATA = 1_000  # with the synthetic world, which has no epochs


def lite3r_vggt(textures: str | None = None) -> Distillation:
    """VGGT; stage 1 with 16-bit activations, without attention layers."""
    return _recipe("lite3r-vggt", "vggt", (QuantizeStep("w4a16", "every linear", ("named *.attn.*",)),), textures)


def lite3r_da3(textures: str | None = None) -> Distillation:
    """Depth Anything 3, large; stage 1 with 8-bit activations, including attention layers and projections."""
    steps = (QuantizeStep("w4a8", "every linear"), QuantizeStep("w4a8", "named *.mechanism.proj_lin"))
    return _recipe("lite3r-da3", "da3-large", steps, textures)


def sparse(**settings: object) -> CompressionPlan:
    """Attention as the release trains it: each query keeps 30 % of its keys, chosen one by one."""
    return sla("all blocks", dense_below=0, **{"mode": "token", "keep": 0.3, **settings})


def rounding(scheme: str, attention: bool, **settings: object) -> CompressionPlan:
    """Weights and inputs of all linear layers rounded by `scheme`; with `attention`, those of attention layers and
    `proj_lin` too."""
    if not attention:
        return CompressionPlan((QuantizeStep(scheme, "every linear", ("named *.attn.*",), settings),), scheme)
    targets = ("every linear", "named *.mechanism.proj_lin")
    return CompressionPlan(tuple(QuantizeStep(scheme, target, (), settings) for target in targets), scheme)


def optim(warmup_steps: int = 30) -> OptimConfig:
    """The release's optimiser: AdamW, no weight decay of what trains; the rate falls in a straight line to its half."""
    return OptimConfig(
        lr=1e-3,
        muon_lr=0.0,
        weight_decay=0.05,
        betas=(0.9, 0.999),
        warmup_steps=warmup_steps,
        clip_norm=1.0,
        ema_decay=0.0,
        final_lr_ratio=0.5,
        schedule="linear",
        undecayed=("lam", "smooth", "proj_lin", "proj_topk"),
    )


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
    config = TrainConfig(
        name=f"{name}-{first[0].quantize}",
        seed=1,
        stages=(stage,),
        optim=optim(),
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
