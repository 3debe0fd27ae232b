"""The tables of nano-stream and of MELT, from recorded results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from docs.markdown import result, table
from lean3r.layers.frames import Pages
from lean3r.models.checkpoint import without_memory
from lean3r.models.lingbot import LingbotMap
from lean3r.stream.cache import cache_bytes as formula

OF_LINGBOT = 378, 518  # height and width of its pictures
NUMBERS: tuple[Pages, ...] = ("float32", "bfloat16", "float8")
CLIPS = ("8", "16")
MODELS = {
    "nano": "nano, all frames at once",
    "nano-stream": "nano-stream, frame by frame",
    "nano's weights, causal": "nano's weights, frame by frame, untrained",
}
RULES = {
    "per loop": "a cache for each loop",
    "gated": "one row, gated (full matrices)",
    "diagonal": "one row, gated (diagonal)",
    "mean": "one row, mean",
    "last": "one row, last loop",
    "average": "one row, moving average",
}


def clips() -> str:
    """Cameras and depth of held-out walks, by their number of frames."""
    found = result("nano_stream")["clips"]
    rows = [
        [
            title,
            *(f"{found[n][name]['auc30']:.1f}" for n in CLIPS),
            *(f"{found[n][name]['abs_rel']:.1f} %" for n in CLIPS),
        ]
        for name, title in MODELS.items()
    ]
    return table(["", *(f"AUC@30, {n} frames" for n in CLIPS), *(f"AbsRel, {n}" for n in CLIPS)], rows)


def streams() -> str:
    """Walks through the engines, without refinement."""
    found = result("nano_stream")

    def row(name: str) -> list[str]:
        walk, video = found["walks"][name], found["video"][name]
        return [
            name,
            f"{walk['ate_percent']:.1f} %",
            f"{walk['rpe_deg']:.1f} degrees",
            f"{video['all_frames']['ate_cm']:.0f} cm",
            f"{video['all_frames']['rpe_deg']:.1f} degrees",
            f"{video['delay_s']['p50']:.2f} s",
            f"{video['cpu_s']:.0f}",
        ]

    header = ["", "rendered walks: ATE / extent", "frame to frame", "video: ATE, all frames", "frame to frame"]
    return table([*header, "delay", "CPU seconds"], map(row, ("nano, windows", "nano-stream")))


def melt() -> str:
    """Rules of the shared row at equal steps."""
    found = result("melt")["rules"]
    rows = [
        [
            title,
            f"{found[name]['auc30']:.1f}",
            f"{found[name]['rotation_deg']:.1f} degrees",
            f"{found[name]['abs_rel']:.1f} %",
            f"{found[name]['bytes'] / 1e3:.0f} kB",
            f"{found[name]['seconds']:.2f}",
        ]
        for name, title in RULES.items()
    ]
    return table(["keys and values", "AUC@30", "rotation", "AbsRel", "kept of a walk", "CPU seconds"], rows)


def of_clips(r: Mapping[str, Any]) -> Iterable[str]:
    """Lines of docs/results.md."""
    for views in CLIPS:
        for name, row in r["clips"][views].items():
            yield f"{views} frames, {name}: AUC@30 {row['auc30']:.1f}, AbsRel {row['abs_rel']:.1f} %"
    for name in ("nano, windows", "nano-stream"):
        yield f"walks, {name}: ATE {r['walks'][name]['ate_percent']:.1f} % of the extent"
        yield f"video, {name}: ATE {r['video'][name]['all_frames']['ate_cm']:.0f} cm of all frames"
    yield f"a frame: {r['speed']['cpu_s']:.3f} CPU seconds on one thread; cache {r['speed']['bytes'] / 1e6:.1f} MB"


def of_rules(r: Mapping[str, Any]) -> Iterable[str]:
    """Lines of docs/results.md."""
    for name, row in r["rules"].items():
        yield f"{name}: AUC@30 {row['auc30']:.1f}, AbsRel {row['abs_rel']:.1f} %, {row['bytes'] / 1e3:.0f} kB"


def cache_bytes() -> str:
    """What LingBot-Map's cache holds once it is full, in each kind of numbers, by the formula of `--memory`."""
    model = without_memory(LingbotMap)

    def gigabytes(window: int, pages: Pages) -> str:
        policy = replace(model.policy, window=window, pages=pages)
        return f"{formula(model, policy, model.LONGEST, *OF_LINGBOT) / 1e9:.1f} GB"

    rows = [[str(window), *(gigabytes(window, pages) for pages in NUMBERS)] for window in (48, 24, 8)]
    height, width = OF_LINGBOT
    return table([f"keyframes in full, {width} x {height}", *(name.replace("float8", "FP8") for name in NUMBERS)], rows)


OF_STREAMS: dict[str, Callable[[], str]] = {
    "stream-cache": cache_bytes,
    "stream-clips": clips,
    "stream-engines": streams,
    "melt": melt,
}
"""Name of a table on a page -> what makes it."""
