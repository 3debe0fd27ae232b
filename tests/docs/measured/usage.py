"""The pages about running networks: cameras that are known, refinement, memory, other networks, the command line."""

from __future__ import annotations

import numpy as np

from docs.figures import Page
from docs.markdown import result
from lean3r import PointOptions, RefineOptions
from lean3r.deploy.export import SHARE
from lean3r.geometry.evidence import CLOSE
from lean3r.inputs.trajectory import GAP_S, SAME_S
from lean3r.inputs.views import MIN_SIDE
from lean3r.models.base import Backbone
from lean3r.models.nano import Nano
from lean3r.pipeline.enlarging import WORTHWHILE
from lean3r.pipeline.known import FIT
from lean3r.pipeline.memory import USUAL_THRESHOLD
from lean3r.refine.accept import INLIER_PX
from lean3r.refine.judge import LEAST_SEEN
from lean3r.refine.options import SECONDS, SECONDS_A_VIEW
from lean3r.refine.pictures import FRAME_SIDE
from lean3r.refine.ties import LIMIT
from lean3r.stereo.alone import MOST_ERROR, WIDE
from lean3r.stereo.classical import AGREE
from lean3r.stereo.network import FINE_PLANES, StereoNet
from lean3r.stereo.network import PLANES as LEARNED_PLANES
from lean3r.stereo.options import AUTO_MEGAPIXELS, FINER, FINER_MEGAPIXELS
from lean3r.stereo.others import APART
from lean3r.stereo.sizes import LEAST, STEP
from lean3r.stereo.sizes import WORTHWHILE as WORTH_LOOKING
from lean3r.train import NetworkRecipe

SIZE = "an example of a size"


def unrefined() -> list[float]:
    """The least and the largest depth error with known cameras and without refinement, in per cent."""
    errors = [100 * abs(row["off_both"]["depth_ratio"] - 1) for row in result("known")["scenes"].values()]
    return [min(errors), max(errors)]


KNOWN = Page(
    "docs/how-to/known-cameras.md",
    [
        ("A pose within {:.0f} ms is used", lambda: [1000 * SAME_S]),
        ("at most {} s apart", lambda: [GAP_S]),
        ("within {:.0f} % of the cameras' spread", lambda: [100 * FIT]),
        ("at 4 000 km their resolution is {:.0f} cm", lambda: [100 * np.spacing(np.float32(4e6))]),
        ("confirms it to {:.0f} %, or an error above {:.0f} % is expected", lambda: [100 * AGREE, 100 * MOST_ERROR]),
        ("without refinement the depth error is {:.0f} to {:.0f} %", unrefined),
    ],
    {"`1305031102.175304.png`": "an example of a name"},
)


def under_load() -> list[float]:
    """Answers in milliseconds, and what the service took in the second minute."""
    first, second = result("serve")["load"]["halves"]
    polls, spent = second["polls"], [second["cpu_seconds"]["service"], second["waited_for_a_processor_seconds"]]
    return [polls["p50_ms"], polls["p95_ms"], *spent, first["memory_mb"]["end"], second["memory_mb"]["end"]]


SERVE = Page(
    "docs/how-to/serve.md",
    [
        ("while {} uploaded {:.0f} MB", lambda: [result("serve")["load"][key] for key in ("uploaders", "upload_mb")]),
        (
            "within {:.0f} ms, and nineteen of twenty within {:.0f} ms. The service worked for {:.0f} seconds of a "
            "minute and waited {:.0f} seconds for a processor; its memory was {:.0f} MB after the first minute and "
            "{:.0f} MB after the second.",
            under_load,
        ),
        (
            "In {} rounds of SIGKILL to the service or its worker, all of {} accepted jobs",
            lambda: [result("serve")["kills"][key] for key in ("rounds", "accepted")],
        ),
        (
            "on a Ray cluster of one machine, all of {} in {} rounds",
            lambda: [result("serve")["cluster"][key] for key in ("accepted", "rounds")],
        ),
        ("of at most {} pixels", lambda: [max(row["side"] for row in result("serve")["batching"]["rows"])]),
        ("takes {:.0f} to {:.0f} % less", lambda: batching()[:2]),
        ("at most {:.1f} % of a whole job", lambda: batching()[2:]),
    ],
    {"`127.0.0.1`": "an address"},
)


def batching() -> list[float]:
    """What one pass for several scenes saves, of the network and of a whole job; in per cent."""
    rows = result("serve")["batching"]["rows"]
    saved = [100 * row["saved"] for row in rows]
    return [min(saved), max(saved), max(100 * row["saved_of_job"] for row in rows)]


BATCH = Page("docs/how-to/batch.md", [], {"`--gpus 0.5` has two": "an example"})
DEPLOY = Page("docs/how-to/deploy.md", [], {"`127.0.0.1:8400`": "an address"})

GRAPHS = Page(
    "docs/how-to/deploy-models.md",
    [
        ("`nano.onnx` has {:.1f} MB and is within {:.1e} of nano", lambda: [of_nano()["mb"], furthest(of_nano())]),
        (
            "nano-stream as `.onnx` are within {:.1e}",
            lambda: [max(furthest(row) for row in result("exports")["others"].values())],
        ),
        (
            "{} pictures of 320 x 240 pixels take nano {:.2f} s, onnxruntime {:.2f} s, and the `.pt2` {:.2f} s of",
            lambda: [result("exports")["seconds"][1]["views"], *by_program()],
        ),
        (
            "{} of them take nano-gsa-fp8 {:.1f} s, and its file for many views, of {:.1f} MB and within {:.1e}, "
            "{:.1f} s",
            lambda: of_student(result("exports")["student"]),
        ),
        ("of what such a file computes, {:.0f} % of the values must be", lambda: [100 * SHARE]),
    ],
    {"Weights beyond 2 GB": "the limit of the format", "within 1e-4": "the tolerance"},
)


def of_nano() -> dict:
    """nano.onnx in exports.json."""
    return result("exports")["nano"][".onnx"]


def of_student(found: dict) -> list[float]:
    """nano-gsa-fp8 for many views in exports.json: views, its seconds, and size, difference and seconds of its file."""
    seconds, many = found["seconds"], found["many"]
    ours, theirs = (row["cpu_s"] for row in seconds["rows"].values())
    return [seconds["views"], ours, many["mb"], furthest(many), theirs]


def furthest(row: dict) -> float:
    """The largest difference of any output of an exported file."""
    return max(row["differences"].values())


def by_program() -> list[float]:
    """The processor's seconds of the programs that ran an exported nano."""
    return [row["cpu_s"] for row in result("exports")["seconds"][1]["rows"].values()]


def memory() -> list[float]:
    """How far predictions are below and above the measurement, at most; in per cent."""
    errors = [100 * row["error"] for row in result("memory_budget")["rows"]]
    return [-min(errors), max(errors)]


def replayed() -> list[float]:
    """How much faster a graph is on two machines, with 1, 2 and 8 pictures; and a plan with 32, at most."""
    rows = {
        kind: {row["row"]: row for row in result("gpu")[kind]["rows"] if row["part"] == "pi3"}
        for kind in ("first", "models")
    }
    gains = [rows[kind][f"CUDA graphs, {n} views"]["times_faster"] for n in (1, 2, 8) for kind in rows]
    plan = "gsa-pooled-fp8{}, 32 views"
    return [*gains, rows["models"][plan.format("")]["ms"] / rows["models"][plan.format("-graphs")]["ms"]]


MEMORY = Page(
    "docs/how-to/fit-into-memory.md",
    [
        ("keep up to {:.0f} MB of each", lambda: [USUAL_THRESHOLD / 2**20]),
        ("(limit {:.0f} %)", lambda: [100 * result("memory_budget")["limit"]]),
        ("the prediction is between {:.1f} % below and {:.1f} % above the measurement", memory),
        (
            "`encode` of Pi3 was {:.1f} and {:.1f} times as fast with 1 picture of 336 x 504 pixels, {:.1f} and {:.1f} "
            "times with 2, and {:.1f} and {:.1f} times with 8; with 32, dense gains nothing, a plan of `gsa` and `fp8` "
            "up to {:.1f} times",
            replayed,
        ),
    ],
    {
        "on two machines with an NVIDIA H200": "a GPU",
        "if it is above 8 GB": SIZE,
        "`8GB` (10^9 bytes), `8GiB` (2^30), `500MB`": SIZE,
        '`memory="8GB"`': SIZE,
    },
)


def rounding() -> list[float]:
    """How much depth of nano-gsa-fp8 differs, in per cent: on two or four processes, and by noise on one."""
    rows = [row for row in result("parallel")["equality"] if "median" in row]
    return [100 * max(row["median"] for row in rows), 100 * rows[0]["median_of_noise"]]


MANY_CARDS = Page(
    "docs/how-to/many-cards.md",
    [
        (
            "depth differs by {:.2f} % in the median, and in one process by {:.2f} % when noise of 1e-7 is added",
            rounding,
        ),
        ("differ from those of one process by less than {}", lambda: ["1e-5"] * (result("parallel")["limit"] == 1e-5)),
        (
            "{} views of {} x {} pixels",
            lambda: [result("parallel")["settings"]["memory"][key] for key in ("views", "width", "height")],
        ),
    ],
)

LARGE = Page(
    "docs/how-to/large-backbones.md",
    [],
    {
        "`--memory 8GB`": SIZE,
        "at most 255 000 pixels": "a constant of Pi3's loader",
        "squared within 8 %": "the bound of lean3r.inputs.views.network_size",
    },
)

REFINE = Page(
    "docs/how-to/refine.md",
    [
        (
            "at most {:,} pixels on the longer side, in frames of videos {}:",
            lambda: [RefineOptions().side, FRAME_SIDE],
        ),
        ("(within {:.0f} pixels)", lambda: [INLIER_PX]),
        ("photos that share fewer than {} points with the rest", lambda: [LEAST_SEEN]),
        ("deviates by more than {:.1f} % of the depth", lambda: [100 * LIMIT]),
        ("the default is {:.0f} CPU seconds plus {:.0f} per picture", lambda: [SECONDS, SECONDS_A_VIEW]),
    ],
)

THIRD_PARTY = Page(
    "docs/how-to/third-party.md",
    [("with its weights {} to {})", lambda: [NetworkRecipe().gamma_from, NetworkRecipe().gamma_to])],
)

CLI = Page(
    "docs/cli.md",
    [
        ("{:.0f} CPU seconds, plus {:.0f} per picture", lambda: [SECONDS, SECONDS_A_VIEW]),
        ("smaller than {} pixels on a side", lambda: [MIN_SIDE]),
    ],
    {"stay within `8GB`, `6GiB`": SIZE, "`127.0.0.1`": "an address"},
)

PYTHON = Page(
    "docs/python.md",
    [("as fit into {} MiB of working memory", lambda: [Backbone.chunk_bytes >> 20])],
    {"that `reconstruct` had in 0.1": "a version"},
)

QUICKSTART = Page(
    "docs/quickstart.md",
    [("the default drops the worst {:.0f} %", lambda: [PointOptions().conf_percentile])],
    {"Python 3.11 or newer": "a version", "`--memory 8GB`": SIZE},
)


def by_the_sensor(name: str) -> float:
    """A figure of stereo's depth against the maps of the depth sensor."""
    return result("depth_photos")["scenes"]["office_dining_indoor"]["stereo"][f"sensor_{name}"]


DEPTH = Page(
    "docs/how-to/depth.md",
    [
        ("have up to {} million pixels", lambda: [AUTO_MEGAPIXELS]),
        ("is larger: {} pixels, the side", lambda: [FINER]),
        ("get less, {} million pixels all", lambda: [FINER_MEGAPIXELS]),
        ("from some {:.0f} pictures on", lambda: [round(1e6 * FINER_MEGAPIXELS / WORTHWHILE / Nano.resolution**2, -1)]),
        ("{}, nano's own size", lambda: [Nano.resolution]),
        (
            "The network for stereo has {:.2f} M parameters",
            lambda: [sum(p.numel() for p in StereoNet().parameters()) / 1e6],
        ),
        ("at {} distances around each start, and at {} finer ones", lambda: [LEARNED_PLANES, FINE_PLANES]),
        ("From {:.0f} pixels on, the first look is", lambda: [LEAST * WORTH_LOOKING]),
        ("at pictures that are up to {} times smaller", lambda: [STEP]),
        ("are matched first, at {} distances", lambda: [WIDE]),
        (
            "{:.1f} s a view of 640x480 on two cores",
            lambda: [max(row["seconds_a_view"] for row in result("depth_sizes")["sizes"]["640x480"].values())],
        ),
        ("in another view, to {:.0f} %", lambda: [100 * CLOSE]),
        ("that differs by more than {:.0f} % is of another surface", lambda: [100 * APART]),
        ("the sensor measured, {:.0f} % lie where", lambda: [by_the_sensor("alone")]),
        (
            "from the network's by {:.0f} % wrong; all others are {:.1f} % off",
            lambda: [
                by_the_sensor("of_alone"),
                by_the_sensor("of_seen"),
            ],
        ),
    ],
    {
        "other views confirm within 1 %": "what the table counts",
        "the most confident 80 %": "what the table counts",
    },
)

USAGE = (
    KNOWN, BATCH, DEPLOY, GRAPHS, SERVE, MEMORY, MANY_CARDS, LARGE, REFINE, THIRD_PARTY, CLI, PYTHON, QUICKSTART, DEPTH,
)  # fmt: skip
