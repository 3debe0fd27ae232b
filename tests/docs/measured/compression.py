"""The pages about sparse, rounded and trained networks: compress.md, quantise.md, adapters.md and distil.md."""

from __future__ import annotations

import inspect
import statistics

from docs.figures import Page
from docs.markdown import result
from docs.of_experiments import margin
from lean3r.compress import PLANS
from lean3r.compress.sensitivity import FLOOR_DB
from lean3r.data.sampling.lite3r import FEWEST
from lean3r.train import DISTILLATIONS
from lean3r.train.adapting import AdapterChoice
from lean3r.train.losses.distillation import Speed3rDistillation
from lean3r.train.recipes.speed3r import BATCHES, EPOCH_STEPS, MOST_VIEWS
from lean3r.train.teacher_cache import RESERVE_BYTES, RESERVE_SHARE

FIGURES = ("auc30", "abs_rel")
INTERVALS = "what benchmarks/paired.py computes"
CACHED = 16  # bytes of a pixel: a point and its confidence in float32


def scenes(name: str) -> list[int]:
    """Of a comparison, and their views."""
    return [result(name)["scenes"], result(name)["views"]]


def by_head() -> list[str]:
    """Budget, and calibrated plans by head less those by layer."""
    rows = result("calibrated")["budgets"].items()
    return [
        cell
        for budget, row in rows
        for cell in (budget, *(margin(row["by_head"]["minus_by_layer"][f]) for f in FIGURES))
    ]


def against_dense(budget: str, sign: int = 1) -> list[float]:
    """AUC@30 of a calibrated plan less that of dense nano, with its interval."""
    row = result("calibrated")["budgets"][budget]["minus_dense"]["auc30"]
    return [sign * row[key] for key in (("mean", "low", "high") if sign > 0 else ("mean", "high", "low"))]


COMPRESS = Page(
    "docs/how-to/compress.md",
    [
        ("{} other scenes of {} views, minus the whole network", lambda: scenes("removed")),
        ("; {:.1f} and {:.1f} % without removal)", lambda: [result("removed")["dense"][name] for name in FIGURES]),
        ("{} other scenes of {} views, calibrated minus uniform", lambda: scenes("calibrated")),
        ("at {} AUC@30 {}, AbsRel {}; at {} {} and {}.", by_head),
        (
            "the plan of {} loses nothing measurable (AUC@30 {:+.2f}, {:+.2f} to {:+.2f})",
            lambda: ["0.115", *against_dense("0.115")],
        ),
        ("that of {} loses {:.2f} ({:.2f} to {:.2f})", lambda: ["0.06", *against_dense("0.06", -1)]),
        ("evaluated: {:.0f} % of the keys", lambda: [100 * PLANS.get("lite3r")().steps[0].settings["keep"]]),
    ],
    {
        "if they grow 1.05 times": "a threshold of Spark3R's paper",
        "`--plan sla:keep=0.2,mode=token`": "an example of a setting",
        "with 95 % intervals": INTERVALS,
        "`lean3r compress nano plan.json --calibrate photos/ --budget 0.1`": "an example of a command",
        "| `lite3r:keep=0.2` | the paper's text": "a setting of the paper",
        "one window of 4 x 4 patches": "the size of a window of gsa",
    },
)


def feed_forward(tokens: str) -> list[float]:
    """Time and CPU time of feed-forward parts of VGGT in int8-dynamic, relative to float32."""
    row = result("fp8")["speed"][f"6 feed-forward parts of VGGT, {tokens} tokens"]["int8-dynamic"]
    return [row["of_float32"], row["cpu_of_float32"]]


def of_nano(key: str) -> float:
    """Of nano in int8-dynamic, relative to float32."""
    return result("fp8")["speed"]["nano, 8 views of 240 x 240"]["int8-dynamic"][key]


def feed_forward_on_gpu(views: int) -> float:
    """How many times faster than in bfloat16 FP8 is on a GPU."""
    rows = {row["row"]: row for row in result("gpu")["first"]["rows"] if row["part"] == "fp8_linears"}
    return rows[f"{views} views, feed-forward part"]["fp8_times_faster"]


def quantised_layers() -> list[float]:
    """Of nano: CPU time that int8-dynamic saves in them, and their share of the whole; in per cent."""
    row = result("fp8")["speed"]["nano's quantised layers"]
    saved = 1 - row["int8-dynamic"]["cpu_seconds"] / row["float32"]["cpu_seconds"]
    return [100 * saved, 100 * row["float32"]["share"]]


QUANTISE = Page(
    "docs/how-to/quantise.md",
    [
        (
            "{} CPU cores, nano, {} held-out scenes for each number of views",
            lambda: [result("fp8")["hardware"]["cores"], result("fp8")["accuracy"]["scenes"]],
        ),
        (
            "a cast to E4M3 {}, one linear layer {} and its gradient {}, a feed-forward part {}",
            lambda: result("fp8")["noise"].values(),
        ),
        (
            "{:.2f} and {:.2f} at 300 tokens, {:.2f} and {:.2f} at 1,374, {:.2f} and {:.2f} at 2,748",
            lambda: [value for tokens in ("300", "1,374", "2,748") for value in feed_forward(tokens)],
        ),
        ("within noise ({:.2f} and {:.2f})", lambda: [of_nano("of_float32"), of_nano("cpu_of_float32")]),
        ("take {:.0f} % less CPU time, and are only {:.1f} % of the whole", quantised_layers),
        (
            "the feed-forward part of a block of width 1,024 is {:.1f} times as fast as in bfloat16 with 128 views of "
            "869 tokens, {:.1f} times with 32, and takes {:.1f} times as long with 8",
            lambda: [feed_forward_on_gpu(128), feed_forward_on_gpu(32), 1 / feed_forward_on_gpu(8)],
        ),
        ("below {:.0f} dB (`--floor-db`)", lambda: [FLOOR_DB]),
    ],
    {"largest number over 127.5": "a constant of torchao"},
)


def adapted(key: str) -> float:
    """Share of nano's parameters that adapters are, in per cent."""
    return 100 * result("adapters")["choices"][key]["share_of_parameters"]


def apart() -> str:
    """By how much the loss of draws with the first block differs from the probe's, at most."""
    found = result("adapters")["choices"]
    probe = found["gradient"]["loss"]
    with_first = [row for name, row in found.items() if "lot" in name and "frame blocks 0" in row["targets"]]
    return f"{max(abs(row['loss'] - probe) for row in with_first):.2f}"


def saved() -> float:
    """CPU time of a step that the probe's choice saves, compared with adapters in all blocks; in per cent."""
    probe, everywhere = (result("adapters")["choices"][name]["cpu_seconds_a_step"] for name in ("gradient", "all"))
    return 100 * (1 - probe / everywhere)


ADAPTERS = Page(
    "docs/how-to/adapters.md",
    [
        (
            "{} steps of adapters (rank {}, {:.1f} % of all parameters, {:.1f} % in all seven blocks)",
            lambda: [result("adapters")["steps"], result("adapters")["rank"], adapted("gradient"), adapted("all")],
        ),
        ("{} held-out scenes", lambda: [result("adapters")["scenes"]]),
        (
            "the loss is {:.2f}, AUC@30 {:.1f} % and AbsRel {:.1f} %",
            lambda: [result("adapters")["none"][name] for name in ("loss", "auc30", "abs_rel")],
        ),
        ("end within {} of its loss", lambda: [apart()]),
        ("saves only {:.0f} % of the time", lambda: [saved()]),
        ("the rank, {} by default", lambda: [AdapterChoice.rank]),
        ("of each role, {} by default", lambda: [AdapterChoice.share]),
    ],
    {"arXiv 2604.15351": "the number of a paper"},
)


def cached() -> list[float]:
    """Megabytes of a picture of speed3r-pi3 in the cache, terabytes of an epoch, steps of an epoch."""
    (stage,) = DISTILLATIONS.get("speed3r-pi3")(None).phases[0].config.stages
    picture = CACHED * statistics.fmean(stage.pixels)
    return [picture / 1e6, EPOCH_STEPS * BATCHES * MOST_VIEWS * picture / 1e12, EPOCH_STEPS]


DISTIL = Page(
    "docs/how-to/distil.md",
    [
        (
            "`1 - 1 / conf` is at least {}, Pi3's own",
            lambda: [inspect.signature(Speed3rDistillation).parameters["confidence"].default],
        ),
        ("about {:.1f} MB for a picture of the recipe, and {:.1f} TB for the {} steps", cached),
        ("less than {:.0f} % or {:.0f} GB left", lambda: [100 * RESERVE_SHARE, RESERVE_BYTES / 1e9]),
        ("fewer than {} pixels of known depth", lambda: [FEWEST]),
    ],
    {
        "stay below 20 GB of memory": "the limit of a test",
        "The paper says 20 % of the keys and a fixed weight of 0.1": "settings of the paper",
        "`--student-plan lite3r:keep=0.2` and `--gamma 0.1 0.1`": "an example of settings",
        "95 % intervals": INTERVALS,
    },
)

COMPRESSION = (COMPRESS, QUANTISE, ADAPTERS, DISTIL)
