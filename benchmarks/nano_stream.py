"""nano-stream: trained from nano's weights on rendered walks, then judged against nano.

    python benchmarks/nano_stream.py --train --minutes 45  # one core; a stopped run goes on
    python benchmarks/nano_stream.py [--weights FILE] [--video ../shared/data/video] [--clips 24]

Training: clips of 6 to 16 frames in the order of a walk, half-size pictures of about 100 pixels, later full-size ones
of about 180 with the guided head; nano's own loss against the truth of the rendered world, with a window that changes
from step to step. The learning rate falls in the last quarter of the time. Judging: held-out clips (cameras, depth),
the walk through the stream command, frames a second, bytes. Writes benchmarks/results/nano_stream.json.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from common import hardware, write_result

import lean3r
from lean3r.data.base import SceneBatch
from lean3r.data.world.synthetic import HELD_OUT_SEED, SyntheticWorld
from lean3r.eval.synthetic import score_scenes
from lean3r.models.base import Backbone
from lean3r.models.nano_stream import NanoStream
from lean3r.train.losses.streamed import in_walking_order, streamed_loss
from lean3r.train.optim import Ema, GradientBuffer, Optimizer
from lean3r.train.recipes import nano as nano_recipe
from lean3r.types import Views

STEPS = (  # views, scenes, height, width of half-size pictures: a cycle of steps
    (8, 3, 96, 96),
    (6, 3, 88, 120),
    (12, 2, 80, 104),
    (8, 2, 120, 120),
    (16, 1, 96, 96),
    (8, 3, 104, 80),
)
DETAIL = ((8, 2, 192, 192), (6, 2, 160, 224), (12, 1, 192, 160))  # the same of full-size pictures
DETAIL_FROM, DECAY_FROM, WARM_UP, SAVE = 0.7, 0.75, 60.0, 120.0  # shares of the time; seconds
FIGURES = ("auc5", "auc15", "auc30", "rotation_deg", "translation_deg", "abs_rel", "focal")


class Timed(Optimizer):
    """Learning rates by the time used instead of the step."""

    share = 0.0

    def factor(self, step: int) -> float:
        """See Optimizer.factor."""
        return self.share


def start() -> NanoStream:
    """nano's weights, and nothing learned yet."""
    model = NanoStream()
    missing, extra = model.load_state_dict(lean3r.load("nano", device="cpu").state_dict(), strict=False)
    assert all(name.startswith(("anchor", "told")) for name in missing) and not extra
    return model


def train(folder: Path, minutes: float) -> None:
    """Train for so many minutes in all, and write a checkpoint every two."""
    torch.set_num_threads(1)
    torch.manual_seed(3)
    folder.mkdir(parents=True, exist_ok=True)
    path, budget = folder / "state.pt", 60 * minutes
    model, optim = start(), nano_recipe().phases[1].optim
    optimizer, ema = Timed(model, optim, 1), Ema(model, optim.ema_decay)
    gradients = GradientBuffer(model.parameters())
    used, step = 0.0, 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        ema.model.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        used, step = state["used"], state["step"]
    world, saved = SyntheticWorld(seed=211), used
    while used < budget:
        begun = time.perf_counter()
        full = float(used > DETAIL_FROM * budget)
        kinds = DETAIL if full else STEPS
        views, scenes, height, width = kinds[step % len(kinds)]
        batch = world.batch(step, scenes, views=views, height=height, width=width)
        if step % 5:
            batch = in_walking_order(batch)
        optimizer.share = min(1.0, (used + 1) / WARM_UP, (1 - used / budget) / (1 - DECAY_FROM))
        gradients.zero()
        with torch.autocast("cpu", torch.bfloat16):
            loss, parts = streamed_loss(model, batch, float(step), full=full)
        loss.backward()
        norm = float(gradients.norm())
        if math.isfinite(norm):
            gradients.clip(norm, optim.clip_norm)
            optimizer.step(step)
            ema.update(step)
        step += 1
        used += time.perf_counter() - begun
        if step % 20 == 0:
            shown = {k: round(float(v), 3) for k, v in parts.items()}
            print(step, round(used), round(float(loss.detach()), 3), json.dumps(shown), flush=True)
        if used - saved > SAVE or used >= budget:
            saved = used
            state = {"model": model.state_dict(), "ema": ema.model.state_dict(), "used": used, "step": step}
            torch.save(state | {"optimizer": optimizer.state_dict()}, path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)


def held_out(views: int, clips: int, side: int = 240) -> list[SceneBatch]:
    """Walks that no training sees."""
    world = SyntheticWorld(seed=HELD_OUT_SEED)
    batches = [world.batch(index, 2, views=views, height=side, width=side) for index in range(-(-clips // 2))]
    return [in_walking_order(batch) for batch in batches]


def judge(model: Backbone, batches: list[SceneBatch]) -> dict[str, float]:
    """Cameras and depth of whole clips."""

    def predict(views: Views) -> Any:
        with torch.inference_mode():
            return model(views)

    figures = score_scenes(predict, batches)
    return {name: round(figures[name], 3) for name in FIGURES}


def trained(folder: Path) -> NanoStream:
    """The averaged weights of a training so far."""
    model = NanoStream()
    model.load_state_dict(torch.load(folder / "state.pt", weights_only=True)["ema"])
    return model.eval()


def main() -> None:
    """Train, or judge and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--minutes", type=float, default=45.0)
    parser.add_argument("--work", type=Path, default=Path("runs/nano_stream"))
    parser.add_argument("--clips", type=int, default=24)
    args = parser.parse_args()
    if args.train:
        train(args.work, args.minutes)
        return
    models: dict[str, Backbone] = {"nano": lean3r.load("nano", device="cpu"), "nano's weights, causal": start().eval()}
    if (args.work / "state.pt").exists():
        models["nano-stream"] = trained(args.work)
    clips: dict[str, Any] = {}
    for views in (4, 8, 16):
        batches = held_out(views, args.clips)
        clips[str(views)] = {name: judge(model, batches) for name, model in models.items()}
        print(views, json.dumps(clips[str(views)], indent=1), flush=True)
    print(write_result("nano_stream", {"hardware": hardware(), "clips": args.clips, "by_views": clips}))


if __name__ == "__main__":
    main()
