"""Train a toy version of nano on the synthetic world for a few steps: the same loop, loss and data as the real one.

The shipped weights come from `lean3r train nano`. With --weights the full nano continues from that file instead.
"""

import argparse
from pathlib import Path

import lean3r
from lean3r.data.base import SceneBatch
from lean3r.data.world.synthetic import SyntheticWorld
from lean3r.eval.synthetic import score_scenes
from lean3r.models.nano import Nano, NanoConfig
from lean3r.train.config import OptimConfig, Stage, TrainConfig
from lean3r.train.loop import fit, seed_everything
from lean3r.train.losses.nano import nano_loss

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=Path, default=Path("examples_out/06"))
parser.add_argument("--weights", type=Path, help="weights of nano to continue from")
parser.add_argument("--steps", type=int, default=30)

WORLD = SyntheticWorld(seed=7, tiles=32, tile_size=32)
HELD_OUT = SyntheticWorld(height=64, width=64, views=3, seed=1_000_003, tiles=32, tile_size=32)


def batch(step: int, stage: Stage, rank: int, processes: int) -> SceneBatch:
    """The scenes of one step: a pure function of its arguments, so that a resumed run sees the same ones."""
    index = step * processes + rank
    sizes = {"views": stage.views_at(step), "height": stage.height, "width": stage.width}
    return WORLD.batch(index, stage.scenes_at(step), **sizes)


def validate(model) -> dict[str, float]:
    """Figures on scenes that training never sees."""
    return score_scenes(model, [HELD_OUT.batch(0, 2)])


def main() -> None:
    """Train, and say where the weights and the curves are."""
    options = parser.parse_args()
    seed_everything(1)
    toy = Nano(NanoConfig(width=32, heads=2, pairs=2))
    model = toy if options.weights is None else lean3r.load("nano", weights=options.weights)
    stage = Stage(steps=options.steps, height=64, width=64, views=(2,), views_per_step=6)
    optim = OptimConfig(warmup_steps=options.steps // 4)
    config = TrainConfig("toy", 1, (stage,), optim, precision="fp32", log_every=max(1, options.steps // 3))
    done = fit(model, nano_loss, batch, config, options.out, validate=validate)
    print(f"{done.step} steps, {done.skipped} skipped; weights, log.csv and loss.png are in {options.out}")


if __name__ == "__main__":
    main()
