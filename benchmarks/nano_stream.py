"""nano-stream: trained from nano's weights on rendered walks, then judged against nano.

    python benchmarks/nano_stream.py --train --minutes 45  # one core; a stopped run goes on
    python benchmarks/nano_stream.py --weights runs/nano_stream/nano-stream.safetensors

Training: clips of 6 to 16 frames in the order of a walk, half-size pictures of about 100 pixels, later full-size ones
of about 180 with the guided head; nano's own loss against the truth of the rendered world, with a window that changes
from step to step. The learning rate falls in the last quarter of the time. Judging: held-out clips (cameras, depth),
the walk through the stream command, frames a second, bytes. Writes benchmarks/results/nano_stream.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, hardware, write_result
from stream import errors, of_walk

import lean3r
from lean3r.data.base import SceneBatch
from lean3r.data.world.synthetic import HELD_OUT_SEED, SyntheticWorld
from lean3r.eval.synthetic import score_scenes
from lean3r.geometry.pose import invert_pose
from lean3r.inputs.trajectory import read_trajectory
from lean3r.models.base import Backbone
from lean3r.models.nano_stream import NanoStream
from lean3r.stream.cache import CacheStream, cache_bytes
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
WALK = 32  # frames
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
    print(lean3r.save(trained(folder), folder / "nano-stream.safetensors"))


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


def along(model: Backbone, walks: list[SceneBatch]) -> dict[str, Any]:
    """Position errors of all frames of walks through `lean3r.stream`, refine off, after one similarity each, in per
    cent of the walk's extent (root mean square from its centre)."""
    shares, turns, certain = [], [], []
    for batch in walks:
        pictures = (batch.images[0].permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
        found = list(lean3r.stream(model, ((i / 10, picture) for i, picture in enumerate(pictures)), refine="off"))
        ours = np.stack([np.linalg.inv(each.cam_from_world) for each in found])
        true = invert_pose(batch.cam_from_world[0].double()).numpy()
        extent = 100 * float(np.sqrt(np.square(true[:, :3, 3] - true[:, :3, 3].mean(0)).sum(-1).mean()))
        off = errors(ours, true)
        shares.append(100 * off["ate_cm"] / extent)
        turns.append(off["rpe_deg"])
        certain.append(np.mean([not each.flags & {"uncertain", "lost"} for each in found]))
    names = {"ate_percent": shares, "rpe_deg": turns, "certain": certain}
    return {name: round(float(np.median(values)), 3) for name, values in names.items()} | {"all": shares}


def speed(model: NanoStream, side: int = 240) -> dict[str, Any]:
    """Frames a second once the window is full, on two threads and on one, of the least disturbed of several runs; CPU
    seconds a frame on one thread, which depend less on what else the machine does; bytes of the cache."""
    threads, found = torch.get_num_threads(), dict[str, Any]()
    image = torch.rand(3, side, side)
    for count in (1, 2):
        torch.set_num_threads(count)
        stream = CacheStream(model)
        for _ in range(model.policy.window + 2):
            stream.push(image)
        walls, cpus = [], []
        for _ in range(12):
            begun, used = time.perf_counter(), time.process_time()
            for _ in range(4):
                stream.push(image)
            walls.append((time.perf_counter() - begun) / 4)
            cpus.append((time.process_time() - used) / 4)
        found[f"frames_per_s_{count}"] = round(1 / min(walls), 1)
        if count == 1:
            found["cpu_s"] = round(float(np.median(cpus)), 4)
    torch.set_num_threads(threads)
    return found | {"bytes": cache_bytes(model, model.policy, model.LONGEST, side, side)}


def main() -> None:
    """Train, or judge and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--minutes", type=float, default=45.0)
    parser.add_argument("--work", type=Path, default=Path("runs/nano_stream"))
    parser.add_argument("--weights", type=Path, help="of nano-stream; default: shipped ones")
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--walks", type=int, default=6)
    parser.add_argument("--video", type=Path, default=Path("../shared/data/video"))
    parser.add_argument("--only", nargs="*", default=["clips", "walks", "video", "speed"])
    args = parser.parse_args()
    if args.train:
        train(args.work, args.minutes)
        return
    weights = args.weights
    nano, ours = lean3r.load("nano", device="cpu"), lean3r.load("nano-stream", weights=weights, device="cpu")
    assert isinstance(ours, NanoStream)
    result = read_result()

    def keep(name: str, value: Any) -> None:
        result[name] = value
        print(name, json.dumps(value), flush=True)
        at = {"hardware": hardware(), "load": [round(load, 2) for load in os.getloadavg()]}
        write_result("nano_stream", {**result, **at})

    if (args.work / "state.pt").exists():
        state = torch.load(args.work / "state.pt", weights_only=True)
        keep("training", {"steps": state["step"], "minutes": round(state["used"] / 60, 1)})
    if "clips" in args.only:
        clips: dict[str, Any] = {"number": args.clips}
        for views in (8, 16):
            batches = held_out(views, args.clips)
            models = {"nano": nano, "nano-stream": ours, "nano's weights, causal": start().eval()}
            clips[str(views)] = {name: judge(model, batches) for name, model in models.items()}
        keep("clips", clips)
    if "walks" in args.only:
        world = SyntheticWorld(seed=HELD_OUT_SEED)
        walks = [
            in_walking_order(world.batch(900 + i, 1, views=WALK, height=240, width=240)) for i in range(args.walks)
        ]
        rows = {"nano, windows": along(nano, walks), "nano-stream": along(ours, walks)}
        keep("walks", {"number": args.walks, "frames": WALK, **rows})
    if "video" in args.only:
        truth = read_trajectory(args.video / "office_walk_poses_tum.txt")
        given = ["--model", "nano-stream", *([] if weights is None else ["--weights", str(weights.resolve())])]
        ways = {"nano, windows": ["--refine", "off"], "nano-stream": given}
        found = {name: of_walk(args.video, options, truth) for name, options in ways.items()}
        found["nano-stream"]["options"] = given[:2]
        keep("video", found)
    if "speed" in args.only:
        keep("speed", speed(ours))


def read_result() -> dict[str, Any]:
    """What is measured already."""
    path = RESULTS / "nano_stream.json"
    return json.loads(path.read_text()) if path.exists() else {}


if __name__ == "__main__":
    main()
