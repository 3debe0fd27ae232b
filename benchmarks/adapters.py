"""Does the gradient probe choose better blocks for adapters than a random draw?

    python benchmarks/adapters.py [--steps 150] [--scenes 80]

nano with its shipped weights is fine-tuned, by adapters in 3 of its 7 trunk blocks only, on unfamiliar scenes: facades
and terrain, in grey negatives. The blocks are those with the highest scores (the 3 highest, and the 3 highest after
division by the root of their size), the last 3, every second, or 3 at random (5 draws); all 7 for comparison. Same
scenes, steps and number of adapters. Writes benchmarks/results/adapters.json: held-out error, share of parameters, time
and bytes kept for the backward pass.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from dataclasses import replace
from typing import Any

import torch
from common import hardware, write_result
from looped import predict_coarse
from torch import Tensor

import lean3r
from lean3r.data.base import SceneBatch
from lean3r.data.world.synthetic import SyntheticWorld
from lean3r.eval.synthetic import score_scenes
from lean3r.models.base import Backbone
from lean3r.train.lora import add_lora, merge_lora
from lean3r.train.losses.nano import nano_loss
from lean3r.train.probe import BATCHES, Score, gradient_scores, report, strongest
from lean3r.train.recipes import HELD_OUT_SEED

SIDE = 64
WORLD = SyntheticWorld(seed=11, room=0.0, arena=0.0, facade=0.5, terrain=0.5)
CHOSEN, DRAWS = 3, 5
RANK, ALPHA, LR = 8, 16.0, 3e-3


def scene(world: SyntheticWorld, index: int, views: int, each: int) -> SceneBatch:
    """A batch of `each` scenes as grey negatives."""
    batch = world.batch(index, each, views=views, height=SIDE, width=SIDE)
    grey = 1 - batch.images.mean(2, keepdim=True)
    return replace(batch, images=grey.expand_as(batch.images).contiguous(), normals=None)


def loss_of(model: Any, batch: SceneBatch) -> Tensor:
    """nano's objective, without its parts."""
    return nano_loss(model, batch)[0]


def judge(model: Any, batches: list[SceneBatch]) -> dict[str, float]:
    """Held-out loss, and cameras and depth at patch centres."""
    loss = statistics.mean(float(loss_of(model, batch).detach()) for batch in batches)
    coarse = [replace(b, depth=b.depth[..., 4::8, 4::8].contiguous()) for b in batches]
    figures = score_scenes(predict_coarse(model), coarse)
    return {"loss": round(loss, 4)} | {k: round(figures[k], 2) for k in ("auc15", "auc30", "abs_rel")}


def kept_bytes(model: Any, batch: SceneBatch) -> int:
    """Bytes that a forward pass keeps for the backward pass, each storage once, parameters not counted."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_of(model, batch)
    del loss
    return sum(seen.values())


def tune(targets: list[str], train: list[SceneBatch], test: list[SceneBatch]) -> dict[str, Any]:
    """Fine-tune by adapters on these blocks; returns the cost and the result."""
    model: Backbone = lean3r.load("nano", device="cpu").train()
    torch.manual_seed(0)
    names = add_lora(model, targets, rank=RANK, alpha=ALPHA)
    own = [p for p in model.parameters() if p.requires_grad]
    share = sum(p.numel() for p in own) / model.parameter_count
    optimizer = torch.optim.AdamW(own, lr=LR, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(train))
    times = []
    for batch in train:
        started = time.process_time()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(own, 1.0)
        optimizer.step()
        schedule.step()
        times.append(time.process_time() - started)
    memory = kept_bytes(model, train[0])
    merge_lora(model)
    row = {"targets": targets, "layers": len(names), "share_of_parameters": round(share, 5)}
    row |= {"cpu_seconds_a_step": round(statistics.median(times), 4), "kept_mib": round(memory / 2**20, 1)}
    return row | judge(model.eval(), test)


def choices(scores: list[Score]) -> dict[str, list[str]]:
    """Name -> the blocks that get adapters, equally many except for "all"."""
    units = [score.unit for score in scores]
    by_size = [replace(score, score=score.score / score.parameters**0.5) for score in scores]
    share = (CHOSEN + 0.5) / len(units)
    found = {
        "gradient": strongest(scores, share, by_role=False),
        "gradient / sqrt(size)": strongest(by_size, share, by_role=False),
        "last": units[-CHOSEN:],
        "every second": units[1::2][:CHOSEN],
    }
    for draw in range(DRAWS):
        found[f"by lot {draw}"] = sorted(random.Random(draw).sample(units, CHOSEN), key=lambda unit: unit.index)
    found["all"] = units
    return {name: [unit.target for unit in some] for name, some in found.items()}


def check(model: Any, batch: SceneBatch) -> None:
    """Scores do not depend on how many blocks are probed together; merging adapters changes nothing."""
    one, many = (gradient_scores(model, [batch], loss_of, group=group) for group in (1, 8))
    assert all(abs(a.score - b.score) < 1e-3 * b.score for a, b in zip(one, many, strict=True))
    other: Backbone = lean3r.load("nano", device="cpu")
    add_lora(other, ["global blocks"], rank=2)
    for name, parameter in other.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.01)
    before = loss_of(other, batch).detach()
    merge_lora(other)
    assert abs(float(loss_of(other, batch).detach() - before)) < 1e-4


def main() -> None:
    """Check, probe, tune, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--scenes", type=int, default=80)
    options = parser.parse_args()
    torch.set_num_threads(1)
    train = [scene(WORLD, i, (2, 4)[i % 2], (12, 6)[i % 2]) for i in range(options.steps)]
    held_out, other = replace(WORLD, seed=HELD_OUT_SEED), replace(WORLD, seed=5)
    test = [scene(held_out, i, 4, 10) for i in range(-(-options.scenes // 10))]
    model = lean3r.load("nano", device="cpu")
    check(model, test[0])
    scores = gradient_scores(model, [scene(other, i, 4, 1) for i in range(BATCHES)], loss_of)
    result: dict[str, Any] = {"hardware": hardware(), "steps": options.steps, "scenes": options.scenes, "rank": RANK}
    result |= {"probe": report(scores), "none": judge(model, test), "choices": {}}
    print("untouched", result["none"], flush=True)
    known: dict[tuple[str, ...], dict[str, Any]] = {}
    for name, targets in choices(scores).items():
        key = tuple(targets)
        if key not in known:
            known[key] = tune(targets, train, test)
        result["choices"][name] = known[key]
        print(name, known[key], flush=True)
        lots = [row["loss"] for other, row in result["choices"].items() if other.startswith("by lot")]
        if lots:
            result["by_lot_loss"] = {"mean": statistics.mean(lots), "lowest": min(lots), "highest": max(lots)}
        write_result("adapters", result)


if __name__ == "__main__":
    main()
