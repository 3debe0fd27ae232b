"""The tables of figures of the guides, from recorded results."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from docs.costs import cost_tables, layers, networks, photos, speed
from docs.markdown import result, table

WAYS = {
    "nano, all pairs": "nano, all pairs matched",
    "nano-gsa-fp8, all pairs": "nano-gsa-fp8, all pairs",
    "nano-gsa-fp8, 32 partners": "**nano-gsa-fp8, 32 others**",
    "nano-gsa-fp8, 24 partners": "nano-gsa-fp8, 24 others",
    "nano, 32 partners": "nano, 32 others (`--model nano`)",
    "nano, 24 partners": "nano, 24 others",
    "nano, 16 most similar (not used)": "nano, the 16 most similar others",
}
"""Row of nano_many_views.json -> what the page calls it."""


def auc(row: Mapping[str, float], *degrees: int) -> str:
    """AUC at some thresholds."""
    return " / ".join(f"{row[f'auc{n}']:.1f}" for n in degrees)


def density(share: float) -> str:
    """Two or three digits of per cent."""
    return f"{share:.1%}".replace("%", " %") if share < 0.2 else f"{share:.0%}".replace("%", " %")


def many_views() -> str:
    """Fifty views and more."""
    found = result("nano_many_views")["ways"]

    def row(name: str) -> list[str]:
        scenes, video = found[name]["synthetic"], found[name]["video"].values()
        means = {key: statistics.fmean(scene[key] for scene in scenes) for key in ("auc5", "auc15", "auc30", "abs_rel")}
        of_video = {key: statistics.fmean(clip[key] for clip in video) for key in ("auc30", "ate_cm")}
        poses = [f"{of_video['auc30']:.1f}", f"{of_video['ate_cm']:.0f} cm"]
        return [WAYS[name], auc(means, 5, 15, 30), f"{means['abs_rel']:.1f} %", *poses]

    return table(["", "scenes: AUC@5 / 15 / 30", "AbsRel", "video: AUC@30", "position error"], map(row, WAYS))


def looped() -> str:
    """One pair of blocks by loops, and three."""
    found = result("looped")

    def scores(row: Mapping[str, Any]) -> list[str]:
        return [
            " / ".join(f"{row[views]['auc30']:.1f}" for views in ("2", "8")),
            " / ".join(f"{row[views]['abs_rel']:.1f}" for views in ("2", "8")) + " %",
        ]

    def training(name: str) -> list[str]:
        return [f"{found['training'][name][key]:,}" for key in ("parameters", "steps")]

    def time(loops: str) -> str:
        return f"{found['seconds'][loops] / found['seconds']['nano']:.2f}"

    rows = [["three pairs (nano)", *training("nano"), *scores(found["nano"]), "1"]]
    for loops in ("1", "2", "3", "5", "8", "12"):
        name = f"one pair, {loops} loop{'s' * (loops != '1')}" + " (trained: 1 to 5)" * (loops == "8")
        about = training("nano-looped") if loops == "1" else ["", ""]
        rows.append([name, *about, *scores(found["nano-looped"][loops]), time(loops)])
    rows.append(["constant predictor", "", "", *scores(found["constant"]), ""])
    header = ["trunk", "parameters without the guided head", "steps", "AUC@30, 2 / 8 views", "AbsRel, 2 / 8 views"]
    return table([*header, "time relative to nano"], rows)


def all_of_nano() -> str:
    """Cameras and depth of the held-out scenes: nano, its network's own cameras, and the constant."""
    rows = []
    for views, found in result("nano_accuracy")["synthetic"].items():
        for kind, title in (("nano", f"{views} **nano**"), ("network", " before"), ("constant", " constant")):
            row = found[kind]
            rows.append(
                [
                    title,
                    auc(row, 5, 15, 30),
                    f"{row['all_auc30']:.1f}",
                    f"{row['rotation_deg']:.1f}°, {row['translation_deg']:.1f}°",
                    f"{row['abs_rel']:.1f} %",
                    f"{row['focal']:.1f} %",
                    f"{row['small_baseline_pairs']:.0f} %",
                ]
            )
    header = ["views", "AUC@5 / 15 / 30", "AUC@30, all pairs", "rotation, direction (median)", "AbsRel", "focal"]
    return table([*header, "near pairs"], rows)


def edges() -> str:
    """Depth steps that nano shows."""
    rows = [
        [views, *(f"{found['nano'][key]:.0f} %" for key in ("edge12", "edge3", "edge_seen", "edge3_seen"))]
        for views, found in result("nano_accuracy")["synthetic"].items()
    ]
    return table(["views", "step within 12 px", "within 3 px", "edges seen", "seen: within 3 px"], rows)


def photographs() -> str:
    """nano on the photo scenes."""
    rows = [
        [
            name,
            str(row["views"]),
            auc(row["nano"], 15, 30),
            auc(row["network"], 15, 30),
            auc(row["constant"], 15, 30),
            f"{row['focal_error_percent']:.0f} %",
        ]
        for name, row in result("nano_accuracy")["photos"].items()
    ]
    header = ["scene", "views", "nano AUC@15 / 30", "before", "constant", "focal length error (median)"]
    return table(header, rows)


def loading() -> str:
    """Peak memory of loading over the bytes of the parameters."""
    found = {(row["form"], row["dtype"], row["way"]): row["peak_over_target"] for row in result("loading")["rows"]}
    titles = {"safetensors": "`.safetensors`", "pt": "`.pt`", "shards": "four shards"}
    rows = [
        [titles[form], dtype, *(f"{found[form, dtype, way]:.2f}" for way in ("lean3r", "usual"))]
        for form, dtype in dict.fromkeys((form, dtype) for form, dtype, _ in found)
    ]
    return table(["form", "type", "lean3r", "`load_state_dict` and cast"], rows)


TITLES = {"da3-large": "DA3-Large", "vggt": "VGGT", "pi3": "Pi3"}


def peers() -> str:
    """Time and activations beside the official programs; * where those are of an earlier measurement."""
    found = result("peers")
    rows = []
    for name, title in TITLES.items():
        for views in ("8", "16"):
            official = found[name]["float32"][views].get("official")
            star, base = ("", official) if official else (" *", found[name]["reference_official"][views])
            cells = [f"{base['seconds']:.1f} s, {base['activation_mb']:.0f} MB{star}"]
            for dtype in ("float32", "bfloat16"):
                ours = found[name][dtype][views]["ours"]
                ratios = ", ".join(f"{ours[key] / base[key]:.2f}" for key in ("seconds", "activation_mb"))
                cells.append(f"{ours['seconds']:.1f} s, {ours['activation_mb']:.0f} MB ({ratios})")
            rows.append([f"{title}, {views}", *cells])
    return table(["model, views", "official float32", "lean3r float32", "lean3r bfloat16"], rows)


def peers_amx() -> str:
    """CPU seconds and activations beside the official programs on a processor with AMX."""
    rows = []
    for name in ("vggt", "pi3"):
        found = result("peers_amx")[name]["8"]
        cells = [f"{found['official']['cpu_seconds']:.1f} s, {found['official']['activation_mb']:.0f} MB"]
        for form in ("float32", "bfloat16", "int8"):
            row = found[form]
            ratios = f"{row['ratio']['cpu_seconds']:.2f}, {row['ratio']['activation_mb']:.2f}"
            cells.append(f"{row['cpu_seconds']:.1f} s, {row['activation_mb']:.0f} MB ({ratios})")
        rows.append([f"{TITLES[name]}, 8", *cells])
    header = ["model, views", "official float32", "lean3r float32", "lean3r bfloat16", "lean3r, plan `int8-dynamic`"]
    return table(header, rows)


FORMS = {
    "float32": "float32",
    "fp8": "`fp8`, no training",
    "fp8 trained": "`fp8`, 400 steps of training",
    "fp8-weight": "`fp8-weight`",
    "int8-dynamic": "`int8-dynamic`",
}
"""Row of fp8.json -> what the page calls it."""


def rounded() -> str:
    """nano in number formats."""
    views = result("fp8")["accuracy"]["views"]
    rows = [
        [
            title,
            " / ".join(f"{views[n][name]['auc30']:.1f}" for n in ("2", "8")),
            " / ".join(f"{views[n][name]['abs_rel']:.2f}" for n in ("2", "8")) + " %",
        ]
        for name, title in FORMS.items()
    ]
    return table(["nano", "AUC@30, 2 / 8 views", "AbsRel, 2 / 8 views"], rows)


def sizes() -> str:
    """Bytes of weights."""
    found = result("fp8")["bytes"]
    rows = [
        [TITLES[name], *(f"{found[name][form]:.2f} GB" for form in ("float32_gb", "bfloat16_gb", "fp8_gb"))]
        for name in ("vggt", "pi3", "da3-large")
    ]
    return table(["", "float32", "bfloat16", "plan `fp8`"], rows)


RUNS = {
    "default": "by default",
    "every-2": "`--every 2`",
    "every-3": "`--every 3`",
    "fps-2.5": "`--fps 2.5`",
    "known-intrinsics": "by default, known intrinsics",
    "refine-off": "`--refine off`",
}
"""Row of video.json -> what the page calls it."""


def video() -> str:
    """Frames chosen in several ways."""
    rows = []
    for name, title in RUNS.items():
        row = result("video")["runs"][name]
        errors = f"{row['median_cm']:.1f} cm, {row['max_cm']:.0f} cm"
        rows.append([title, str(row["views"]), str(row["uncertain"]), errors, f"{row['wall_s']:.0f}"])
    return table(["frames", "views", "uncertain", "median, largest error of the others", "seconds"], rows)


STREAMED = {
    "refined": "by default",
    "refined, known intrinsics": "`--intrinsics`",
    "keyframes every 9 %": "`--keyframe-step 0.09`",
    "keyframes every 15 %": "`--keyframe-step 0.15`",
    "on its side": "the film on its side",
    "backwards": "the film backwards",
    "every second frame": "every second frame of it",
    "two takes": "two takes: half of it, a cut, the rest backwards",
    "half size": "in half its size, 270x180 pixels",
    "enlarged": "in three times its size, 1620x1080 pixels",
    "bent": "through a lens that bends lines (k1 -0.2)",
    "bent, lens known": "the same, `--intrinsics` with `k1`",
    "not refined": "`--refine off`",
}
"""Row of stream.json -> what the page calls it."""


def streamed() -> str:
    """The walk as a stream."""
    rows = []
    for name, title in STREAMED.items():
        row = result("stream")["walk"][name]
        errors = f"{row['ate_cm']:.1f} cm, {row['max_cm']:.0f} cm"
        every = f"{row['all_frames']['ate_cm']:.1f} cm"
        steps = f"{row['rpe_cm']:.1f} cm, {row['rpe_deg']:.1f} degrees"
        counts = [str(row[key]) for key in ("keyframes", "uncertain")]
        seconds = f"{row['cpu_s']:.0f}" if "cpu_s" in row else ""
        rows.append([title, *counts, errors, every, steps, seconds, f"{row['peak_memory_mb']:.0f} MB"])
    head = ["stream", "keyframes", "uncertain frames", "ATE, largest error of the others", "ATE of all frames"]
    return table([*head, "from frame to frame", "CPU seconds", "memory"], rows)


def rendered() -> str:
    """Rendered walks as streams."""
    rows = []
    for name, row in result("stream")["rendered"].items():
        again = row.get("revisits")
        there = f"{again['median_cm']:.0f} cm, {again['median_deg']:.1f} degrees" if again else ""
        errors = f"{row['ate_cm']:.0f} cm, {row['max_cm']:.0f} cm"
        every, counts = f"{row['all_frames']['ate_cm']:.0f} cm", [str(row[key]) for key in ("keyframes", "uncertain")]
        rows.append([name, *counts, errors, every, there, f"{row['cpu_s']:.0f}", f"{row['peak_memory_mb']:.0f} MB"])
    head = ["rendered walk", "keyframes", "uncertain frames", "ATE, largest error of the others", "ATE of all frames"]
    return table([*head, "motion over a round, median error", "CPU seconds", "memory"], rows)


def long_streams() -> str:
    """Memory and time of long streams through a cache."""
    rows = []
    for row in result("stream")["cache"]:
        cells = [f"{row['frames']:,}", f"{row['keyframes']:,}", f"{row['held_mb']:.1f} MB"]
        cells += [f"{row['cache_bytes'] / row['formula_bytes']:.3f}", f"{row['process_mb']:.0f} MB"]
        rows.append([*cells, f"{row['frame_ms']['p95']:.1f}, {row['frame_ms']['p99']:.0f}"])
    head = ["after frames", "keyframes", "held", "cache over formula", "process"]
    return table([*head, "ms a frame of the last 500: 95 %, 99 %"], rows)


LESS_OF_A_CACHE = {
    "bfloat16": "keys and values in bfloat16, half as large",
    "float8": "in FP8 with a scale for each frame and head, a quarter as large",
    "three quarters": "a window of three quarters",
    "half": "a window of half",
    "nearest half": "the half of the window that is nearest to the frame",
    "nearest quarter": "the nearest quarter",
}


def pages() -> str:
    """What less of a cache changes."""
    measured = {row["less"]: row for row in result("stream")["pages"]}
    rows = [
        [
            text,
            f"{measured[less]['depth_percent']:.2f} %",
            f"{measured[less]['position_percent']:.1f} %",
            f"{measured[less]['rotation_deg']:.1f} degrees",
        ]
        for less, text in LESS_OF_A_CACHE.items()
    ]
    return table(["instead of all of it in float32", "depth", "position, of the way's extent", "rotation"], rows)


OF_MEASURED: dict[str, Callable[[], str]] = {
    "many-views": many_views,
    "looped": looped,
    "nano-accuracy": all_of_nano,
    "nano-edges": edges,
    "nano-photographs": photographs,
    "layers": lambda: cost_tables(layers()),
    "networks": lambda: cost_tables(networks()),
    "speed": speed,
    "photos": photos,
    "loading": loading,
    "peers": peers,
    "peers-amx": peers_amx,
    "rounded": rounded,
    "sizes": sizes,
    "video": video,
    "stream": streamed,
    "stream-rendered": rendered,
    "stream-long": long_streams,
    "stream-pages": pages,
}
"""Name of a table on a page -> what makes it."""
