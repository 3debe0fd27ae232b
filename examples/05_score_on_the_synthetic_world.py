"""Unlimited scenes with exact ground truth, and the error of predictions.

Three predictors are scored on the same scenes: the ground truth itself, cameras that never move, and nano.
"""

import argparse
import json
from pathlib import Path

import torch

import lean3r
from lean3r.data.world.synthetic import SyntheticWorld
from lean3r.eval.synthetic import score_scenes
from lean3r.geometry.camera import intrinsics_from_focal
from lean3r.geometry.pose import identity_pose
from lean3r.types import Prediction, Views

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=Path, default=Path("examples_out/05"))
parser.add_argument("--weights", type=Path, help="weights other than those that come with nano")


def constant(views: Views) -> Prediction:
    """Ignore the pictures: every camera at the origin, every depth 1, a typical focal length."""
    scenes, count, _, height, width = views.images.shape
    flat = torch.ones(scenes, count, height, width)
    focal = torch.full((scenes, count, 2), 0.9 * (height * width) ** 0.5)
    return Prediction(identity_pose(scenes, count), intrinsics_from_focal(focal, height, width), flat, flat)


def main() -> None:
    """Render scenes, score three predictors, print one line each."""
    options = parser.parse_args()
    # A pure function of seed, index and sizes: the same scenes on every run and every machine.
    batch = SyntheticWorld(height=128, width=128, views=4, seed=1_000_003).batch(index=0, scenes=4)
    truth = Prediction(batch.cam_from_world, batch.intrinsics, batch.depth, torch.ones_like(batch.depth))
    model = lean3r.load("nano", weights=options.weights)

    figures = {}
    for name, predict in {"truth": lambda _: truth, "constant": constant, "nano": model}.items():
        with torch.inference_mode():
            figures[name] = score_scenes(predict, [batch])
        short = ", ".join(f"{key} {figures[name][key]:.1f}" for key in ("auc30", "rotation_deg", "abs_rel", "focal"))
        print(f"{name:9} {short}")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "figures.json").write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
