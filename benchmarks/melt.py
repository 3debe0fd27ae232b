"""MELT in a looped nano for streams: one row of keys and values for all loops, against a cache for each loop.

    python benchmarks/melt.py [--parent 100] [--steps 60] [--clips 40] [--only gated mean ...]

A causal looped nano (one shared pair of blocks, four loops) begins with nano's stem, matcher and first pair, and learns
on rendered walks of six frames of 64 x 64 half-size pixels, in chunks of two frames, with a cache for each loop: the
parent. Every rule of the shared row then begins with the parent's weights and has the same steps: two thirds while keys
and values go from the caches for each loop to the row (alpha from 0 to 1), one third with attention outputs and
estimates drawn to those of the frozen parent (beta 0.1). "per loop" has the same steps with its caches. Gates learn
faster than the rest. Writes benchmarks/results/melt.json.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from common import hardware, write_result
from torch import Tensor

import lean3r
from lean3r.data.base import SceneBatch
from lean3r.data.world.synthetic import HELD_OUT_SEED, SyntheticWorld
from lean3r.eval.synthetic import score_scenes
from lean3r.heads.camera import CameraState
from lean3r.layers.causal import Sight
from lean3r.layers.looped import positions
from lean3r.layers.matching import Peers
from lean3r.layers.melt import LoopMemory, MeltTrunk, Rule, is_gate
from lean3r.models.nano import Estimate, initialise
from lean3r.models.nano_looped import LoopedConfig, NanoLooped
from lean3r.train.losses.nano import estimate_losses
from lean3r.train.losses.streamed import in_walking_order
from lean3r.train.losses.truth import make_target
from lean3r.types import Prediction, TokenLayout, Views

LOOPS, FRAMES, CHUNK, SCENES, SIDE = 4, 6, 2, 4, 64
GLOBAL = 2  # index of the looped global block in the trunk
BETA, RATE, GATE_RATE, DISTIL = 0.1, 2e-4, 5e-3, 1 / 3
RULES: tuple[Rule, ...] = ("gated", "diagonal", "mean", "last", "average")
FIGURES = ("auc15", "auc30", "rotation_deg", "translation_deg", "abs_rel", "focal")


class PastPeers(Peers):
    """The frames of all chunks so far."""

    def __init__(self) -> None:
        self.past: dict[str, Tensor] = {}

    def begin(self, frames: int) -> None:
        """The next chunk."""
        before = next(iter(self.past.values())).shape[1] if self.past else 0
        self.sees = 1 - torch.eye(before + frames)[before:]

    def join(self, name: str, values: Tensor) -> Tensor:
        """See Peers."""
        self.past[name] = torch.cat([self.past[name], values], 1) if name in self.past else values
        return self.past[name]


@dataclass(frozen=True)
class Streamed:
    """Estimates of all frames after each loop, attention outputs by chunk and loop, and what the stream keeps."""

    estimates: list[Estimate]
    outputs: list[Tensor]
    side: Tensor
    grid: tuple[int, int]
    bytes: int


class MeltNano(NanoLooped):
    """nano-looped chunk by chunk, with a memory in its global block."""

    def __init__(self, rule: Rule = "gated"):
        super().__init__(LoopedConfig(loops=LOOPS))
        self.trunk = MeltTrunk(("frame", "frame", "global"), 128, 4, looped_from=1, rule=rule)
        self.trunk.apply(initialise)
        self.memory = LoopMemory()

    def blocks_of_round(self, x: Tensor, layout: TokenLayout, index: int, sight: Sight | None = None) -> Tensor:
        """See Nano.blocks_of_round."""
        assert isinstance(self.trunk, MeltTrunk)
        return self.trunk.pass_with(x, layout, positions(LOOPS)[index], {GLOBAL: self.memory})

    def stream(self, half: Tensor, alpha: float) -> Streamed:
        """Half-size pictures [B, S, 3, h, w] chunk by chunk."""
        self.memory, peers, found, outputs = LoopMemory(alpha), PastPeers(), [], []
        for part in half.split(CHUNK, 1):
            peers.begin(part.shape[1])
            found.append(self.iterate_among(part, peers=peers))
            outputs += self.memory.outputs
            self.memory.end()
        joined = []
        for loop in range(LOOPS):
            each = [f.estimates[loop] for f in found]
            packed = CameraState.unpack(torch.cat([e.cameras.pack() for e in each], 1))
            joined.append(Estimate(packed, torch.cat([e.log_depth for e in each], 1), *packed.poses()))
        layout = found[0].layout
        side = torch.cat([f.frame.side for f in found], 1)
        return Streamed(joined, outputs, side, (layout.rows, layout.cols), self.memory.bytes)


def begin() -> MeltNano:
    """What nano's weights give: everything but loops and gates."""
    torch.manual_seed(2)
    model, known = MeltNano(), lean3r.load("nano", device="cpu").state_dict()
    own = model.state_dict()
    model.load_state_dict({k: known[k] if k in known and known[k].shape == own[k].shape else own[k] for k in own})
    return model


def clip_batch(world: SyntheticWorld, step: int) -> SceneBatch:
    """Walks of one step."""
    return in_walking_order(world.batch(step, SCENES, views=FRAMES, height=SIDE, width=SIDE))


def learn(model: MeltNano, world: SyntheticWorld, steps: int, parent: MeltNano | None, is_row: bool) -> float:
    """Train; seconds of this process. Without a parent: caches for each loop, from nano's weights."""
    rest = [p for n, p in model.named_parameters() if not is_gate(n) and not n.startswith("upsampler")]
    gates = [p for n, p in model.named_parameters() if is_gate(n)]
    rate = 3 * RATE if parent is None else RATE
    optimizer = torch.optim.AdamW([{"params": rest, "lr": rate}, {"params": gates, "lr": GATE_RATE}], weight_decay=0.01)
    rates, started = [group["lr"] for group in optimizer.param_groups], time.process_time()
    turning = steps if parent is None else steps - round(steps * DISTIL)
    first = 0 if parent is None else 100_000  # steps of the world that the parent has not seen
    for step in range(steps):
        batch = clip_batch(world, first + step)
        alpha = min(1.0, (step + 1) / turning) if is_row else 0.0
        share = min(1.0, (step + 1) / 20, (steps - step) / (0.25 * steps))
        for group, peak in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = peak * share
        with torch.autocast("cpu", torch.bfloat16):
            found = model.stream(batch.images, alpha)
        target = make_target(batch, SIDE // found.grid[0], unit_from=1)
        loss, parts = estimate_losses(found.estimates, target)
        if parent is not None and step >= turning:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                wanted = parent.stream(batch.images, 0.0)
            loss = loss + distance(found, wanted)
        optimizer.zero_grad()
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        if math.isfinite(norm):
            optimizer.step()
        if step % 20 == 19:
            shown = {k: round(float(v.detach()), 3) for k, v in parts.items()}
            print(step + 1, round(alpha, 2), round(float(loss.detach()), 3), json.dumps(shown), flush=True)
    return time.process_time() - started


def distance(found: Streamed, wanted: Streamed) -> Tensor:
    """From the parent at all loops: estimates, and BETA times the mean squared distance of attention outputs."""
    aligned = torch.stack(
        [(a.float() - b.float()).square().sum(-1).mean() for a, b in zip(found.outputs, wanted.outputs, strict=True)]
    ).mean()
    kept = torch.zeros(())
    for ours, theirs in zip(found.estimates, wanted.estimates, strict=True):
        kept = kept + (ours.log_depth - theirs.log_depth).abs().mean()
        kept = kept + (ours.cameras.pack() - theirs.cameras.pack()).abs().mean()
    return kept / LOOPS + BETA * aligned


def judge(model: MeltNano, alpha: float, batches: list[SceneBatch]) -> dict[str, float]:
    """Cameras, and depth at patch centres, on held-out walks; bytes that a walk of one scene keeps; seconds."""
    model.eval()
    used: list[float] = []

    def predict(views: Views) -> Prediction:
        started = time.process_time()
        with torch.inference_mode():
            found = model.stream(views.images, alpha)
        used.append(time.process_time() - started)
        last = found.estimates[-1]
        focal = last.cameras.log_focal.exp() * found.side
        intrinsics = torch.eye(3).repeat(*focal.shape, 1, 1)
        intrinsics[..., 0, 0] = intrinsics[..., 1, 1] = focal
        return Prediction(last.cam_from_world, intrinsics, last.log_depth.unflatten(-1, found.grid).exp(), None)

    figures = score_scenes(predict, batches)
    with torch.inference_mode():
        kept = model.stream(batches[0].images[:1], alpha).bytes
    rest = {"bytes": kept, "seconds": round(min(used), 3)}
    return {name: round(figures[name], 3) for name in FIGURES} | rest


def main() -> None:
    """Train the parent, then all rules, and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parent", type=int, default=100)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--only", nargs="*", default=["per loop", *RULES])
    parser.add_argument("--work", type=Path, default=Path("runs/melt"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    world, path = SyntheticWorld(seed=97), args.work / f"parent-{args.parent}.pt"
    parent = begin()
    if path.exists():
        parent.load_state_dict(torch.load(path, weights_only=True))
    else:
        learn(parent, world, args.parent, None, False)
        torch.save(parent.state_dict(), path)
    held = SyntheticWorld(seed=HELD_OUT_SEED)
    batches = [clip_batch(held, i) for i in range(args.clips // SCENES)]
    batches = [replace(b, depth=b.depth[..., 4::8, 4::8].contiguous(), normals=None) for b in batches]
    result: dict[str, Any] = {"hardware": hardware(), "loops": LOOPS, "frames": FRAMES, "chunk": CHUNK, "side": SIDE}
    result |= {"parent_steps": args.parent, "steps": args.steps, "clips": args.clips, "rules": {}}
    result["rules"]["parent"] = judge(parent, 0.0, batches)
    print("parent", result["rules"]["parent"], flush=True)
    for name in args.only:
        is_row = name != "per loop"
        model = MeltNano(name) if is_row else MeltNano()
        model.load_state_dict(
            {k: v for k, v in parent.state_dict().items() if not is_gate(k)} | own_gates(model), strict=True
        )
        used = learn(model, world, args.steps, parent.eval(), is_row)
        row = judge(model, float(is_row), batches) | {"train_seconds": round(used, 1)}
        result["rules"][name] = row
        print(name, row, flush=True)
        write_result("melt", result)


def own_gates(model: MeltNano) -> dict[str, Tensor]:
    """The gates' own first values."""
    return {k: v for k, v in model.state_dict().items() if is_gate(k)}


if __name__ == "__main__":
    main()
