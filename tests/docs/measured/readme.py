"""README.md."""

from __future__ import annotations

from docs import of_gpu
from docs.figures import Page
from docs.markdown import result
from docs.measured.values import worst_parity


def synthetic(figure: str) -> list[float]:
    """Of the network alone, refined, and with known intrinsics."""
    return [result("refine")["synthetic"][way][figure] for way in ("network", "refined", "known_intrinsics")]


def walk() -> tuple[float, ...]:
    """The video with default settings."""
    row = result("video")["runs"]["default"]
    return row["views"], row["wall_s"], row["uncertain"], row["median_cm"], row["max_cm"]


def on_gpu() -> list[float]:
    """Times faster than dense with 1,024 views on a GPU, least and most: a layer, and the whole of Pi3."""
    layer = [of_gpu.layer_ms(1024, "dense") / of_gpu.layer_ms(1024, form) for form in of_gpu.LAYER]
    whole = [of_gpu.dense_ms(1024) / ms for form in of_gpu.FORMS if (ms := of_gpu.model_ms(1024, form))]
    return [min(layer), max(layer), min(whole), max(whole)]


README = Page(
    "README.md",
    [
        ("on {} held-out synthetic scenes per row", lambda: [result("nano_accuracy")["scenes"]]),
        (
            "On {} held-out synthetic scenes of {} views",
            lambda: [result("refine")["synthetic"][name] for name in ("scenes", "views")],
        ),
        ("AUC@5 is {:.1f}, {:.1f} and {:.1f} in the median", lambda: synthetic("auc5")),
        ("and {:.1f}, {:.1f} and {:.1f} in the mean", lambda: synthetic("mean_auc5")),
        ("depth AbsRel is {:.1f}, {:.1f} and {:.1f} % (median)", lambda: synthetic("abs_rel")),
        (
            "{} frames chosen by motion, {:.0f} s on two cores of an AMD EPYC; {} frames cannot be "
            "confirmed, are marked and left out, and the position error of the others is {:.1f} cm in the median and "
            "{:.0f} cm at most",
            walk,
        ),
        ("(float32: to within {}, ", lambda: [worst_parity()]),
        (
            "one layer with 1,024 views is {:.0f} to {:.0f} times faster than dense attention, the whole of Pi3 with "
            "random weights {:.0f} to {:.0f} times",
            on_gpu,
        ),
    ],
    {
        "Python 3.11+": "a version",
        "2.2 M parameters": "a count, which `lean3r models` prints",
        "One run on 2 CPU cores": "hardware",
        "60 CPU seconds plus 12 per photo": "a default of --refine-seconds",
        "20-second video": "a length",
    },
)
