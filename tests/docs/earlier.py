"""What attention, networks and reconstructions cost, from results in the form of an earlier version.

Each is read only while benchmarks/results lacks the file that `python benchmarks/costs.py` records instead.
"""

from __future__ import annotations

import textwrap

from docs.markdown import result

NAMES = {"gsa, special pooled": "gsa, special=pooled", "gsa, pooled, 64 regions": "gsa, special=pooled, regions=64"}
PICTURE = (
    "![Seconds and memory of one attention layer by number of views, for every mechanism]"
    "(benchmarks/results/attention_cpu.png)\n"
)
Seconds = dict[str, dict[int, float]]


def layers() -> list[tuple[str, str, Seconds]]:
    """attention_cpu and backbone_layer_cpu: title, where, seconds by plan and views."""
    nano: Seconds = {}
    for row in result("attention_cpu")["layers"]:
        if row["pass"] == "forward":
            nano.setdefault(row["mechanism"], {})[row["views"]] = row["seconds"]
    return [
        ("4 heads of 32", "401 tokens a view, float32, 2 cores of an AMD EPYC, torch 2.13.0", nano),
        ("16 heads of 64", f"197 tokens a view, float32, {XEON}", of_backbone("backbone_layer_cpu", "layer")),
    ]


XEON = "2 cores of an Intel Xeon, torch 2.13.0"


def networks() -> list[tuple[str, str, Seconds]]:
    """attention_cpu and backbone_model_cpu."""
    nano: Seconds = {"dense": {}, "gsa": {}}
    for row in result("attention_cpu")["models"]:
        if row["model"] == "nano":
            for plan, curve in nano.items():
                curve[row["views"]] = row[f"{plan}_s"]
    where = f"224 x 168 pixels a view, float32, one thread of {XEON}"
    return [
        ("nano", "400 patches a view, float32, 2 cores of an AMD EPYC, torch 2.13.0", nano),
        ("Pi3", where, of_backbone("backbone_model_cpu", "pi3")),
    ]


def of_backbone(name: str, key: str) -> Seconds:
    """A file of Pi3's shape."""
    found: Seconds = {}
    for row in result(name)[key]:
        found.setdefault(NAMES.get(row["network"], row["network"]), {})[row["views"]] = row["wall_s"]
    return found


def photos() -> str:
    """nano_cost."""
    first, middle, last = (result("nano_cost")[f"views_{count}"] for count in (8, 64, 128))
    text = (
        "On 2 CPU cores, from process start to finished files (1024 x 768 photographs): 8 photos take "
        f"{first['wall_s']:.1f} s and {first['peak_mb']:.0f} MB at the peak, 64 photos {middle['wall_s']:.1f} s and "
        f"{middle['peak_mb']:.0f} MB, 128 photos {last['wall_s']:.1f} s and {last['peak_mb']:.0f} MB."
    )
    return textwrap.fill(text, 120) + "\n"


EARLIER = ("attention_cpu", "backbone_layer_cpu", "backbone_model_cpu", "nano_cost")
