"""Trains the stereo network that lean3r ships, on the synthetic world.

    python benchmarks/train_stereo.py -o runs/stereo [--textures FOLDER] [--steps 1500]

Goes on where an interrupted run stopped. FOLDER has photographs that are mixed with the procedural textures. Writes
stereo.safetensors into the run's folder, matrices in float16. On 2 cores of a processor that multiplies bfloat16 a step
takes about a second.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from lean3r.data.base import SceneBatch
from lean3r.data.world.synthetic import SyntheticWorld
from lean3r.models.checkpoint import save_weights
from lean3r.stereo.network import StereoNet
from lean3r.train.checkpoints.state import checkpoints
from lean3r.train.config import OptimConfig, Stage, TrainConfig
from lean3r.train.loop import fit, seed_everything
from lean3r.train.losses.stereo import stereo_loss

SIZES = ((192, 256), (192, 256), (240, 192), (160, 240), (240, 320))  # height, width of pictures, by step
SEED, WORLD_SEED = 1, 23


def config_of(steps: int) -> TrainConfig:
    """One scene a step, of 4 to 6 views."""
    return TrainConfig(
        name="stereo",
        seed=3,
        stages=(Stage(steps=steps, height=192, width=256, views=(6, 6, 5, 6, 4), views_per_step=6),),
        optim=OptimConfig(
            lr=8e-4, muon_lr=0.0, weight_decay=0.01, warmup_steps=min(100, steps // 2), clip_norm=0.5, ema_decay=0.995
        ),
        explode_factor=0,
        checkpoint_every=200,
        log_every=25,
        workers=1,
    )


def train(out: Path, textures: str | None, steps: int) -> Path:
    """The path of the weights."""
    seed_everything(SEED)
    net = StereoNet()
    world = SyntheticWorld(*SIZES[0], 6, textures=textures, seed=WORLD_SEED, distortion=0.0, compile=True)

    def batch(step: int, stage: Stage, rank: int, processes: int) -> SceneBatch:
        height, width = SIZES[step % len(SIZES)]
        return world.batch(step * processes + rank, 1, views=stage.views_at(step), height=height, width=width)

    fit(net, stereo_loss, batch, config_of(steps), out, resume=bool(checkpoints(out / "checkpoints")))
    path = out / "stereo.safetensors"
    save_weights({name: half(value) for name, value in averaged(out).items()}, path, {"model": "stereo"})
    return path


def averaged(out: Path) -> dict[str, torch.Tensor]:
    """The averaged weights of the finished run."""
    from safetensors.torch import load_file

    return load_file(out / "weights.safetensors")


def half(value: torch.Tensor) -> torch.Tensor:
    """Matrices in float16."""
    return value.to(torch.float16 if value.ndim > 1 else value.dtype)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=Path("runs/stereo"))
    parser.add_argument("--textures")
    parser.add_argument("--steps", type=int, default=1500)
    given = parser.parse_args()
    print(train(given.out, given.textures, given.steps))
