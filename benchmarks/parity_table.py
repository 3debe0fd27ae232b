"""How close are the backbones to the outputs of the official programs? One figure per model, case and output.

    python benchmarks/parity_table.py --golden DIR [--sizes all|tiny|full]

Runs every backbone case of the golden folder as the tests do (tests/golden/backbone_cases.py; Speed3R-Pi3:
attention_cases/gsa.py; LingBot-Map: lingbot_cases.py), one model in memory at a time, and fails if any figure is over
the tests' limit. With all sizes it writes benchmarks/results/parity.json, of which `make tables` makes the tables of
docs/parity.md; of some sizes it prints the figures. The full-size cases take minutes and up to 8 GB.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from common import hardware, write_result

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "golden"))
import lingbot_cases
from attention_cases.gsa import decoder_pairs, model_pairs
from backbone_cases import LIMIT, find_cases, is_full_size, load_synthetic, measure

from lean3r.testing import rms_ratio

ROOT = Path(__file__).parents[1]


def run_cases(golden: Path, sizes: str) -> list[dict]:
    """One row per case: model, size, seconds, relative RMS by array, arrays that are allowed more than LIMIT."""
    rows = [*backbones(golden, sizes), *speed3r(golden, sizes), *lingbot(golden, sizes)]
    if not rows:
        sys.exit(f"no golden numbers under {golden}: name their folder with --golden DIR (docs/parity.md)")
    return rows


def backbones(golden: Path, sizes: str) -> Iterator[dict]:
    """The rows of the cases in GOLDEN/backbones."""
    cases = [(path, "full" if is_full_size(path) else "tiny") for path in find_cases(golden)]
    for path, size in cases:
        if sizes not in ("all", size):
            continue
        start = time.perf_counter()
        found = measure(path, load_synthetic(golden))
        assert not found.missing, f"{path.stem}: missing {found.missing}"
        model = json.loads(path.read_text())["model"]
        yield row(path.stem, model, size, start, found.errors, found.limits)


def speed3r(golden: Path, sizes: str) -> Iterator[dict]:
    """The rows of Speed3R-Pi3, whose arrays are in GOLDEN/attention: its trunk at reduced width, and the full model."""
    for path in sorted((golden / "attention").glob("speed3r_pi3_*.npz")):
        size, name = ("full", "full v8") if path.stem.endswith("_model") else ("tiny", f"tiny {path.stem[12:]}")
        if sizes in ("all", size):
            start = time.perf_counter()
            pairs = model_pairs(path) if size == "full" else decoder_pairs(path)
            errors = {key: rms_ratio(*pair) for key, pair in pairs.items()}
            yield row("speed3r-pi3_" + name.replace(" ", "_"), "Speed3rPi3", size, start, errors, {})


def lingbot(golden: Path, sizes: str) -> Iterator[dict]:
    """The rows of LingBot-Map, whose streams are in GOLDEN/lingbot."""
    for path in lingbot_cases.find_cases(golden):
        if "constructor" not in json.loads(path.read_text()):
            continue  # functions by themselves
        full = lingbot_cases.is_full_size(path)
        size, name = ("full", "full") if full else ("tiny", f"tiny {path.stem.removeprefix('lb_')}")
        if sizes in ("all", size):
            start = time.perf_counter()
            found = lingbot_cases.measure(path, load_synthetic(golden))
            assert not found.missing, f"{path.stem}: missing {found.missing}"
            yield row("lingbot-map_" + name.replace(" ", "_"), "LingbotMap", size, start, found.errors, {})


def row(
    case: str, model: str, size: str, start: float, errors: Mapping[str, float], limits: Mapping[str, float]
) -> dict:
    """What the file holds of a case; fails if a figure is over its limit."""
    over = {name: error for name, error in errors.items() if not error <= limits.get(name, LIMIT)}
    assert not over, f"{case}: over the limit {over}"
    seconds = round(time.perf_counter() - start, 1)
    print(case, f"{seconds} s", f"worst {max(errors.values()):.1e}", flush=True)
    gc.collect()
    return {
        "case": case,
        "model": model,
        "size": size,
        "seconds": seconds,
        "relative_rms": {name: float(f"{error:.2e}") for name, error in errors.items()},
        "looser_limits": {name: limit for name, limit in limits.items() if name in errors},
    }


def main() -> None:
    """Measure, check, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=Path, default=ROOT / "../shared/golden")
    parser.add_argument("--sizes", choices=("all", "tiny", "full"), default="all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = run_cases(options.golden, options.sizes)
    if options.sizes != "all":
        return
    print(write_result("parity", {"hardware": hardware(), "limit": LIMIT, "cases": rows}))


if __name__ == "__main__":
    main()
