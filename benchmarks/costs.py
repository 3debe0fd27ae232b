"""What do attention, networks and whole reconstructions cost? The recorded runs of `lean3r bench`, by name.

    python benchmarks/costs.py NAME [any option of lean3r bench]

NAME is a row of RUNS; options that are given replace its settings, and the file is benchmarks/results/NAME.json unless
-o names another. What a run measures and its file are described in docs/how-to/benchmark.md; `make tables` brings the
recorded files into the pages.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from common import RESULTS
from PIL import Image

from lean3r.cli.main import main

PHOTOS, MOST = Path("build/photos"), 128
POOLED = "gsa:dense_below=0,special=pooled"
SPARSE = ("gsa", "sla", "thu-sla", "block_sparse", "merge", "kv_prune", "frame_subset")
CPU = {"--device": "cpu", "--dtype": "float32"}
RUNS: dict[str, dict[str, str]] = {
    # One global layer of Pi3's shape and of nano's, 192 patches and 5 registers a view; dense is torch's fused kernel.
    "layer": CPU
    | {
        "--layer": "16x64,4x32",
        "--plans": ",".join(["dense", *(f"{name}:dense_below=0" for name in SPARSE), POOLED, f"{POOLED},regions=64"]),
        "--views": "2,8,32,128,256",
        "--resolution": "168x224",
        "--repeats": "3",
    },
    # Whole networks, with the lengths below which a plan stays dense.
    "network": CPU
    | {"--models": "nano", "--plans": "dense,gsa,gsa:special=pooled,regions=64", "--views": "4..128", "--repeats": "3"},
    # From decoding to files; PHOTOS are made if they are not there.
    "whole": CPU
    | {"--models": "nano", "--plans": "dense", "--views": "8..128", "--repeats": "3"}
    | {"--whole": str(PHOTOS), "--refine": "off"},
    # Beside the official programs: --peer vggt=CLONE --peer pi3=CLONE after the set-up of docs/how-to/parity.md.
    "peers": {"--models": "da3-large,vggt,pi3", "--plans": "dense,int8-dynamic", "--dtype": "float32,bfloat16"}
    | {"--views": "8,16", "--resolution": "168x224", "--against": "official", "--repeats": "3"},
}


def bench(settings: Mapping[str, str], given: Sequence[str]) -> int:
    """Run `lean3r bench` with what is given, and with the settings that are not; its exit code."""
    long = {"-o": "--out", "-m": "--models"}
    names = (word.partition("=")[0] for word in given)
    named = {long.get(name, name) for name in names}
    if "--models" in named:
        named.add("--layer")
    usual = [word for name, value in settings.items() if name not in named for word in (name, value)]
    return main(["bench", *usual, *given])


def take_photos(folder: Path) -> None:
    """Photographs of synthetic rooms, eight of each, 1024 x 768 pixels, enlarged from half of that to save time."""
    from lean3r.data.world.synthetic import SyntheticWorld

    folder.mkdir(parents=True, exist_ok=True)
    world = SyntheticWorld(384, 512, 8, seed=3_000_003)
    for start in range(0, MOST, 8):
        for place, image in enumerate(world.batch(start // 8, 1).images[0], start):
            picture = Image.fromarray((image * 255).byte().permute(1, 2, 0).numpy())
            picture.resize((1024, 768), Image.Resampling.BICUBIC).save(folder / f"IMG_{place:04d}.jpg", quality=90)


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in RUNS:
        sys.exit(f"{__doc__}\nNAME is one of {', '.join(RUNS)}.")
    name, *given = sys.argv[1:]
    if name == "whole" and len(list(PHOTOS.glob("*.jpg"))) < MOST:
        take_photos(PHOTOS)
    sys.exit(bench({"--out": str(RESULTS / f"{name}.json")} | RUNS[name], given))
