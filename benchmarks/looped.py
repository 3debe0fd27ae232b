"""One shared pair of blocks, looped, against nano's unshared trunk: both trained from scratch for equal CPU time.

    python benchmarks/looped.py [--minutes 20] [--work runs/looped] [--scenes 200]

Trains nano and nano-looped in turn with the same recipe (half-size pictures of 64 x 64 pixels, no guided head), each
for so many minutes of one core, without the rendering of scenes. The learning rate is constant and falls in the last
quarter, so a stopped run can continue from its last checkpoint with other --minutes. Then scores both on held-out
scenes at 1 to 12 loops: cameras by AUC, depth by AbsRel at patch centres; parameters; time. Writes
benchmarks/results/looped.json and docs/images/looped.png.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, hardware, write_result

from lean3r.data.base import SceneBatch
from lean3r.data.world.synthetic import SyntheticWorld
from lean3r.eval.synthetic import score_scenes
from lean3r.models import MODELS
from lean3r.models.nano import Nano
from lean3r.models.nano_looped import NanoLooped
from lean3r.train.losses.looped import looped_loss, loops_at
from lean3r.train.losses.nano import nano_loss
from lean3r.train.optim import Ema, GradientBuffer, Optimizer
from lean3r.train.recipes import HELD_OUT_SEED
from lean3r.train.recipes import nano as nano_recipe
from lean3r.types import Prediction, Views

SIDE = 64
VIEWS = (2, 4, 2, 8, 3)
VIEWS_PER_STEP = 32
TURN = 40.0  # CPU seconds of one model, then a checkpoint and the other model's turn
WARM_UP, DECAY_FROM = 20.0, 0.75  # CPU seconds; share of the budget
LOOPS = (1, 2, 3, 4, 5, 6, 7, 8, 12)
TRAINED = (1, 5)
FIGURES = ("auc5", "auc15", "auc30", "rotation_deg", "translation_deg", "abs_rel", "focal")


class Timed(Optimizer):
    """Learning rates by the time used instead of the step."""

    share = 0.0  # of the peak rate

    def factor(self, step: int) -> float:
        """See Optimizer.factor."""
        return self.share


class Training:
    """One model in training; `used` of its `budget` of CPU seconds are spent."""

    def __init__(self, name: str, budget: float, folder: Path):
        torch.manual_seed(1)
        self.name, self.budget, self.path = name, budget, folder / f"{name}.pt"
        self.model: Any = MODELS.get(name)()
        self.model.upsampler.requires_grad_(False)
        optim = nano_recipe().phases[0].optim
        self.optimizer = Timed(self.model, optim, 1)
        self.clip = optim.clip_norm
        self.ema = Ema(self.model, optim.ema_decay)
        self.gradients = GradientBuffer(self.model.parameters())
        self.used, self.step = 0.0, 0
        self.log: list[list[float]] = []
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.ema.model.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.used, self.step, self.log = state["used"], state["step"], state["log"]
            if self.used > DECAY_FROM * min(budget, state["budget"]) and budget != state["budget"]:
                raise SystemExit(
                    f"{self.path} is past the constant part of its {state['budget']} s; use the same --minutes"
                )

    def save(self) -> None:
        """Write everything that `__init__` reads, or keep the old file."""
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **{key: getattr(self, key) for key in ("used", "step", "log", "budget")},
        }
        new = self.path.with_suffix(".new")
        torch.save(state, new)
        new.replace(self.path)

    def turn(self, world: SyntheticWorld) -> None:
        """Train for a while, at most until the budget is spent, and write a checkpoint."""
        until = min(self.used + TURN, self.budget)
        while self.used < until:
            views = VIEWS[self.step % len(VIEWS)]
            batch = world.batch(self.step, VIEWS_PER_STEP // views, views=views, height=SIDE, width=SIDE)
            started = time.process_time()
            left = 1 - self.used / self.budget
            self.optimizer.share = min(1.0, (self.used + 0.1) / WARM_UP, left / (1 - DECAY_FROM))
            self.gradients.zero()
            with torch.autocast("cpu", torch.bfloat16):
                if isinstance(self.model, NanoLooped):
                    loss, parts = looped_loss(self.model, batch, float(self.step), least=TRAINED[0], most=TRAINED[1])
                else:
                    loss, parts = nano_loss(self.model, batch)
            loss.backward()
            norm = float(self.gradients.norm())
            if math.isfinite(norm):
                self.gradients.clip(norm, self.clip)
                self.optimizer.step(self.step)
                self.ema.update(self.step)
            self.step += 1
            self.used += time.process_time() - started
            if self.step % 50 == 0:
                row = [self.step, self.used, float(loss.detach()), float(parts["rotation"]), float(parts["depth"])]
                self.log.append([round(v, 4) for v in row])
                print(self.name, *self.log[-1], flush=True)
        self.save()


def predict_coarse(model: Nano):
    """What the trunk predicts from half-size pictures: cameras, and depth at patch centres [B, S, rows, cols]."""

    def call(views: Views) -> Prediction:
        with torch.inference_mode():
            found = model.iterate(views.images)
            last = found.estimates[-1]
        focal = last.cameras.log_focal.exp() * found.frame.side
        intrinsics = torch.eye(3).repeat(*focal.shape, 1, 1)
        intrinsics[..., 0, 0] = intrinsics[..., 1, 1] = focal
        depth = last.log_depth.unflatten(-1, (found.layout.rows, found.layout.cols)).exp()
        return Prediction(last.cam_from_world, intrinsics, depth, None)

    return call


def held_out(views: int, scenes: int) -> list[SceneBatch]:
    """Scenes that no recipe trains on; depth at the centres of patches of 8 pixels."""
    world, each = SyntheticWorld(seed=HELD_OUT_SEED), 10
    batches = [world.batch(i, each, views=views, height=SIDE, width=SIDE) for i in range(-(-scenes // each))]
    return [replace(b, depth=b.depth[..., 4::8, 4::8].contiguous(), normals=None) for b in batches]


def constant(views: Views) -> Prediction:
    """No rotation, one direction of motion, one depth: a prediction without looking at the pictures."""
    batch, count, _, height, width = views.images.shape
    poses = torch.eye(4).repeat(batch, count, 1, 1)
    poses[..., 0, 3] = -torch.arange(count)
    intrinsics = torch.diag(torch.tensor([0.9 * SIDE, 0.9 * SIDE, 1.0])).repeat(batch, count, 1, 1)
    return Prediction(poses, intrinsics, torch.ones(batch, count, height // 8, width // 8), None)


def seconds(call, repeats: int = 7) -> float:
    """Median time of a call, after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def judge(models: dict[str, Nano], scenes: int) -> dict[str, Any]:
    """Scores and times of both models, by views and loops."""
    pictures = torch.rand(1, 8, 3, 120, 120)
    rows: dict[str, Any] = {"constant": {}, "nano": {}, "nano-looped": {str(k): {} for k in LOOPS}, "seconds": {}}
    for views in (2, 8):
        batches = held_out(views, scenes)
        rows["constant"][str(views)] = select_figures(score_scenes(constant, batches))
        rows["nano"][str(views)] = select_figures(score_scenes(predict_coarse(models["nano"]), batches))
        print(views, "views, nano", rows["nano"][str(views)], flush=True)
        looped = models["nano-looped"]
        assert isinstance(looped, NanoLooped)
        for loops in LOOPS:
            looped.loops = loops
            rows["nano-looped"][str(loops)][str(views)] = select_figures(score_scenes(predict_coarse(looped), batches))
            print(views, "views,", loops, "loops", rows["nano-looped"][str(loops)][str(views)], flush=True)
    with torch.inference_mode():
        rows["seconds"]["nano"] = seconds(lambda: models["nano"].iterate(pictures))
        for loops in LOOPS:
            looped.loops = loops
            rows["seconds"][str(loops)] = seconds(lambda: looped.iterate(pictures))
    return rows


def select_figures(figures: dict[str, float]) -> dict[str, float]:
    """The figures that are kept."""
    return {name: round(figures[name], 3) for name in FIGURES}


def check() -> None:
    """One loop of the shared pair, whose factors are 1 at first, is an ordinary pair of blocks; and draws repeat."""
    torch.manual_seed(0)
    looped = NanoLooped().eval()
    plain = Nano(replace(Nano.SIZES["nano"], pairs=1)).eval()
    plain.load_state_dict({k: v for k, v in looped.state_dict().items() if k in plain.state_dict()})
    looped.loops, pictures = 1, torch.rand(1, 3, 3, SIDE, SIDE)
    with torch.inference_mode():
        ours, theirs = looped.iterate(pictures), plain.iterate(pictures)
    assert torch.equal(ours.tokens, theirs.tokens) and torch.equal(
        ours.estimates[0].log_depth, theirs.estimates[0].log_depth
    )
    assert {loops_at(i / 999, *TRAINED) for i in range(999)} == set(range(TRAINED[0], TRAINED[1] + 1))


def draw(result: dict[str, Any], path: Path) -> None:
    """AUC@30 and AbsRel by loops; nano's as level lines."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5))
    for axis, key, title in zip(axes, ("auc30", "abs_rel"), ("AUC@30 of poses, %", "AbsRel of depth, %"), strict=True):
        for views, colour in (("2", "tab:blue"), ("8", "tab:orange")):
            line = [result["nano-looped"][str(k)][views][key] for k in LOOPS]
            axis.plot(LOOPS, line, "o-", color=colour, label=f"looped, {views} views")
            axis.axhline(result["nano"][views][key], color=colour, ls="--", label=f"three own pairs, {views} views")
        axis.axvspan(*TRAINED, color="0.92", zorder=0)
        axis.set(xlabel="loops (grey: trained with)", title=title)
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Check, train, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--work", type=Path, default=Path("runs/looped"))
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--compile", action="store_true", help="compile the renderer of scenes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    check()
    options.work.mkdir(parents=True, exist_ok=True)
    world = SyntheticWorld(seed=7, compile=options.compile)
    runs = {name: Training(name, 60 * options.minutes, options.work) for name in ("nano", "nano-looped")}
    while any(run.used < run.budget for run in runs.values()):
        min(runs.values(), key=lambda run: run.used).turn(world)
    models: dict[str, Any] = {name: run.ema.model.eval() for name, run in runs.items()}
    training = {}
    for name, run in runs.items():
        parts = [p.numel() for n, p in models[name].named_parameters() if not n.startswith("upsampler.")]
        blocks = sum(p.numel() for p in models[name].trunk.parameters())
        training[name] = {"steps": run.step, "cpu_seconds": round(run.used, 1), "parameters": sum(parts)}
        training[name] |= {"trunk_parameters": blocks, "log": run.log[:: max(1, len(run.log) // 40)]}
    result: dict[str, Any] = {"hardware": hardware(), "minutes": options.minutes, "trained_loops": TRAINED}
    result |= {"scenes": options.scenes, "side": SIDE, "training": training} | judge(models, options.scenes)
    draw(result, RESULTS.parents[1] / "docs" / "images" / "looped.png")
    print(write_result("looped", result))


if __name__ == "__main__":
    main()
