"""Streams: error, speed and memory on a walk, the law of joins, memory on a long stream, a camera at rest.

    python benchmarks/stream.py [--video ../shared/data/video] [--only walk join long still] [--long 500 2000 5000]

The walk is `lean3r stream` in a process of its own, the whole command timed, with refinement and without; errors are
those of the positions of all frames whose cameras are certain, after one similarity, in centimetres, and of their
motion from frame to frame. The other rows need no data: windows with a known similarity, 20 % outlier pixels and one
wrong pose; a model that knows the answer, so that what is measured is the stream's own memory. Writes
benchmarks/results/stream.json again after each.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, hardware, write_result

import lean3r
from lean3r.geometry.align import umeyama
from lean3r.inputs.trajectory import Trajectory, read_trajectory
from lean3r.pipeline.memory import used_bytes
from lean3r.stream import sim3
from lean3r.stream.join import join

sys.path.insert(0, str(ROOT / "tests" / "stream"))
from test_join import window_pair
from walk import Knows, frame, walk

PROGRAM = (sys.executable, "-P", "-m", "lean3r")
WALKS = {
    "not refined": ["--refine", "off"],
    "refined": [],
    "refined, known intrinsics": ["--intrinsics", "CAMERA"],
}
SEEDS = 100
CPU = torch.device("cpu")


def of_walk(video: Path, options: list[str], truth: Trajectory) -> dict[str, Any]:
    """One run of the command and its figures."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        camera = json.loads((video / "office_walk_camera.json").read_text())
        four = ",".join(str(camera[key]) for key in ("fx", "fy", "cx", "cy"))
        given = [four if option == "CAMERA" else option for option in options]
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        command = [*PROGRAM, "stream", str(video / "office_walk.mp4"), "-o", str(out), "--json", *given]
        done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        from lean3r.stream.store import FRAMES, RECORD, flags_of

        records = np.fromfile(out / FRAMES, RECORD)
        found = read_trajectory(out / "trajectory_tum.txt")
    sure = np.array([not flags_of(int(bits)) & {"uncertain", "lost"} for bits in records["flags"]])
    tracked = np.stack([np.linalg.inv(truth.at(time_s)) for time_s in found.times_s])
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "options": options,
        **{name: done[name] for name in ("frames", "keyframes", "windows", "uncertain", "delay_s", "peak_memory_mb")},
        **errors(found.world_from_cam[sure], tracked[sure]),
        "all_frames": errors(found.world_from_cam, tracked),
        "wall_s": round(wall, 1),
        "cpu_s": round(cpu, 1),
    }


def errors(found: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """ATE (root mean square, median, largest) and RPE from frame to frame of cameras world_from_cam [N, 4, 4]."""
    fit = umeyama(torch.from_numpy(found[:, :3, 3].copy()), torch.from_numpy(true[:, :3, 3].copy()))
    moved = fit.apply(torch.from_numpy(found[:, :3, 3].copy())).numpy()
    off = 100 * np.linalg.norm(moved - true[:, :3, 3], axis=1)
    scale = float(fit.scale)
    steps = [np.linalg.inv(poses[:-1]) @ poses[1:] for poses in (found, true)]
    shift = 100 * np.linalg.norm(scale * steps[0][:, :3, 3] - steps[1][:, :3, 3], axis=1)
    turn = sim3.angle_rad(steps[0][:, :3, :3].transpose(0, 2, 1) @ steps[1][:, :3, :3])
    return {
        "ate_cm": round(float(np.sqrt((off**2).mean())), 2),
        "median_cm": round(float(np.median(off)), 2),
        "max_cm": round(float(off.max()), 1),
        "rpe_cm": round(float(np.sqrt((shift**2).mean())), 2),
        "rpe_deg": round(float(np.rad2deg(np.sqrt((turn**2).mean()))), 3),
    }


def of_joins() -> dict[str, Any]:
    """Errors of joins over many pairs of windows."""
    scales, angles, seconds, good = [], [], [], 0
    for seed in range(SEEDS):
        shared, truth = window_pair(seed)
        start = time.perf_counter()
        found = join(shared)
        seconds.append(time.perf_counter() - start)
        assert found is not None
        scale, rotation, _ = sim3.parts(found.matrix @ np.linalg.inv(truth))
        scales.append(100 * abs(np.log(scale)))
        angles.append(float(np.rad2deg(sim3.angle_rad(rotation))))
        good += found.is_good
    return {
        "pairs": SEEDS,
        "outliers": 0.2,
        "frames": 8,
        "wrong_poses": 1,
        "scale_percent": {"median": float(np.median(scales)), "max": max(scales)},
        "rotation_deg": {"median": float(np.median(angles)), "max": max(angles)},
        "found_sound": good,
        "ms": 1000 * float(np.median(seconds)),
    }


def of_long(numbers: list[int]) -> list[dict[str, Any]]:
    """Memory of a stream that goes to and fro before a wall, after so many frames; nothing is stored."""
    options = lean3r.StreamOptions(window=8, overlap=3)
    points = lean3r.PointOptions(max_points=20_000)
    there = [image for _, image in walk(200)]
    order = [*range(200), *range(198, 0, -1)]
    source = ((i / 10, there[order[i % len(order)]]) for i in range(max(numbers)))
    stream = lean3r.stream(Knows(), source, options=options, refine="off", points=points)
    rows = []
    for each in stream:
        if each.index + 1 in numbers:
            gc.collect()
            figures = stream.figures
            kept = ("frames", "keyframes", "windows", "held_mb")
            rows.append({**{key: figures[key] for key in kept}, "process_mb": round(used_bytes(CPU) / 1e6, 1)})
    return rows


def of_rest(frames: int = 5000) -> dict[str, Any]:
    """A camera that rests: keyframes, drift, and memory early and late."""
    still = frame(0.5)
    options = lean3r.StreamOptions(window=8, overlap=3)
    stream = lean3r.stream(Knows(), ((i / 30, still) for i in range(frames)), options=options, refine="off")
    held, drift = {}, 0.0
    for each in stream:
        if each.index in (1000, frames - 1):
            held[each.index + 1] = stream.figures["held_mb"]
        drift = max(drift, float(np.abs(each.cam_from_world - np.eye(4)).max()))
    return {"frames": frames, "keyframes": stream.keyframes, "drift": drift, "held_mb": held}


def main() -> None:
    """Measure the chosen parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, default=Path("../shared/data/video"))
    parser.add_argument("--only", nargs="*", choices=("walk", "join", "long", "still"))
    parser.add_argument("--long", nargs="*", type=int, default=[500, 2000, 5000])
    args = parser.parse_args()
    path = ROOT / "benchmarks" / "results" / "stream.json"
    done: dict[str, Any] = json.loads(path.read_text()) if args.only and path.exists() else {}

    def keep(name: str, value: Any) -> None:
        done[name] = value
        print(name, json.dumps(value), flush=True)
        at = {"hardware": hardware(), "load": [round(load, 2) for load in os.getloadavg()]}
        write_result("stream", {**done, **at})

    chosen = args.only or ("join", "still", "long", "walk")
    if "join" in chosen:
        keep("join", of_joins())
    if "still" in chosen:
        keep("still", of_rest())
    if "long" in chosen:
        keep("long", of_long(args.long))
    if "walk" in chosen:
        truth = read_trajectory(args.video / "office_walk_poses_tum.txt")
        for name, options in WALKS.items():
            keep("walk", {**done.get("walk", {}), name: of_walk(args.video, options, truth)})


if __name__ == "__main__":
    main()
