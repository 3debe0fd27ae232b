"""docs/nano.md and docs/comparison.md."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

from docs.figures import Page
from docs.markdown import result
from lean3r.eval.protocols.rows import WORLD_SIZES
from lean3r.eval.synthetic import EDGE_STEP, FAR, NEAR, SMALL_BASELINE
from lean3r.models import CARDS, EMBEDDED
from lean3r.models.nano import ENLARGED, MOST_MATCHED
from lean3r.models.nano_stream import NanoStream
from lean3r.pipeline.adjusting import ENOUGH, FINER, FINER_VIEWS
from lean3r.train import RECIPES

DENSITIES = ("2", "4", "8", "16", "32")  # views


def megabytes(name: str) -> float:
    """Size of a model's file in the package."""
    return (EMBEDDED / f"{name}.safetensors").stat().st_size / 1e6


def phase(number: int) -> list[int]:
    """Width and height of the pictures of a phase of nano's recipe, its steps, and the views of a step."""
    recipe = RECIPES.get("nano")()
    (stage,) = recipe.phases[number].stages
    return [stage.width, stage.height, stage.steps, stage.views_per_step * recipe.processes]


def untrained(name: str) -> float:
    """AUC@30 of a row of nano's table at 8 views."""
    return result("nano_table")["rows"][name]["benchmarks"]["synthetic@8"]["auc30"]


def deepest_loss(*views: str) -> float:
    """The lowest end of an interval of AUC@30 of the students, as a loss."""
    rows = (row for count in views for row in result("nano_densities")["views"][count].values())
    return -min(row["against_dense"]["auc30"]["low"] for row in rows if "against_dense" in row)


def bold_row(figure: str) -> tuple[float, float]:
    """Of nano-gsa-fp8 with 32 others less nano with all: mean and standard error over scenes."""
    ways = result("nano_many_views")["ways"]
    pairs = zip(ways["nano-gsa-fp8, 32 partners"]["synthetic"], ways["nano, all pairs"]["synthetic"], strict=True)
    differences = [ours[figure] - theirs[figure] for ours, theirs in pairs]
    return statistics.fmean(differences), statistics.stdev(differences) / len(differences) ** 0.5


def many(name: str) -> float:
    """Mean AUC@30 of the scenes of 56 views."""
    return statistics.fmean(row["auc30"] for row in result("nano_many_views")["ways"][name]["synthetic"])


def ours(figure: str) -> Iterable[float]:
    """Of nano on held-out scenes, by the number of views."""
    return [row["nano"][figure] for row in result("nano_accuracy")["synthetic"].values()]


NANO = Page(
    "docs/nano.md",
    [
        (
            "({:.1f} M parameters, {:.1f} MB) and was",
            lambda: [CARDS["nano"].parameters / 1e6, megabytes("nano")],
        ),
        ("{} px (side of the square with the same area) by default", lambda: [CARDS["nano"].resolution]),
        (
            "| {:,} ({:.1f} MB: matrices in float16",
            lambda: [CARDS["nano"].parameters, megabytes("nano")],
        ),
        ("Shipped along with nano ({:.1f} MB)", lambda: [megabytes("nano-gsa-fp8")]),
        ("on {} held-out scenes of 8 views", lambda: [result("nano_table")["scenes"]["8"]]),
        (
            "{} scenes of 2 views, {} of 4, {} of 8, {} of 16, {} of 32;",
            lambda: [result("nano_densities")["scenes"][n] for n in DENSITIES],
        ),
        (
            "dense AUC@30 is {:.1f}, {:.1f}, {:.1f}, {:.1f}, {:.1f})",
            lambda: [result("nano_densities")["views"][n]["dense"]["mean"]["auc30"] for n in DENSITIES],
        ),
        ("there intervals reach down to a loss of {:.1f} points", lambda: [deepest_loss("16", "32")]),
        (
            "On the {} scenes above, untrained, at a tenth of the keys, AUC@30 is {:.1f} dense, {:.1f} with special "
            "tokens like others (`thu-sla`), {:.1f} with special tokens that attend to everything (`sla`)",
            lambda: [
                result("nano_table")["scenes"]["8"],
                *map(untrained, ("dense", "thu-sla keep=0.1", "sla keep=0.1")),
            ],
        ),
        ("held-out scenes of {} views, and seven", lambda: [result("nano_many_views")["views"]]),
        ("is {:.1f} ± {:.1f} in AUC@30 of the scenes", lambda: bold_row("auc30")),
        ("and {:.1f} ± {:.1f} % in AbsRel", lambda: bold_row("abs_rel")),
        (
            "`--model nano` loses {:.1f} in AUC@30 by its 32 others",
            lambda: [many("nano, all pairs") - many("nano, 32 partners")],
        ),
        (
            "the parameter count is {:,} for any number (nano: {:,})",
            lambda: [CARDS[name].parameters for name in ("nano-looped", "nano")],
        ),
        (
            "from scratch for {:.0f} minutes of CPU time each on one core, with {} px pictures for the trunk",
            lambda: [result("looped")["minutes"], result("looped")["side"]],
        ),
        ("tested on {} held-out scenes", lambda: [result("looped")["scenes"]]),
        ("about {} x {} px, 64 patches, five shapes, 2 to 8 views | {:,} x {} |", lambda: phase(0)),
        ("about {} x {} px, 225 patches, five shapes, 2 to 8 views | {:,} x {} |", lambda: phase(1)),
        ("the recipe has {:,} steps with the likelihood", lambda: phase(2)[2:3]),
        ("and the last {} keyframes in full, one token", lambda: [NanoStream.WIDEST]),
        ("After {} keyframes a new cache begins", lambda: [NanoStream.LONGEST]),
        ("and has {:,} parameters. **No weights", lambda: [CARDS["nano-stream"].parameters]),
        (
            "after {:,} steps, {:.0f} minutes of a busy core",
            lambda: [result("nano_stream")["training"][key] for key in ("steps", "minutes")],
        ),
        ("On {} held-out clips in the order of a walk", lambda: [result("nano_stream")["clips"]["number"]]),
        (
            "on {} rendered walks of {} frames",
            lambda: [result("nano_stream")["walks"][key] for key in ("number", "frames")],
        ),
        (
            "A frame of 240 px takes {:.3f} CPU seconds on one thread",
            lambda: [result("nano_stream")["speed"]["cpu_s"]],
        ),
        ("the cache holds {:.1f} MB; frames", lambda: [result("nano_stream")["speed"]["bytes"] / 1e6]),
        ("had learned for {} steps with a cache", lambda: [result("melt")["parent_steps"]]),
        (
            "have {} more steps of 4 walks of {} frames ({} px, chunks of two frames, {} loops)",
            lambda: [result("melt")[key] for key in ("steps", "frames", "side", "loops")],
        ),
        ("On {} held-out walks", lambda: [result("melt")["clips"]]),
        ("once more in pictures of {:.2f} times the side", lambda: [ENLARGED]),
        (
            "explain less than {:.0f} % of the matches, up to {} picture files are read again at {:.2f} times the side",
            lambda: [100 * ENOUGH, FINER_VIEWS, FINER],
        ),
        ("All this serves up to {} views", lambda: [MOST_MATCHED]),
        ("Pairs whose baseline is under {:.0f} % of the mean depth", lambda: [100 * SMALL_BASELINE]),
        ("{} scenes for each number of views", lambda: [result("nano_accuracy")["scenes"]]),
        (
            "four picture shapes ({1} x {0} to {3} x {2} px)",
            lambda: [*WORLD_SIZES[0], *WORLD_SIZES[-1]],
        ),
        ("steps of more than {:.0f} % between", lambda: [100 * math.expm1(EDGE_STEP)]),
        ("shows within {} and within {} pixels of it", lambda: [FAR, NEAR]),
        (
            "at least half their step within {} pixels, and, for these, how much shows within {} pixels",
            lambda: [FAR, NEAR],
        ),
        ("a median rotation error of {:.0f} degrees", lambda: [statistics.fmean(ours("rotation_deg"))]),
        ("The focal length error is {:.0f} % on average", lambda: [statistics.fmean(ours("focal"))]),
    ],
    {
        "with 95 % intervals over scenes": "a setting of the bootstrap",
        "arXiv 2605.30215": "the number of a paper",
        "arXiv 2605.07721": "the number of a paper",
        "the 20-second walk": "a length",
        "120 x 120 px, and 240 x 240 px in front of the guided head | 2,491 x 16 |": "what was run; the text explains",
        "1 + 0.1 / (the expected error": "a formula of the model",
        "(0 to 90 degrees)": "the range of an angle between lines",
    },
)

COMPARISON = Page(
    "docs/comparison.md",
    [
        (f"{views} views, {{}} scenes:", lambda views=views: [result("nano_table")["scenes"][views]])
        for views in ("2", "4", "8", "16", "32")
    ],
    {
        "the middle 95 % of a bootstrap": "a setting of the bootstrap",
        "square pictures of 240 pixels": "a setting of benchmarks/table.py",
    },
)

OF_NANO = (NANO, COMPARISON)
