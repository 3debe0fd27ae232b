"""Throughput of the data loader in pictures per second, compared with decoding the JPEG files alone.

    python benchmarks/loading_data.py [--workers 2] [--rounds 3] [--height 336] [--width 448] [--folder DIR]

Writes a set of JPEG pictures of 640 x 480 (RealEstate10K's layout, camera paths, no depth) and a copy with depth
(BlendedMVS's layout), and runs the loader on them: choice of views, decoding, cutting to the batch's size, augmentation
in the rows named so, collation, transfer. The limit is Pillow's decoder on the same files with as many threads and
nothing else. Correctness comes first: prefetched batches must equal the others, bit by bit. Limit and loader take
turns, so that other work on the machine affects both; the figures are medians of rounds, and only their ratio counts.
On a busy machine compare CPU time per picture, of making batches and of decoding alone.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import hardware, write_result
from PIL import Image

from lean3r.data import DATASETS
from lean3r.data.base import SceneBatch
from lean3r.data.loader import Prefetch
from lean3r.data.sampling.augment import NONE, USUAL
from lean3r.data.sampling.mixture import BatchShape, Mixture, Part
from lean3r.data.sets.formats.files import read_image, write_pfm

SIZE, VIEWS, SCENES, STEPS = (480, 640), 24, 4, 8
BATCH_VIEWS = 8


@dataclass(frozen=True)
class Batches:
    """Batches as from a recipe: of a mixture, in one shape."""

    mixture: Mixture
    shape: BatchShape

    def __call__(self, step: int, stage: object, rank: int, world_size: int) -> SceneBatch:
        """The batch of a step."""
        return self.mixture.batch(step, self.shape, rank, world_size)


def main() -> None:
    """Check, measure, print a table, write the JSON; exit 1 if batches differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--height", type=int, default=336)
    parser.add_argument("--width", type=int, default=448)
    parser.add_argument("--folder", type=Path, help="where the pictures are written; a temporary folder otherwise")
    given = parser.parse_args()
    torch.set_num_threads(1)
    shape = BatchShape(1, BATCH_VIEWS, given.height, given.width)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        root = Path(folder)
        write_sets(root)
        files = sorted((root / "realestate10k" / "frames").rglob("*.jpg"))
        size = sum(file.stat().st_size for file in files) / len(files)
        cases = {
            f"{name}, {kind}{', augmented' if augmentation is USUAL else ''}": (
                Batches(Mixture([Part(DATASETS.get(name)(root / name), augmentation=augmentation)]), shape),
                kind,
            )
            for name, kind, augmentation in (
                ("realestate10k", "threads", NONE),
                ("realestate10k", "threads", USUAL),
                ("blendedmvs", "threads", NONE),
                ("realestate10k", "processes", NONE),
            )
        }
        rows = [run(name, *case, files, given.workers, given.rounds) for name, case in cases.items()]
    result = {
        "hardware": hardware(),
        "pictures": {"height": SIZE[0], "width": SIZE[1], "mean_bytes": size},
        "batch": {"views": BATCH_VIEWS, "height": shape.height, "width": shape.width},
        "workers": given.workers,
        "rounds": given.rounds,
        "rows": rows,
    }
    path = write_result("loading_data", result)
    print(f"{'loader':<40} {'pictures/s':>10} {'decoder':>10} {'ratio':>6} {'CPU ms':>7} {'decoder':>8}")
    for row in rows:
        rates = f"{row['per_second']:>10.0f} {row['decoder_per_second']:>10.0f} {row['ratio']:>6.2f}"
        print(f"{row['loader']:<40} {rates} {row['processor_ms']:>7.1f} {row['decoder_processor_ms']:>8.1f}")
    print(path)
    sys.exit(not all(row["equal"] for row in rows))


def run(name: str, batches: Batches, kind: str, files: list[Path], workers: int, rounds: int) -> dict[str, object]:
    """One way of loading, in turns with the decoder."""
    with Prefetch(batches, workers, kind=kind) as prefetch:  # type: ignore[arg-type]
        equal = all(
            torch.equal(prefetch(step, None, 0, 1).images, batches(step, None, 0, 1).images) for step in range(3)
        )
        loader, decoder, ratios, work = [], [], [], []
        for number in range(rounds):
            first = 3 + number * STEPS
            one = rate(STEPS * BATCH_VIEWS, lambda first=first: [prefetch(first + s, None, 0, 1) for s in range(STEPS)])
            other = rate(len(files), lambda: decode(files, workers))
            loader.append(one)
            decoder.append(other)
            ratios.append(one / other)
            here = cpu_seconds(lambda first=first: [batches(first + s, None, 0, 1) for s in range(3)])
            alone = cpu_seconds(lambda: decode(files[: 3 * BATCH_VIEWS], 1))
            work.append((1e3 * here / (3 * BATCH_VIEWS), 1e3 * alone / (3 * BATCH_VIEWS)))
    of_batch, of_decoder = (statistics.median(column) for column in zip(*work, strict=True))
    return {
        "loader": name,
        "equal": equal,
        "per_second": statistics.median(loader),
        "decoder_per_second": statistics.median(decoder),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "processor_ms": of_batch,
        "decoder_processor_ms": of_decoder,
    }


def rate(pictures: int, job: Callable[[], object]) -> float:
    """Pictures per second in one round."""
    started = time.perf_counter()
    job()
    return pictures / (time.perf_counter() - started)


def cpu_seconds(job: Callable[[], object]) -> float:
    """CPU seconds of a job in this process: other work on the machine hardly changes them."""
    started = time.process_time()
    job()
    return time.process_time() - started


def decode(files: list[Path], threads: int) -> None:
    """Decode all files to arrays [H, W, 3], without further processing."""
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(read_image, files):
            pass


def write_sets(root: Path) -> None:
    """Pictures with as much detail as photos (about 1.5 bits per pixel), paths around a room, flat depth."""
    rng = np.random.default_rng(0)
    height, width = SIZE
    depth = np.full(SIZE, 3.0, np.float32)
    for scene in range(SCENES):
        clip, blended = f"{scene:016x}", root / "blendedmvs" / f"scene{scene}"
        frames = root / "realestate10k" / "frames" / clip
        for folder in (frames, root / "realestate10k" / "cameras", blended / "blended_images", blended / "cams"):
            folder.mkdir(parents=True, exist_ok=True)
        (blended / "rendered_depth_maps").mkdir()
        lines = ["https://none"]
        for view in range(VIEWS):
            angle = 0.05 * view
            cos, sin = math.cos(angle), math.sin(angle)
            rotation = [cos, 0, sin, 0.1 * view, 0, 1, 0, 0, -sin, 0, cos, 0]
            lines.append(" ".join(map(str, [1000 * view, 0.8, 0.8 * width / height, 0.5, 0.5, 0, 0, *rotation])))
            path = frames / f"{1000 * view}.jpg"
            picture(rng).save(path, quality=90)
            (blended / "blended_images" / f"{view:08}.jpg").hardlink_to(path)
            rows = "\n".join(" ".join(map(str, rotation[4 * i : 4 * i + 4])) for i in range(3))
            k = f"{0.8 * width} 0 {width / 2 - 0.5}\n0 {0.8 * width} {height / 2 - 0.5}\n0 0 1"
            text = f"extrinsic\n{rows}\n0 0 0 1\n\nintrinsic\n{k}\n\n1 0.1 32 5\n"
            (blended / "cams" / f"{view:08}_cam.txt").write_text(text)
            write_pfm(blended / "rendered_depth_maps" / f"{view:08}.pfm", depth)
        (root / "realestate10k" / "cameras" / f"{clip}.txt").write_text("\n".join(lines))


def picture(rng: np.random.Generator) -> Image.Image:
    """Noise at several scales, the coarse ones strongest."""
    height, width = SIZE
    total = np.full((height, width, 3), 128.0)
    for cells, strength in ((6, 60), (24, 30), (96, 14), (320, 6)):
        grid = rng.normal(0, strength, (cells * height // width + 1, cells, 3)).astype(np.float32)
        layers = [Image.fromarray(grid[..., c]).resize((width, height), Image.Resampling.BILINEAR) for c in range(3)]
        total += np.stack([np.asarray(layer) for layer in layers], -1)
    return Image.fromarray(np.clip(total, 0, 255).astype(np.uint8))


if __name__ == "__main__":
    main()
