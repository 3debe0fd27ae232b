"""Lite3R's recipe (Zhang et al. 2026): only the projections of the linear branches train, in a quantised network.

Stage 1 quantises weights to 4 bits, without distillation. Stage 2 quantises to FP8, with attention-output distillation
whose weight falls from 0.1 to 0.01. Each stage is one epoch of pairs of pictures of 518 x 518 pixels: AdamW 1e-3, 30
steps of warm-up, clip 1. Source: the released training code and its final settings; data: BlendedMVS (low-res).

There are three forms of it (docs/how-to/distil.md compares them): `lite3r-*` is the release without its errors,
`lite3r-*-as-released` has them too, and `lite3r-*-lean` is our own variant.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from lean3r.compress.plan import CompressionPlan, QuantizeStep
from lean3r.compress.presets import fp8, lite3r, sla
from lean3r.data.world.synthetic import SyntheticWorld
from lean3r.train.config import OptimConfig, Stage, TrainConfig
from lean3r.train.recipes.distilled import Distillation, Phase
from lean3r.train.recipes.sources import Data

STEPS_WITHOUT_DATA = 1_000  # with the synthetic world, which has no epochs
Form = Literal["corrected", "as-released"]


def lite3r_vggt(textures: str | None = None) -> Distillation:
    """VGGT; stage 1 with 16-bit activations, without attention layers. As released, without the errors."""
    return _released("vggt", "vggt", "w4a16", "corrected", textures)


def lite3r_da3(textures: str | None = None) -> Distillation:
    """Depth Anything 3, large; stage 1 with 8-bit activations, including attention layers and projections. As released,
    without the errors."""
    return _released("da3", "da3-large", "w4a8", "corrected", textures)


def lite3r_vggt_as_released(textures: str | None = None) -> Distillation:
    """VGGT; as released, with the errors: cameras in the data set's world, all scenes, one NaN spoils all gradients."""
    return _released("vggt", "vggt", "w4a16", "as-released", textures)


def lite3r_da3_as_released(textures: str | None = None) -> Distillation:
    """Depth Anything 3, large; as released, with the errors: those of VGGT's, and pictures without normalisation."""
    return _released("da3", "da3-large", "w4a8", "as-released", textures)


def lite3r_vggt_lean(textures: str | None = None) -> Distillation:
    """VGGT, our variant: frame and global blocks, keys by blocks, overlapping pairs of 518 x 392 pixels."""
    return _lean("vggt", "vggt", (QuantizeStep("w4a16", "every linear", ("named *.attn.*",)),), textures)


def lite3r_da3_lean(textures: str | None = None) -> Distillation:
    """Depth Anything 3, large, our variant: frame and global blocks, keys by blocks, overlapping pairs of 518 x 392
    pixels."""
    steps = (QuantizeStep("w4a8", "every linear"), QuantizeStep("w4a8", "named *.mechanism.proj_lin"))
    return _lean("da3", "da3-large", steps, textures)


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


def _released(
    short: str, teacher: str, first: Literal["w4a16", "w4a8"], form: Form, textures: str | None
) -> Distillation:
    errors = form == "as-released"
    name = f"lite3r-{short}-{form}" if errors else f"lite3r-{short}"
    settings: dict[str, float | str] = {
        "form": form,
        "pictures": "raw" if errors and short == "da3" else "normalised",
    }
    config = replace(_config(name, first, height=518), optim=optim(), explode_factor=0.0)
    stages = (
        Phase(config, lite3r(first), "lite3r", {**settings, "gamma_from": 0, "gamma_to": 0}, 1),
        Phase(replace(config, name=f"{name}-fp8", seed=2), lite3r(), "lite3r", settings, 1),
    )
    drawn = "pairs-as-released" if errors else "pairs"
    return Distillation(name, teacher, stages, Data(world=SyntheticWorld(textures=textures, seed=301), drawn=drawn))


def _lean(short: str, teacher: str, first: tuple[QuantizeStep, ...], textures: str | None) -> Distillation:
    name = f"lite3r-{short}-lean"
    own = OptimConfig(lr=1e-3, muon_lr=0.0, weight_decay=0.05, warmup_steps=30, clip_norm=1.0, ema_decay=0.0)
    config = replace(_config(name, first[0].quantize, height=392), optim=own)
    sparse = sla("all blocks", dense_below=0)
    stages = (
        Phase(
            config,
            sparse + CompressionPlan(first, first[0].quantize),
            "lite3r-lean",
            {"gamma_from": 0, "gamma_to": 0},
            1,
        ),
        Phase(replace(config, name=f"{name}-fp8", seed=2), sparse + fp8(), "lite3r-lean", {}, 1),
    )
    return Distillation(name, teacher, stages, Data(world=SyntheticWorld(textures=textures, seed=301)))


def _config(name: str, first: str, height: int) -> TrainConfig:
    """The first stage, without its optimiser."""
    stage = Stage(
        steps=STEPS_WITHOUT_DATA,
        height=height,
        width=518,
        views=(2,),
        views_per_step=2,
        train=("mechanisms",),
        checkpointing=True,
    )
    return TrainConfig(
        name=f"{name}-{first}", seed=1, stages=(stage,), validate_every=500, checkpoint_every=250, workers=4
    )
