"""Speed3R's sparse attention on a CPU at the shapes of real backbones: one global layer, then the whole of Pi3.

    python benchmarks/backbone_layer.py [--views 8..256] [--layer 16x64 | --models pi3] [any option of lean3r bench]

`lean3r bench` with these settings (docs/how-to/benchmark.md): 16 heads of 64 channels, 192 patches and 5 registers a
view, which is Pi3 on pictures of 224 x 168 pixels; --layer 4x32 has the shape of nano's, and --models pi3 is the whole.
Dense attention, `gsa` as Speed3R defines it, with special="pooled", and with regions=64 besides. Options that are given
replace these. backbone_layer_cpu.json and backbone_model_cpu.json have the form of an earlier version.
"""

from __future__ import annotations

import sys

from peers import bench

POOLED = "gsa:dense_below=0,special=pooled"
SETTINGS = {
    "--layer": "16x64",
    "--plans": f"dense,gsa:dense_below=0,{POOLED},{POOLED},regions=64",
    "--dtype": "float32",
    "--device": "cpu",
    "--views": "8..256",
    "--resolution": "168x224",
    "--out": "bench_layer.json",
}

if __name__ == "__main__":
    sys.exit(bench(SETTINGS, sys.argv[1:]))
