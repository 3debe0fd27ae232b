"""How damaged inputs end, reader by reader: ten thousand cases of tests/fuzz, counted into results/fuzz.json.

    python benchmarks/fuzz.py [--seed N] [--share 1.0] [--only NAME ...] [--processes 2]

Each case is read in a process with bounds on its time and memory. used: the damage was harmless (or changed values that
no format protects); skipped: a part was left out, with a warning; refused: an error with the reason. failed (another
exception), memory (more than 2 GB), hang and crash are bugs, and are printed. Exit code 1 if there is any.
"""

from __future__ import annotations

import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from common import hardware, write_result
from fuzz.harness import PATIENCE_S, SOUND, Tally, run
from fuzz.readers import READERS


@dataclass
class Options:
    """What to run: seed of the damage, share of all cases, readers by the start of their names, how many at once."""

    seed: int = 0
    share: float = 1.0
    only: tuple[str, ...] = ()
    processes: int = 2


def main(options: Options) -> int:
    """Run all cases, print a line for each reader, write the counts."""
    rows, total = {}, Counter()
    names = [name for name in READERS if not options.only or name.startswith(options.only)]

    def tally_of(name: str) -> Tally:
        return run(name, max(1, round(READERS[name].cases * options.share)), options.seed)

    pool = ThreadPoolExecutor(options.processes)
    for name, tally in zip(names, pool.map(tally_of, names), strict=True):
        total += tally.ended
        counts = dict(sorted(tally.ended.items()))
        rows[name] = {**counts, "most_memory_mb": tally.grown_mb, "seconds": tally.seconds}
        print(f"{name:<20} {counts}, at most {tally.grown_mb} MB more, {tally.seconds} s", flush=True)
        for mistake in tally.mistakes:
            print(f"    {mistake}", flush=True)
    result = {"hardware": hardware(), "seed": options.seed, "patience_s": PATIENCE_S, "cases": total.total()}
    result |= {"ended": dict(sorted(total.items())), "readers": rows}
    print(f"{total.total():,} cases: {dict(total)}")
    if not options.only:
        print(write_result("fuzz", result))
    return int(bool(set(total) - set(SOUND)))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
