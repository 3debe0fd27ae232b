"""Trains the stereo network that lean3r ships, on the synthetic world.

    python benchmarks/train_stereo.py -o runs/stereo [--textures FOLDER] [--steps 3200] [--weights FILE]
        [--seed 23]

Goes on where an interrupted run stopped. FOLDER has photographs that are mixed with the procedural textures; FILE has
weights to begin with: give another seed, for new scenes. Half of the priors have the errors of nano's depth. Writes
stereo.safetensors into the run's folder, kernels in int8. On one core of a processor that multiplies bfloat16 a step
takes about two seconds. Judge the weights by benchmarks/depth.py --net FILE.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file

import lean3r
from lean3r.data.base import SceneBatch
from lean3r.data.world.synthetic import SyntheticWorld
from lean3r.models.checkpoint import save_weights
from lean3r.ops.dispatch import has_fast_bfloat16
from lean3r.stereo.network import StereoNet
from lean3r.stereo.weights import in_bytes, load_net
from lean3r.train.checkpoints.state import checkpoints
from lean3r.train.config import OptimConfig, Stage, TrainConfig
from lean3r.train.loop import fit, seed_everything
from lean3r.train.losses.stereo import stereo_loss
from lean3r.types import Views

SIZES = ((192, 256), (192, 256), (240, 192), (160, 240), (240, 320))  # height, width of pictures, by step
SEED, WORLD_SEED = 1, 23  # of the draws; of the scenes, if none is given
LR = 8e-4  # half of it from trained weights


def config_of(steps: int, lr: float) -> TrainConfig:
    """One scene a step, of 4 to 6 views."""
    return TrainConfig(
        name="stereo",
        seed=3,
        stages=(Stage(steps=steps, height=192, width=256, views=(6, 6, 5, 6, 4), views_per_step=6),),
        optim=OptimConfig(
            lr=lr, muon_lr=0.0, weight_decay=0.01, warmup_steps=min(100, steps // 2), clip_norm=0.5, ema_decay=0.995
        ),
        precision="bf16" if has_fast_bfloat16() else "fp32",
        explode_factor=0,
        checkpoint_every=200,
        log_every=25,
        workers=1,
    )


def train(out: Path, textures: str | None, steps: int, weights: Path | None, seed: int) -> Path:
    """The path of the weights."""
    seed_everything(SEED)
    net = StereoNet() if weights is None else load_net(weights).requires_grad_(True)
    nano = lean3r.load("nano", device="cpu")

    @torch.no_grad()
    def predict(given: SceneBatch) -> torch.Tensor:
        return nano(Views(given.images)).depth

    world = SyntheticWorld(*SIZES[0], 6, textures=textures, seed=seed, distortion=0.0, compile=True)

    def batch(step: int, stage: Stage, rank: int, processes: int) -> SceneBatch:
        height, width = SIZES[step % len(SIZES)]
        return world.batch(step * processes + rank, 1, views=stage.views_at(step), height=height, width=width)

    done = fit(
        net,
        partial(stereo_loss, predict=predict),
        batch,
        config_of(steps, LR if weights is None else LR / 2),
        out,
        resume=bool(checkpoints(out / "checkpoints")),
    )
    if done.stopped_by is not None:
        raise SystemExit(f"stopped at step {done.step} of {steps}; the same command goes on from there")
    path = out / "stereo.safetensors"
    save_weights(in_bytes(load_file(out / "weights.safetensors")), path, {"model": "stereo"})  # the averaged ones
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=Path("runs/stereo"))
    parser.add_argument("--textures")
    parser.add_argument("--steps", type=int, default=3200)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--seed", type=int, default=WORLD_SEED)
    given = parser.parse_args()
    print(train(given.out, given.textures, given.steps, given.weights, given.seed))
