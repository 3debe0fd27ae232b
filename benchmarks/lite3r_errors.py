"""What the errors of Lite3R's release cost, measured on nano with pairs of the synthetic world.

    python benchmarks/lite3r_errors.py [--steps 120] [--seeds 3] [--pairs 16]

nano predicts cameras in a free world, which is made the first view's here, as VGGT and Depth Anything 3 do; its depth
and translations get the scale that fits the true depth best. Students have SLA in every attention layer, 30 % of the
keys by token, and train `proj_lin` alone by the recipe's objective, optimiser and schedule (one stage, attention
distillation, no rounding), a pair a step. Scores are those of Lite3R's evaluation, means over held-out pairs. Writes
benchmarks/results/lite3r_errors.json.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace

import torch
from common import hardware, write_result
from torch import Tensor, nn

import lean3r
from lean3r.compress import resolve_plan
from lean3r.data.base import SceneBatch
from lean3r.data.sampling.lite3r import in_unit
from lean3r.data.world.synthetic import SyntheticWorld
from lean3r.eval.lite3r import lite3r_score, mean_scores
from lean3r.geometry.pose import invert_pose
from lean3r.geometry.pose_encoding import encode_camera
from lean3r.train.config import Stage, TrainConfig
from lean3r.train.losses.distillation import Lite3rDistillation, known_pixels
from lean3r.train.losses.lite3r import task_loss
from lean3r.train.optim import GradientBuffer, Optimizer
from lean3r.train.recipes import HELD_OUT_SEED
from lean3r.train.recipes.lite3r import optim
from lean3r.train.students import only_trains, student_of
from lean3r.types import Prediction, Tokens, Views

SIDE = 112
SCENES = 40  # of an epoch
FEW = 8  # scenes of an epoch for the question whether test scenes may be training scenes
SHOWN = ("rot_err_deg", "trans_err", "abs_rel", "chamfer", "fscore_5cm")


class InFirstView(nn.Module):
    """nano, with cameras relative to the first view."""

    def __init__(self, nano: nn.Module):
        super().__init__()
        self.nano = nano

    def encode(self, views: Views) -> Tokens:
        """See Backbone."""
        return self.nano.encode(views)  # type: ignore[operator]

    def decode(self, tokens: Tokens) -> Prediction:
        """See Backbone."""
        found: Prediction = self.nano.decode(tokens)  # type: ignore[operator]
        pose = found.cam_from_world
        return replace(found, cam_from_world=pose @ invert_pose(pose[:, :1]))

    def forward(self, views: Views) -> Prediction:
        """Views -> prediction."""
        return self.decode(self.encode(views))


def pairs(seed: int, count: int) -> list[SceneBatch]:
    """Pairs of the synthetic world."""
    world = SyntheticWorld(seed=seed)
    return [world.batch(index, 1, views=2, height=SIDE, width=SIDE) for index in range(count)]


@torch.no_grad()
def score(
    model: InFirstView, batches: Sequence[SceneBatch], protocol: str = "da3", raw: bool = False
) -> dict[str, float]:
    """Mean scores; `raw` gives nano's stem the pictures themselves instead of its own normalisation of them."""
    model.eval()
    found = []
    for batch in batches:
        prediction = model(Views(batch.images / 4 + 0.5 if raw else batch.images))
        truth, depth = in_unit(batch), prediction.depth
        assert depth is not None
        known = truth.depth > 0
        scale = (truth.depth * depth)[known].sum() / depth[known].square().sum()
        pose = prediction.cam_from_world.clone()
        pose[..., :3, 3] *= scale
        found.append(lite3r_score(replace(prediction, cam_from_world=pose, depth=depth * scale), truth, protocol))
    means = mean_scores(found)
    return {name: round(means[name], 4) for name in SHOWN}


def train(form: str, seed: int, steps: int, batches: Sequence[SceneBatch]) -> InFirstView:
    """A student after one run over `batches`, again and again."""
    torch.manual_seed(seed)
    teacher = lean3r.load("nano")
    student = student_of(teacher, resolve_plan("lite3r:rounding=none"))
    config = TrainConfig("errors", seed, (Stage(steps, SIDE, SIDE, (2,), 2, train=("mechanisms",)),), optim())
    only_trains(student, config)
    model = InFirstView(student).train()
    loss_fn = Lite3rDistillation(InFirstView(teacher), form=form)  # type: ignore[arg-type]
    optimizer, buffer = Optimizer(model, config.optim, steps), GradientBuffer(model.parameters())
    for step in range(steps):
        buffer.zero()
        loss_fn(model, batches[step % len(batches)], step / steps)[0].backward()
        buffer.clip(float(buffer.norm()), config.optim.clip_norm)
        optimizer.step(step)
    return model


def camera_loss_of_the_truth(batches: Sequence[SceneBatch]) -> dict[str, float]:
    """Mean camera loss of a network that predicts the true relative cameras, in both forms."""
    losses: dict[str, list[float]] = {"corrected": [], "as-released": []}
    for batch in batches:
        ours = in_unit(batch)
        encoding = encode_camera(ours.cam_from_world, ours.intrinsics, SIDE, SIDE)
        for form, terms in losses.items():
            truth = in_unit(batch, relative=form == "corrected")
            goal = encode_camera(truth.cam_from_world, truth.intrinsics, SIDE, SIDE)
            loss = task_loss(
                [encoding], ours.depth, torch.ones_like(ours.depth), goal, truth.depth, known_pixels(batch)
            )
            terms.append(float(loss.camera))
    return {form: round(statistics.mean(terms), 4) for form, terms in losses.items()}


def gradients_that_are_nan(batch: SceneBatch) -> dict[str, float]:
    """Share of predicted depths with a gradient of NaN if one depth is NaN, in both forms; and the loss."""
    shares = {}
    truth = in_unit(batch)
    encoding = encode_camera(truth.cam_from_world, truth.intrinsics, SIDE, SIDE)
    for form in ("corrected", "as-released"):
        depth: Tensor = truth.depth.clone() + 0.1
        depth.view(-1)[int(known_pixels(batch).flatten().nonzero()[0])] = torch.nan
        depth.requires_grad_()
        known, conf = known_pixels(batch), torch.ones_like(depth)
        loss = task_loss([encoding], depth, conf, encoding, truth.depth, known, as_released=form == "as-released")
        loss.total.backward()
        assert depth.grad is not None
        shares[form] = round(float(depth.grad[known].isnan().double().mean()), 4)
        shares[f"loss, {form}"] = round(float(loss.total.detach()), 4)
    return shares


def main() -> None:
    """Measure everything and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=16)
    options = parser.parse_args()
    held_out = pairs(HELD_OUT_SEED, options.pairs)
    dense = InFirstView(lean3r.load("nano"))
    result: dict[str, object] = {
        "steps": options.steps,
        "pairs": options.pairs,
        "side": SIDE,
        "scenes": SCENES,
        "few": FEW,
        "camera loss of the true cameras": camera_loss_of_the_truth(held_out),
        "one depth of NaN: share of gradients that are NaN": gradients_that_are_nan(held_out[0]),
        "evaluation of the dense nano": {name: score(dense, held_out, name) for name in ("da3", "da3-as-released")},
        "pictures of the dense nano": {
            "normalised": score(dense, held_out),
            "raw": score(dense, held_out, raw=True),
        },
        "untrained student": score(
            InFirstView(student_of(lean3r.load("nano"), resolve_plan("lite3r:rounding=none"))), held_out
        ),
    }
    runs: dict[str, list[object]] = {"corrected": [], "as-released": [], "test scenes are training scenes": []}
    for seed in range(options.seeds):
        scenes = pairs(500 + seed, SCENES)
        for form in ("corrected", "as-released"):
            runs[form].append(score(train(form, seed, options.steps, scenes), held_out))
        few = scenes[:FEW]
        model = train("corrected", seed, options.steps, few)
        runs["test scenes are training scenes"].append(
            {"dense, its scenes": score(dense, few), "its scenes": score(model, few), "others": score(model, held_out)}
        )
        print(seed, {name: rows[-1] for name, rows in runs.items()}, flush=True)
        write_result("lite3r_errors", result | {"trained, by seed": runs} | {"hardware": hardware()})


if __name__ == "__main__":
    main()
