"""Memory and time of a forward pass compared with the official programs: same weights, pictures and outputs.

    python benchmarks/peers.py [--peer vggt=PATH] [--peer pi3=PATH] [-o FILE.json] [any option of lean3r bench]

`lean3r bench` with these settings (docs/how-to/benchmark.md); options that are given replace them. What is neither
installed nor named is an error row. peers.json and peers_amx.json have the form of an earlier version.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from lean3r.cli.main import main

SETTINGS = {
    "--models": "da3-large,vggt,pi3",
    "--plans": "dense,int8-dynamic",
    "--dtype": "float32,bfloat16",
    "--views": "8,16",
    "--resolution": "168x224",
    "--against": "official",
    "--repeats": "3",
    "--out": "bench_peers.json",
}


def bench(settings: Mapping[str, str], given: Sequence[str]) -> int:
    """Run `lean3r bench` with what is given, and with the settings that are not; its exit code."""
    long = {"-o": "--out", "-m": "--models"}
    named = {long.get(word, word) for word in given}
    if "--models" in named:
        named.add("--layer")
    usual = [word for name, value in settings.items() if name not in named for word in (name, value)]
    return main(["bench", *usual, *given])


if __name__ == "__main__":
    sys.exit(bench(SETTINGS, sys.argv[1:]))
