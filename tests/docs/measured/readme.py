"""README.md."""

from __future__ import annotations

from docs.figures import Page
from docs.markdown import result
from docs.measured.values import model_gain, of_layer, of_pi3_layer, worst_parity


def photos(count: int) -> tuple[float, float]:
    """Seconds and megabytes of so many photos."""
    row = result("nano_cost")[f"views_{count}"]
    return row["wall_s"], row["peak_mb"]


def synthetic(figure: str) -> list[float]:
    """Of the network alone, refined, and with known intrinsics."""
    return [result("refine")["synthetic"][way][figure] for way in ("network", "refined", "known_intrinsics")]


def walk() -> tuple[float, ...]:
    """The video with default settings."""
    row = result("video")["runs"]["default"]
    return row["views"], row["wall_s"], row["median_cm"], row["max_cm"]


README = Page(
    "README.md",
    [
        ("on {} held-out synthetic scenes per row", lambda: [result("nano_accuracy")["scenes"]]),
        ("8 photos take {:.1f} s and {:.0f} MB at the peak", lambda: photos(8)),
        ("64 photos {:.0f} s and {:.0f} MB", lambda: photos(64)),
        ("128 photos {:.0f} s and {:.1f} GB", lambda: (photos(128)[0], photos(128)[1] / 1000)),
        (
            "On {} held-out synthetic scenes of {} views",
            lambda: [result("refine")["synthetic"][name] for name in ("scenes", "views")],
        ),
        ("AUC@5 is {:.1f}, {:.1f} and {:.1f} in the median", lambda: synthetic("auc5")),
        ("and {:.1f}, {:.1f} and {:.1f} in the mean", lambda: synthetic("mean_auc5")),
        ("depth AbsRel is {:.1f}, {:.1f} and {:.1f} % (median)", lambda: synthetic("abs_rel")),
        (
            "{} frames chosen by motion, {:.0f} s, position error {:.1f} cm in the median and {:.0f} cm at most",
            walk,
        ),
        ("(float32: to within {}, ", lambda: [worst_parity()]),
        (
            "`gsa` is {:.1f} times faster than torch's dense attention at 32 views, {:.0f} times at 128 and "
            "{:.0f} times at 256",
            lambda: [of_layer("gsa", views) for views in (32, 128, 256)],
        ),
        (
            "a whole small VGGT is {:.1f} times faster at 64 views and {:.1f} times at 128",
            lambda: [model_gain("tiny vggt", views) for views in (64, 128)],
        ),
        (
            "it is {:.1f} times faster at 32 views, {:.1f} times at 128 and {:.1f} times at 256",
            lambda: [of_pi3_layer("gsa", views) for views in (32, 128, 256)],
        ),
        (
            "and {:.0f} times at 256 with pooled special tokens and two levels",
            lambda: [of_pi3_layer("gsa, pooled, 64 regions", 256)],
        ),
    ],
    {
        "Python 3.11+": "a version",
        "2.2 M parameters": "a count, which `lean3r models` prints",
        "1024 x 768": "a size of pictures",
        "On 2 CPU cores": "hardware",
        "One run on 2 CPU cores": "hardware",
        "60 CPU seconds plus 6 per photo": "a default of --refine-seconds",
        "20-second video": "a length",
    },
)
