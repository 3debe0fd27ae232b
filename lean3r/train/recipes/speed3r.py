"""Speed3R's recipe (Ren et al. 2026): a dense model's cameras and points are the labels for its sparse student.

As released: 80 epochs of 800 steps, 2 to 24 views per sample and at most 24 pictures per batch, 100k to 255k pixels,
aspects 0.5 to 2, sides that are multiples of a window (56 pixels), 32 batches per step (4 on each of 8 GPUs, in
sequence). AdamW 1e-5, betas (0.9, 0.95), weight decay 0.05 on matrices, one cosine without warm-up, clip 1, bf16. The
encoder and parameters without influence on the loss are frozen. The paper's data sets: ARKitScenes, ScanNet++, DL3DV,
CO3Dv2, Hypersim, WildRGB-D, Virtual KITTI 2.
"""

from __future__ import annotations

from dataclasses import replace

from lean3r.compress.plan import CompressionPlan
from lean3r.compress.presets import gsa
from lean3r.data.world.synthetic import SyntheticWorld
from lean3r.train.config import OptimConfig, Stage, TrainConfig
from lean3r.train.recipes.distilled import Distillation, Phase
from lean3r.train.recipes.sources import Data

EPOCHS, EPOCH_STEPS = 80, 800
MOST_VIEWS = 24
BATCHES = 8 * 4  # in a step, over all processes
PI3_UNUSED = ("conf_decoder", "conf_head")
VIEWS = tuple(2 + 7 * i % 23 for i in range(23))  # 2 to 24, in a mixed order


def speed3r_pi3(textures: str | None = None) -> Distillation:
    """Pi3 to Speed3R-Pi3, the release's own form: Pi3 without registers, with sparse global blocks."""
    return replace(_recipe("speed3r-pi3", "pi3", None, PI3_UNUSED, "own", textures), student="speed3r-pi3")


def speed3r_pi3x(textures: str | None = None) -> Distillation:
    """Pi3X to Pi3X with sparse global blocks; registers stay."""
    return _recipe("speed3r-pi3x", "pi3x", gsa(dense_below=0), PI3_UNUSED, "own", textures)


def speed3r_vggt(textures: str | None = None) -> Distillation:
    """VGGT to VGGT with sparse global blocks that always attend to the first and every 100th view, as in the paper."""
    plan = gsa(dense_below=0, reference=True, every=100)
    return _recipe("speed3r-vggt", "vggt", plan, ("points.", "track_maps.", "tracker."), "depth", textures)


def _recipe(
    name: str, teacher: str, plan: CompressionPlan | None, unused: tuple[str, ...], points: str, textures: str | None
) -> Distillation:
    stage = Stage(
        steps=EPOCHS * EPOCH_STEPS,
        height=448,
        width=448,
        views=VIEWS,
        views_per_step=MOST_VIEWS,
        train=("trunk", "heads"),
        frozen=unused,
        pixels=(100_000, 255_000),
        aspect=(0.5, 2.0),
        multiple=56,
        accumulate=BATCHES,
        checkpointing=True,
    )
    optim = OptimConfig(
        lr=1e-5, muon_lr=0.0, weight_decay=0.05, betas=(0.9, 0.95), warmup_steps=0, clip_norm=1.0, ema_decay=0.0
    )
    config = TrainConfig(
        name=name,
        seed=1,
        stages=(stage,),
        optim=optim,
        validate_every=EPOCH_STEPS,
        checkpoint_every=EPOCH_STEPS,
        workers=4,
    )
    world = SyntheticWorld(textures=textures, seed=201)
    return Distillation(name, teacher, (Phase(config, plan, "speed3r", {"points": points}),), Data(world=world))
