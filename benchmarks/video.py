"""A video with default and other choices of frames: errors of the cameras, and whether bad ones are marked.

    python benchmarks/video.py [--video ../shared/data/video] [--only default every-2]

Every run is `lean3r reconstruct` in a separate process, the whole command timed, one after the other. Writes
benchmarks/results/video.json again after each: positions after one similarity (Umeyama) of all views that are not
marked `uncertain`, in centimetres; how many of those are over 30 cm off; how many are marked; wall-clock and CPU
seconds.
"""

from __future__ import annotations

import argparse
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
from common import hardware, write_result

from lean3r.geometry.align import umeyama
from lean3r.inputs.trajectory import Trajectory, read_trajectory

FAR_CM = 30.0
PROGRAM = (sys.executable, "-P", "-m", "lean3r")


def ways(folder: Path) -> dict[str, list[str]]:
    """The options of each run."""
    camera = str(folder / "office_walk_camera.json")
    return {
        "default": [],
        "known-intrinsics": ["--cameras", camera],
        "every-2": ["--every", "2"],
        "every-3": ["--every", "3"],
        "fps-2.5": ["--fps", "2.5"],
        "every-2-known-intrinsics": ["--every", "2", "--cameras", camera],
        "refine-off": ["--refine", "off"],
    }


def measure(video: Path, options: list[str], truth: Trajectory, out: Path) -> dict[str, Any]:
    """One run and its figures."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([*PROGRAM, "reconstruct", str(video), "-o", str(out), *options], check=True, capture_output=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cameras = json.loads((out / "cameras.json").read_text())["views"]
    manifest = json.loads((out / "manifest.json").read_text())
    return {
        "options": options,
        **figures(cameras, truth),
        "warnings": sorted(told["code"] for told in manifest["warnings"]),
        "wall_s": round(wall, 1),
        "cpu_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
    }


def figures(cameras: list[dict], truth: Trajectory) -> dict[str, Any]:
    """Errors of the views of a cameras.json against tracking."""
    sure = [view for view in cameras if not view["uncertain"]]
    true = [truth.at(view["timestamp_s"]) for view in sure]
    centres = np.array([np.array(view["world_from_cam"])[:3, 3] for view in sure])
    tracked = np.array([-pose[:3, :3].T @ pose[:3, 3] for pose in true if pose is not None])
    found = umeyama(torch.from_numpy(centres), torch.from_numpy(tracked))
    error_cm = 100 * np.linalg.norm(found.apply(torch.from_numpy(centres)).numpy() - tracked, axis=1)
    return {
        "views": len(cameras),
        "uncertain": len(cameras) - len(sure),
        "registrations": sorted({view["registration"] for view in cameras}),
        "median_cm": round(float(np.median(error_cm)), 1),
        "max_cm": round(float(error_cm.max()), 1),
        "over_30_cm": int((error_cm > FAR_CM).sum()),
    }


def main() -> None:
    """Measure the chosen runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, default=Path("../shared/data/video"))
    parser.add_argument("--only", nargs="*")
    args = parser.parse_args()
    truth = read_trajectory(args.video / "office_walk_poses_tum.txt")
    runs: dict[str, Any] = {}
    for name, options in ways(args.video).items():
        if args.only and name not in args.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            runs[name] = measure(args.video / "office_walk.mp4", options, truth, Path(folder) / "out")
        print(name, json.dumps(runs[name]), flush=True)
        at = {"hardware": hardware(), "load": [round(value, 2) for value in os.getloadavg()]}
        write_result("video", {"video": "office_walk.mp4", **at, "runs": runs})


if __name__ == "__main__":
    main()
