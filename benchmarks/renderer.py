"""How fast is the synthetic world rendered? Views per second, uncompiled and compiled, by picture size.

    python benchmarks/renderer.py [--device cpu|cuda] [--seconds 5] [--threads N] [--modes eager compiled]

First every kind of scene is checked: points of one view, projected into another, must meet the surface that the
other view shows there. Writes benchmarks/results/renderer_<device>.json; `views_per_cpu_s` counts the seconds of
all threads of this process, and is therefore meaningful on a busy machine too.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace

import torch
from common import hardware, write_result

from lean3r.data.base import SceneBatch
from lean3r.data.world.synthetic import SyntheticWorld

KINDS = ("room", "arena", "facade", "terrain")
SIZES = ((64, 64), (112, 112), (240, 208))
VIEWS = 4


def agreement(batch: SceneBatch) -> float:
    """Share of the visible points of each view whose depth in the next view agrees within 1 %."""
    depth, camera, pose = batch.depth.double(), batch.intrinsics.double(), batch.cam_from_world.double()
    assert batch.normals is not None
    h, w = depth.shape[-2:]
    rows, columns = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
    pixels = torch.stack((columns, rows, torch.ones(h, w)), -1).view(-1, 3).to(depth)
    local = (pixels @ camera.inverse().transpose(-1, -2)) * depth.flatten(2).unsqueeze(-1)
    points = torch.cat((local, torch.ones_like(local[..., :1])), -1) @ pose.inverse().transpose(-1, -2)
    seen = (points @ pose.roll(-1, 1).transpose(-1, -2))[..., :3]
    z = seen[..., 2].clamp_min(1e-6)
    pixel = (seen @ camera.roll(-1, 1).transpose(-1, -2))[..., :2] / z.unsqueeze(-1)
    column, row = pixel.floor().long().unbind(-1)
    inside = (seen[..., 2] > 0) & (column >= 0) & (row >= 0) & (column < w) & (row < h) & (depth.flatten(2) > 0)
    at = (row * w + column).where(inside, torch.zeros_like(row))
    there = depth.roll(-1, 1).flatten(2).gather(2, at)
    normal = batch.normals.double().roll(-1, 1).flatten(3).transpose(2, 3)
    normal = normal.gather(2, at.unsqueeze(-1).expand(-1, -1, -1, 3))
    inverse = camera.roll(-1, 1).inverse().transpose(-1, -2)
    middle = pixels[at] @ inverse
    exact = torch.cat((pixel, torch.ones_like(pixel[..., :1])), -1) @ inverse
    # The surface of the nearest pixel, continued as a plane to the exact position.
    plane = there * (normal * middle).sum(-1) / (normal * exact).sum(-1).clamp_max(-1e-6)
    visible = inside & (there > 0) & ((z / there.clamp_min(1e-6) - 1).abs() < 0.06)
    return float((visible & ((plane / z - 1).abs() < 0.01)).sum() / visible.sum())


def speed(world: SyntheticWorld, scenes: int, seconds: float) -> dict:
    """Seconds of the first batch, then views per second."""

    def finish() -> None:
        if world.device == "cuda":
            torch.cuda.synchronize()

    start = time.perf_counter()
    world.batch(0, scenes)
    finish()
    first, count = time.perf_counter() - start, 0
    start, busy = time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds or count < 2:
        count += 1
        world.batch(count, scenes)
        finish()
    views = count * scenes * world.views
    return {
        "views_per_s": round(views / (time.perf_counter() - start), 1),
        "views_per_cpu_s": round(views / (time.process_time() - busy), 1),
        "first_batch_s": round(first, 2),
        "batches": count,
        "views_per_batch": scenes * world.views,
    }


def main() -> None:
    """Check, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--modes", nargs="+", default=["eager", "compiled"], choices=["eager", "compiled"])
    parser.add_argument("--textures", default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    base = SyntheticWorld(views=VIEWS, device=arguments.device, textures=arguments.textures)

    agree = {}
    for kind in KINDS:
        world = replace(base, height=96, width=128, distortion=0.0, **{k: float(k == kind) for k in KINDS})
        agree[kind] = round(agreement(world.batch(0, 8)), 4)
        assert agree[kind] >= 0.95, f"{kind}: {agree[kind]} of the visible points agree, 0.95 expected"
    print("agree across views:", agree)

    rows = []
    for mode in arguments.modes:
        for height, width in SIZES:
            for kind, share in (("without terrain", 0.0), ("terrain", 1.0)):
                weights = {"room": 0.45, "arena": 0.2, "facade": 0.15} if share == 0 else dict.fromkeys(KINDS[:3], 0.0)
                world = replace(base, height=height, width=width, compile=mode == "compiled", terrain=share, **weights)
                pixels = 1 << (18 if arguments.device == "cpu" else 23)
                scenes = max(1, pixels // (VIEWS * height * width))
                figures = speed(world, scenes, arguments.seconds)
                rows.append({"mode": mode, "size": f"{height}x{width}", "scenes": kind, **figures})
                print(rows[-1], flush=True)
    # Other work on the machine shows in the load; figures count fully only where it is near the number of threads.
    result = {"hardware": hardware(), "load": os.getloadavg()[1], "agreement": agree, "speed": rows}
    write_result(f"renderer_{arguments.device}", result)


if __name__ == "__main__":
    main()
