"""What does a run cost? Seconds and peak memory of `lean3r reconstruct`, from process start to files on disk.

    python benchmarks/cost.py [--weights FILE] [--runs 5]
    python benchmarks/cost.py --before OTHER/bin/python [--video ../shared/data/video/office_walk.mp4]

Each run is a separate process on synthetic photographs of 1024 x 768 pixels, without refinement. The result is
checked before its figures count. Writes benchmarks/results/nano_cost.json. With --before, the Python of an older
checkout, it runs by turns with this one, also on frames of a video, and the processor's seconds go to product_cpu.json:
on one thread, as threads that wait for each other on a busy machine spend some too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from common import hardware, write_result
from PIL import Image

from lean3r.data.world.synthetic import SyntheticWorld

VIEW_COUNTS = (16, 32, 64, 128)
MB_PER_VIEW_LIMIT = 8.0


def take_photos(folder: Path, count: int, height: int = 768, width: int = 1024) -> None:
    """Photographs of synthetic rooms, eight of each, upscaled from a quarter of the size to save time."""
    folder.mkdir(parents=True)
    world = SyntheticWorld(height // 2, width // 2, 8, seed=3_000_003)
    for start in range(0, count, 8):
        for offset, image in enumerate(world.batch(start // 8, 1).images[0][: count - start]):
            pixels = (image * 255).byte().permute(1, 2, 0).numpy()
            picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
            picture.save(folder / f"IMG_{start + offset:04d}.jpg", quality=90)


def measure(photos: Path, out: Path, weights: str | None) -> dict:
    """One run in a separate process: wall seconds, seconds by stage, peak memory."""
    command = [
        sys.executable,
        "-m",
        "lean3r",
        "reconstruct",
        str(photos),
        "-o",
        str(out),
        "--json",
        "-q",
        "--overwrite",
        "--refine",
        "off",
    ]
    start = time.perf_counter()
    done = subprocess.run(command + (["--weights", weights] if weights else []), capture_output=True, text=True)
    wall = time.perf_counter() - start
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    with np.load(out / "predictions.npz") as saved:
        assert len(summary["views"]) == len(list(photos.iterdir())) and np.isfinite(saved["depth"]).all()
    return {
        "wall_s": wall,
        "stages_s": summary["seconds"],
        "peak_mb": summary["peak_memory_mb"],
        "outside_network": 1 - summary["seconds"]["network"] / wall,
    }


def processor(python: str, pictures: list[str], out: Path) -> dict:
    """One run on one thread: seconds of the processor, peak memory, and wall seconds by stage."""
    command = [python, "-P", "-m", "lean3r", "reconstruct", *pictures, "-o", str(out), "--json", "-q", "--overwrite"]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen([*command, "--refine", "off"], stdout=subprocess.PIPE, env=alone)
    assert run.stdout is not None
    summary = json.loads(run.stdout.read())
    usage = os.wait4(run.pid, 0)[2]
    return {
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_mb": summary["peak_memory_mb"],
        "stages": summary["seconds"],
    }


def compare(before: str, video: Path, runs: int) -> Iterator[dict]:
    """Processor's seconds before and now, by turns, medians of `runs`; all so far, after each length."""
    rows: dict = {}
    with tempfile.TemporaryDirectory() as folder:
        inputs: dict[str, list[str]] = {}
        for count in (2, 8, 64):
            take_photos(Path(folder, f"photos{count}"), count)
            inputs[f"{count} photos"] = [str(Path(folder, f"photos{count}"))]
        for count in (50, 100, 200) if video.is_file() else ():
            inputs[f"{count} frames"] = [str(video), "--frames", str(count)]
        for name, pictures in inputs.items():
            ways = {"before": before, "now": sys.executable}
            done = [{way: processor(ways[way], pictures, Path(folder, "out")) for way in ways} for _ in range(runs)]
            rows[name] = {
                way: {k: round(statistics.median(run[way][k] for run in done), 2) for k in ("cpu_s", "peak_mb")}
                | {"wall_s_by_stage": done[-1][way]["stages"]}
                for way in ways
            }
            print(name, {way: row["cpu_s"] for way, row in rows[name].items()}, flush=True)
            yield rows


def median_of(runs: list[dict]) -> dict:
    """Medians of wall, memory and share outside the network; stages of the run with the median wall."""
    middle = sorted(runs, key=lambda r: r["wall_s"])[len(runs) // 2]
    figures = {k: statistics.median(r[k] for r in runs) for k in ("wall_s", "peak_mb", "outside_network")}
    return {k: round(v, 3) for k, v in figures.items()} | {"stages_s": middle["stages_s"], "runs": len(runs)}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--before", metavar="PYTHON")
    parser.add_argument("--video", type=Path, default=Path("../shared/data/video/office_walk.mp4"))
    options = parser.parse_args()
    if options.before:
        for rows in compare(options.before, options.video, options.runs):
            write_result("product_cpu", {"hardware": hardware(), "runs": options.runs, "inputs": rows})
        return
    result: dict = {"hardware": hardware(), "photo_size": [1024, 768]}
    with tempfile.TemporaryDirectory() as folder:
        for count in (8, *VIEW_COUNTS):
            photos = Path(folder, f"photos{count}")
            take_photos(photos, count)
            runs = options.runs if count == 8 else max(1, options.runs // 2)
            done = [measure(photos, Path(folder, "out"), options.weights) for _ in range(runs)]
            result[f"views_{count}"] = median_of(done)
            print(count, result[f"views_{count}"], flush=True)
    first, last = VIEW_COUNTS[0], VIEW_COUNTS[-1]
    growth = (result[f"views_{last}"]["peak_mb"] - result[f"views_{first}"]["peak_mb"]) / (last - first)
    result["mb_per_view_16_to_128"] = round(growth, 2)
    print(f"{growth:.2f} MB per view from {first} to {last}, limit {MB_PER_VIEW_LIMIT}")
    print(write_result("nano_cost", result))


if __name__ == "__main__":
    main()
