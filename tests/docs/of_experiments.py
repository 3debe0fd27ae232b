"""The tables of experiments: plans and adapters of nano, rounded networks, known cameras; from recorded results."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping

from docs.markdown import result, table


def margin(found: Mapping[str, float]) -> str:
    """A difference with its interval."""
    return f"{found['mean']:+.2f} ({found['low']:+.2f} to {found['high']:+.2f})"


MATRICES = {
    "not repaired": "0",
    "fitted on 16 pictures": "fitted on 16 pictures of one scene",
    "fitted on 16 scenes": "fitted on 16 scenes of 8 pictures",
}
"""Form of removed.json -> what the page calls it."""


def removed() -> str:
    """What removal of blocks costs nano."""
    rows = [
        [
            f"{row['removed']} of 7",
            f"{100 * row['parameters']:.0f} %",
            MATRICES[row["form"]],
            *(margin(row["minus_dense"][figure]) for figure in ("auc30", "abs_rel")),
        ]
        for row in result("removed")["rows"]
    ]
    return table(["removed", "parameters", "matrices", "AUC@30", "AbsRel, %"], rows)


def calibrated() -> str:
    """Calibrated plans by layer less uniform ones."""
    rows = [
        [
            budget,
            f"{found['calibrated']['density']:.3f}",
            f"`{name.partition(' ')[0]}`, {uniform['density']:.3f}",
            *(margin(uniform["calibrated_minus"][figure]) for figure in ("auc30", "abs_rel")),
        ]
        for budget, found in result("calibrated")["budgets"].items()
        for name, uniform in found["uniform"].items()
    ]
    return table(["budget", "density", "uniform plan, its density", "AUC@30", "AbsRel, %"], rows)


CHOICES = {
    "gradient": "gradient, also over sqrt(size) (the first three)",
    "last": "the last three",
    "every second": "every second (frame blocks all)",
    "by lot": "random, five draws",
    "all": "all seven",
}
"""Choice of adapters.json -> what the page calls it; draws are rows of their own there."""


def adapters() -> str:
    """Adapters of nano by the choice of blocks; of draws the mean and the range."""
    found = result("adapters")["choices"]
    usual = found["gradient"]["cpu_seconds_a_step"]

    def row(choice: str) -> list[str]:
        runs = [run for name, run in found.items() if re.fullmatch(rf"{choice}( \d)?", name)]

        def span(figure: str, form: str, unit: str = "", scale: float = 1, mean: bool = True) -> str:
            values = [scale * run[figure] for run in runs]
            low, high = format(min(values), form), format(max(values), form)
            middle = f"{statistics.fmean(values):{form}}{unit}"
            if low == high:
                return middle
            return f"{middle} ({low} to {high})" if mean else f"{low} to {high}{unit}"

        return [
            CHOICES[choice],
            span("loss", ".3f"),
            span("auc30", ".1f", " %"),
            span("abs_rel", ".1f", " %"),
            span("cpu_seconds_a_step", ".2f", scale=1 / usual, mean=False),
            span("kept_mib", ".0f", " MiB", mean=False),
        ]

    header = ["blocks", "loss", "AUC@30", "AbsRel", "CPU time per step", "kept for the backward pass"]
    return table(header, map(row, CHOICES))


CASES = {
    "da3_small_full_v2": "DA3-Small, full size",
    "vggt_tiny_v2_wide": "VGGT, small",
    "pi3_tiny_v2_wide": "Pi3, small",
    "pi3x_tiny_v2_wide": "Pi3X, small",
    "da3_tiny_v2_wide": "DA3, small",
}
"""Case of fp8.json -> what the page calls it."""
EARLIER_ITERATIONS = ("pose_enc_iter0", "pose_enc_iter1", "pose_enc_iter2")  # of VGGT's camera head


def outputs() -> str:
    """Decibels of rounded networks, output by output."""

    def row(case: str) -> list[str]:
        fp8, weights = (result("fp8")["outputs"][case][plan] for plan in ("fp8", "fp8-weight"))
        names = [name for name in fp8 if name not in EARLIER_ITERATIONS]
        by_name = ", ".join(f"{name} {fp8[name]:.1f}" for name in names)
        return [CASES[case], by_name, ", ".join(f"{weights[name]:.1f}" for name in names)]

    return table(["model", "`fp8`, by output", "`fp8-weight`, in the same order"], map(row, CASES))


GIVEN = {
    "none": "none given",
    "pinholes": "pinholes, distortion unstated",
    "intrinsics": "intrinsics",
    "both_fixed": "both, fixed",
    "both_start": "both, start",
    "off": "`--refine off`: none",
    "off_both": "`--refine off`: both",
}
"""Way of known.json -> what the page calls it."""


def known() -> str:
    """AUC with parts of the true cameras."""
    rows = [
        [name, *(f"{row[way]['auc1']:.1f} / {row[way]['auc5']:.1f}" for way in GIVEN)]
        for name, row in result("known")["scenes"].items()
    ]
    return table(["scene", *GIVEN.values()], rows)


def depth() -> str:
    """Depth of the photo scenes before and after stereo."""
    rows = [
        [
            name,
            *(f"{row[way]['at_tracks_median']:.2f} %" for way in ("follow", "classical", "small", "stereo")),
            *(f"{row[way]['confirmed']:.0f} %" for way in ("follow", "stereo")),
            f"{row['stereo']['in_three']:.0f} %",
        ]
        for name, row in result("depth_photos")["scenes"].items()
    ]
    errors = ["error: network", "matching alone", "stereo, small", "stereo"]
    shares = ["confirmed: network", "stereo", "in two others"]
    return table(["photos", *errors, *shares], rows)


WAYS = {
    "follow": "network, fitted to points",
    "classical": "matching alone",
    "small": "stereo, small",
    "stereo": "stereo",
}


def depth_rendered() -> str:
    """Depth of rendered scenes with true and with refined cameras."""
    rows = [
        [
            f"{cameras}, {views} views",
            name,
            *(f"{row[way][key]:.1f} %" for key in ("abs_rel", "surest", "within_5")),
            f"{row[way]['normals_deg']:.0f}°",
        ]
        for cameras, counts in result("depth_synthetic")["by_cameras"].items()
        for views, row in counts.items()
        for way, name in WAYS.items()
        if way in row
    ]
    return table(["cameras", "depth", "AbsRel", "surest 80 %", "within 5 %", "normals"], rows)


def depth_sensor() -> str:
    """Depth of the photo scenes that a depth sensor saw."""
    rows = [
        [name, way_name, *(f"{row[way][f'sensor_{key}']:.1f} %" for key in ("abs_rel", "surest", "median", "within_5"))]
        for name, row in result("depth_photos")["scenes"].items()
        if "sensor_abs_rel" in row["stereo"]
        for way, way_name in WAYS.items()
    ]
    return table(["photos", "depth", "AbsRel", "surest 80 %", "median", "within 5 %"], rows)


OF_EXPERIMENTS: dict[str, Callable[[], str]] = {
    "depth": depth,
    "depth_rendered": depth_rendered,
    "depth_sensor": depth_sensor,
    "removed": removed,
    "calibrated": calibrated,
    "adapters": adapters,
    "rounded-outputs": outputs,
    "known-cameras": known,
}
"""Name of a table on a page -> what makes it."""
