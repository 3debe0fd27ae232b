"""Streams: error, speed and memory on walks, the law of joins, memory and time on a long stream, a camera at rest.

    python benchmarks/stream.py [--video ../shared/data/video] [--only walk join ...] [--long 500 5000 20000]
    python benchmarks/stream.py --only rendered --rows "1,000 frames" "10,000 frames" --folder walks

A walk is `lean3r stream` in a process of its own, the whole command timed; errors are those of the positions of all
frames whose cameras are certain, after one similarity, in centimetres, and of their motion from frame to frame. One
walk was taken by a person with a headset that tracks; others are rendered and come back to the same places (walks.py).
In --folder these are kept, and a row that was stopped goes on where it was. The other rows need no data: windows with a
known similarity, 20 % outlier pixels and one wrong pose; and what stream_long.py and stream_kills.py measure. Writes
benchmarks/results/stream.json again after each.
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
from typing import Any, NamedTuple

import numpy as np
from common import ROOT, command, hardware, write_result
from stream_films import FILMED, filmed
from stream_kills import PROGRAM, of_kills
from walks import Scan, Walk, errors, revisits, write

from lean3r.inputs.trajectory import Trajectory, read_trajectory
from lean3r.stream import sim3
from lean3r.stream.join import join

sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "tests" / "stream"))
from stream_long import of_cache, of_long, of_pages, of_rest, of_share
from test_join import window_pair

WALKS = {
    "not refined": ["--refine", "off"],
    "refined": [],
    "refined, known intrinsics": ["--intrinsics", "CAMERA"],
    "keyframes every 9 %": ["--keyframe-step", "0.09"],
    "keyframes every 15 %": ["--keyframe-step", "0.15"],
    "on its side": [],
    "backwards": [],
    "every second frame": [],
    "two takes": [],
    "half size": [],
    "enlarged": [],
    "bent": [],
    "bent, lens known": ["--intrinsics", "LENS"],
}


class Rendered(NamedTuple):
    """A rendered walk: frames, width and height, the options of the command, whether it looks ahead, and its kind."""

    frames: int
    size: tuple[int, int]
    options: list[str]
    looks_ahead: bool = False
    kind: type[Walk] = Walk


RENDERED = {
    "1,000 frames, not refined": Rendered(1000, (320, 240), ["--refine", "off"]),
    "1,000 frames": Rendered(1000, (320, 240), []),
    "1,000 frames, loops off": Rendered(1000, (320, 240), ["--loops", "off"]),
    "400 frames, looking ahead": Rendered(400, (320, 240), [], looks_ahead=True),
    "1,000 frames of a scan": Rendered(1000, (640, 480), [], kind=Scan),
    "10,000 frames, not refined": Rendered(10_000, (192, 144), ["--refine", "off"]),
    "10,000 frames": Rendered(10_000, (192, 144), []),
}
SEEDS = 100
PARTS = ("join", "still", "long", "cache", "pages", "share", "walk", "killed", "rendered")


def of_walk(film: Path, out: Path, options: list[str], truth: Trajectory) -> tuple[dict[str, Any], np.ndarray]:
    """One run of the command, or the rest of one that was stopped: its figures, and world_from_cam of all frames."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    more = ["--resume"] if (out / "stream.json").exists() else []
    command = [*PROGRAM, "stream", str(film), "-o", str(out), "--json", *options, *more]
    done = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    from lean3r.stream.store import FRAMES, RECORD, flags_of

    records = np.fromfile(out / FRAMES, RECORD)
    found = read_trajectory(out / "trajectory_tum.txt")
    sure = np.array([not flags_of(int(bits)) & {"uncertain", "lost"} for bits in records["flags"]])
    tracked = np.stack([np.linalg.inv(truth.at(time_s)) for time_s in found.times_s])
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    figures = {
        **{name: done[name] for name in ("frames", "keyframes", "windows", "uncertain", "delay_s", "peak_memory_mb")},
        **errors(found.world_from_cam[sure], tracked[sure]),
        "all_frames": errors(found.world_from_cam, tracked),
    }
    if not more:  # of a run that was stopped, these would be the times of its rest
        figures |= {"wall_s": round(wall, 1), "cpu_s": round(cpu, 1)}
    return figures, found.world_from_cam


def of_taken(video: Path, name: str) -> dict[str, Any]:
    """A row of the walk that a person took."""
    options = WALKS[name]
    camera = json.loads((video / "office_walk_camera.json").read_text())
    four = ",".join(str(camera[key]) for key in ("fx", "fy", "cx", "cy"))
    truth = read_trajectory(video / "office_walk_poses_tum.txt")
    with tempfile.TemporaryDirectory() as folder:
        film, lens = video / "office_walk.mp4", Path(folder) / "lens.json"
        if name in FILMED:
            taken, film = film, Path(folder) / "walk.mkv"
            truth = filmed(taken, truth, FILMED[name], film, camera)
            lens.write_text(json.dumps(FILMED[name].camera(camera["width"], camera["height"])))
        given = [{"CAMERA": four, "LENS": str(lens)}.get(option, option) for option in options]
        figures, _ = of_walk(film, Path(folder) / "out", given, truth)
    if name in FILMED:  # a row of errors
        figures = {key: value for key, value in figures.items() if key not in ("delay_s", "wall_s", "cpu_s")}
    return {"options": options, **figures}


def of_rendered(row: Rendered, extra: list[str], folder: Path) -> dict[str, Any]:
    """A row of rendered walks: also how well the places agree that the camera comes back to, a round later."""
    walk = row.kind(row.frames, row.size, looks_ahead=row.looks_ahead)
    way = "-ahead" if row.looks_ahead else "-scan" if row.kind is Scan else ""
    home = folder / f"{row.frames}-{row.size[0]}x{row.size[1]}{way}"
    if not (home / "walk_camera.json").exists():
        write(walk, home)
    options = [*row.options, *extra]
    truth = read_trajectory(home / "walk_poses_tum.txt")
    figures, found = of_walk(home / "walk.mp4", home / "_".join(["out", *options]).replace("/", "_"), options, truth)
    rounds, known = {}, truth.world_from_cam
    if walk.round_frames is not None:
        frames = round(walk.round_frames)
        rounds = {"round_frames": frames, "revisits": revisits(found, known, frames)}
    return {
        "options": options,
        "size": list(row.size),
        "extent_cm": round(100 * float(np.linalg.norm(np.ptp(known[:, :3, 3], axis=0)))),
        **figures,
        **rounds,
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


def main() -> None:
    """Measure the chosen parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, default=Path("../shared/data/video"))
    parser.add_argument("--only", nargs="*", choices=PARTS)
    parser.add_argument("--long", nargs="*", type=int, default=[500, 5000, 20_000])
    usual = [*WALKS, *list(RENDERED)[:5]]
    parser.add_argument("--rows", nargs="*", default=usual, choices=[*WALKS, *RENDERED], help="walks, also rendered")
    parser.add_argument("--options", default="", help="more options of the command, for rendered walks")
    parser.add_argument(
        "--folder", type=Path, help="where rendered walks and their results are kept (default: nowhere)"
    )
    args = parser.parse_args()
    path = ROOT / "benchmarks" / "results" / "stream.json"
    done: dict[str, Any] = json.loads(path.read_text()) if args.only and path.exists() else {}

    def keep(name: str, value: Any) -> None:
        done[name] = value
        print(name, json.dumps(value), flush=True)
        at, load = hardware(), [round(load, 2) for load in os.getloadavg()]
        run = {"cpu": at["cpu"], "threads": at["threads"], "load": load, "command": command()}
        done["runs"] = {**done.get("runs", {}), name: run}
        write_result("stream", {**done, "hardware": at, "load": load})

    simple = {
        "join": of_joins,
        "still": of_rest,
        "long": lambda: of_long(args.long),
        "cache": lambda: of_cache(args.long),
        "pages": of_pages,
        "share": of_share,
        "killed": lambda: of_kills(args.video / "office_walk.mp4"),
    }
    for part in args.only or PARTS:
        if part in simple:
            keep(part, simple[part]())
    if "walk" in (args.only or PARTS):
        for name in (name for name in args.rows if name in WALKS):
            keep("walk", {**done.get("walk", {}), name: of_taken(args.video, name)})
    if "rendered" in (args.only or PARTS):
        with tempfile.TemporaryDirectory() as temporary:
            for name in (name for name in args.rows if name in RENDERED):
                row = of_rendered(RENDERED[name], args.options.split(), args.folder or Path(temporary))
                title = " ".join([name, args.options]).strip()
                keep("rendered", {**done.get("rendered", {}), title: row})


if __name__ == "__main__":
    main()
