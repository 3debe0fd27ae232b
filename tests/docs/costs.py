"""Tables, sentences and pictures of what attention, networks and reconstructions cost (benchmarks/costs.py)."""

from __future__ import annotations

import importlib.util
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from docs.markdown import ROOT, result, table

LONG = 32  # views from which on growth is fitted
TITLES = {"nano": "nano", "pi3": "Pi3", "vggt": "VGGT", "da3-large": "DA3-Large"}
PICTURES = {"seconds": "attention alone, seconds", "memory": "the whole layer, MB beyond what was in use"}
Curve = dict[int, float]
"""A value by the number of views."""


@dataclass(frozen=True)
class Costs:
    """Seconds and megabytes of one layer or network by the name of its plan, "dense" first."""

    title: str
    where: str
    seconds: Mapping[str, Curve]
    memory: Mapping[str, Curve]

    def gain(self, plan: str, views: int) -> float | None:
        """How many times faster a plan is than dense attention; None where either was not measured."""
        both = [self.seconds.get(name, {}).get(views) for name in ("dense", plan)]
        return None if None in both else both[0] / both[1]  # type: ignore[operator]


def layers() -> list[Costs]:
    """One global layer of nano's and of Pi3's shape; seconds of attention alone, without linear layers."""
    found = result("layer")
    shapes = sorted({row["model"] for row in found["rows"]}, key=lambda name: int(name[6:].partition("x")[0]))
    return [costs(found, name, "{} heads of {}".format(*name[6:].split("x")), "attention") for name in shapes]


def networks() -> list[Costs]:
    """Whole networks."""
    found = result("network")
    return [costs(found, name, TITLES.get(name, name)) for name in dict.fromkeys(r["model"] for r in found["rows"])]


def costs(found: Mapping[str, Any], model: str, title: str, part: str | None = None) -> Costs:
    """Of one model of a file of `lean3r bench`; `part`: only the seconds of this part."""
    seconds: dict[str, Curve] = {}
    memory: dict[str, Curve] = {}
    rows = [row for row in found["rows"] if row["model"] == model and row["error"] is None]
    for row in rows:
        plan = plan_title(row["plan"])
        seconds.setdefault(plan, {})[row["views"]] = row["parts"][part] if part else row["seconds"]["median"]
        memory.setdefault(plan, {})[row["views"]] = row["activation_mb"]
    size = f"{rows[0]['width']} x {rows[0]['height']} pixels a view, {rows[0]['dtype']}"
    return Costs(title, f"{size}, {hardware(found)}", seconds, memory)


def plan_title(plan: str) -> str:
    """`gsa, special=pooled` of gsa:dense_below=0,special=pooled."""
    name, _, settings = plan.partition(":")
    return ", ".join([name, *(each for each in settings.split(",") if each and not each.startswith("dense_below"))])


def hardware(found: Mapping[str, Any]) -> str:
    """Cores, processor and torch."""
    known = found["hardware"]
    return f"{known['cores']} cores of an {known['cpu'].replace('(R)', '')}, torch {known['torch'].partition('+')[0]}"


def power(curve: Curve) -> tuple[float, float] | None:
    """Scale and exponent of a line through the logarithms from LONG views on; None with fewer than three points."""
    long = sorted(item for item in curve.items() if item[0] >= LONG and item[1] > 0)
    if len(long) < 3:
        return None
    exponent, offset = np.polyfit(*np.log(np.array(long)).T, 1)
    return float(np.exp(offset)), float(exponent)


def cost_tables(every: Iterable[Costs]) -> str:
    """For each a line and a table: seconds of dense attention, how many times faster the others are, growth."""
    return "\n".join(f"{each.title}, {each.where}:\n\n{cost_table(each)}" for each in every)


def cost_table(each: Costs) -> str:
    """Plans by views."""
    views = sorted({count for curve in each.seconds.values() for count in curve})

    def cell(plan: str, count: int) -> str:
        gain = each.gain(plan, count)
        return seconds(each.seconds[plan][count]) if plan == "dense" else "" if gain is None else f"{gain:.1f}"

    rows = []
    for plan, curve in each.seconds.items():
        fit = power(curve)
        growth = "" if fit is None else f"{fit[1]:.2f}"
        rows.append([f"`{plan}`", *(cell(plan, count) if count in curve else "" for count in views), growth])
    return table(["views", *map(str, views), f"exponent from {LONG} on"], rows)


def seconds(value: float) -> str:
    """Two or three digits."""
    return f"{value:.{3 if value < 0.1 else 2 if value < 10 else 1}f} s"


def speed() -> str:
    """For README: how many times faster sparse attention is, and the pictures."""
    counts = (32, 128, 256)
    rows = []
    for each in [*layers(), *networks()]:
        what = f"one layer of {each.title}" if "heads" in each.title else f"the whole of {each.title}"
        shown = [plan for plan in each.seconds if plan == "gsa" or plan.endswith("regions=64")]
        for plan in shown:
            gains = [each.gain(plan, count) for count in counts]
            if gains.count(None) < len(counts):
                rows.append([f"{what}, `{plan}`", *("" if gain is None else f"{gain:.1f}" for gain in gains)])
    text = table(["times faster than dense attention, by views", *map(str, counts)], rows)
    shape = layers()[-1].title
    return text + "".join(
        f"\n![One global layer of {shape}: {what}, by number of views](docs/images/layer-{name}.svg)\n"
        for name, what in PICTURES.items()
    )


def photos() -> str:
    """For README: what so many photos take."""
    found = result("whole")
    rows = {row["views"]: row for row in found["rows"] if row["error"] is None}
    first, *more = (
        f"{count} photos{' take' * (count == min(rows))} {rows[count]['seconds']['median']:.1f} s and "
        f"{rows[count]['peak_mb']:.0f} MB{' at the peak' * (count == min(rows))}"
        for count in (min(rows), 64, 128)
    )
    text = (
        f"On {hardware(found)} (`python benchmarks/costs.py whole`, 1024 x 768 photographs, from decoding to files, "
        "`--refine off`): "
        f"{', '.join([first, *more])}. Starting takes {rows[min(rows)]['start_seconds']:.1f} s."
    )
    return textwrap.fill(text, 120) + "\n"


def draw() -> list[Path]:
    """Write the pictures of the layer of a backbone's shape, if matplotlib is there."""
    from lean3r.eval.report.plots import log_log

    if importlib.util.find_spec("matplotlib") is None:
        return []
    each, written = layers()[-1], []
    for name, axis in PICTURES.items():
        series: dict[str, Curve] = getattr(each, name)
        fits = {plan: fit for plan, curve in series.items() if (fit := power(curve))}
        written.append(ROOT / "docs" / "images" / f"layer-{name}.svg")
        text = log_log({plan: sorted(curve.items()) for plan, curve in series.items()}, fits, axis, LONG)
        written[-1].write_text(text, encoding="utf-8")
    return written
