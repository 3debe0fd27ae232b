"""How near are the backbones to the official programs' numbers? One figure for each model, case and output.

    python benchmarks/parity_table.py [--golden DIR] [--sizes all|tiny|full] [--no-docs]

Runs every backbone case of the golden folder as the test does (tests/golden/backbone_cases.py), one model in memory
at a time, and fails if any figure is over the test's limit. Writes benchmarks/results/parity.json and the tables of
docs/parity.md (--no-docs leaves those alone). The full-size cases take minutes and up to 8 GB.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from pathlib import Path

import torch
from common import hardware, write_result

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "golden"))
from backbone_cases import find_cases, is_full_size, load_synthetic, measure
from test_backbones import LIMIT

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "parity.md"
BEGIN, END = "<!-- tables: made by benchmarks/parity_table.py -->", "<!-- end of tables -->"
INSIDE = "worst array inside the network"


def run_cases(golden: Path, sizes: str) -> list[dict]:
    """One row a case: model, size, seconds, relative RMS by array, arrays that are allowed more than LIMIT."""
    synthetic = load_synthetic(golden)
    rows = []
    for path in find_cases(golden):
        size = "full" if is_full_size(path) else "tiny"
        if sizes not in ("all", size):
            continue
        start = time.perf_counter()
        found = measure(path, synthetic)
        over = {n: e for n, e in found.errors.items() if not e <= found.limits.get(n, LIMIT)}
        assert not found.missing and not over, f"{path.stem}: missing {found.missing}, over the limit {over}"
        loose = {name: limit for name, limit in found.limits.items() if name in found.errors}
        case = json.loads(path.read_text())
        rows.append(
            {
                "case": path.stem,
                "model": case["model"],
                "size": size,
                "seconds": round(time.perf_counter() - start, 1),
                "relative_rms": {name: float(f"{error:.2e}") for name, error in found.errors.items()},
                "looser_limits": loose,
            }
        )
        print(path.stem, f"{rows[-1]['seconds']} s", f"worst {max(found.errors.values()):.1e}", flush=True)
        gc.collect()
    assert rows, f"no cases under {golden}"
    return rows


def tables(rows: list[dict]) -> str:
    """Markdown: for each kind of model a table, outputs down, cases across."""
    parts = []
    for kind in sorted({row["case"].partition("_")[0] for row in rows}):
        cases = [row for row in rows if row["case"].partition("_")[0] == kind]
        loose = {name for row in cases for name in row["looser_limits"]}
        names = [n for n in dict.fromkeys(n for row in cases for n in row["relative_rms"]) if n.startswith("out.")]
        lines = [[kind, *(row["case"].partition("_")[2].replace("_", " ") for row in cases)]]
        lines.append(["---"] + ["---:"] * len(cases))
        for name in names:
            mark = " *" if name in loose else ""
            lines.append([name[4:] + mark, *(figure(row["relative_rms"].get(name)) for row in cases)])
        inside = [[e for n, e in row["relative_rms"].items() if n.startswith("tok.")] for row in cases]
        lines.append([INSIDE, *(figure(max(errors, default=None)) for errors in inside)])
        parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join(parts)


def figure(error: float | None) -> str:
    """Two digits; 0 where bits agree; nothing where a case has no such output."""
    return "" if error is None else "0" if error == 0 else f"{error:.1e}"


def main() -> None:
    """Measure, check, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=Path, default=ROOT / "../shared/golden")
    parser.add_argument("--sizes", choices=("all", "tiny", "full"), default="all")
    parser.add_argument("--no-docs", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = run_cases(options.golden, options.sizes)
    print(write_result("parity", {"hardware": hardware(), "limit": LIMIT, "cases": rows}))
    if not options.no_docs:
        before, _, rest = DOCS.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        DOCS.write_text(f"{before}{BEGIN}\n\n{tables(rows)}\n\n{END}{after}")
        print(DOCS)


if __name__ == "__main__":
    main()
