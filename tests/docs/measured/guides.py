"""The guides whose text has measured figures; not every figure of them is bound yet (`whole=False`)."""

from __future__ import annotations

import statistics

from docs.figures import Page
from docs.markdown import result
from docs.measured.values import worst_of

DENSITIES = ("2", "4", "8", "16", "32")  # views


def bold_row(figure: str) -> tuple[float, float]:
    """Of nano-gsa-fp8 with 32 others less nano with all: mean and standard error over scenes."""
    ways = result("nano_many_views")["ways"]
    pairs = zip(ways["nano-gsa-fp8, 32 partners"]["synthetic"], ways["nano, all pairs"]["synthetic"], strict=True)
    differences = [ours[figure] - theirs[figure] for ours, theirs in pairs]
    return statistics.fmean(differences), statistics.stdev(differences) / len(differences) ** 0.5


def many(name: str) -> float:
    """Mean AUC@30 of the scenes of 56 views."""
    return statistics.fmean(row["auc30"] for row in result("nano_many_views")["ways"][name]["synthetic"])


def regions(count: int) -> dict:
    """Selection in two levels at 32 views."""
    (row,) = (row for row in result("regions")["rows"] if (row["views"], row["regions"]) == (32, count))
    return row


def feed_forward(tokens: str) -> list[float]:
    """Time and CPU time of feed-forward parts of VGGT in int8-dynamic, relative to float32."""
    row = result("fp8")["speed"][f"6 feed-forward parts of VGGT, {tokens} tokens"]["int8-dynamic"]
    return [row["of_float32"], row["cpu_of_float32"]]


NANO = Page(
    "docs/nano.md",
    [
        (
            "dense AUC@30 is {:.1f}, {:.1f}, {:.1f}, {:.1f}, {:.1f})",
            lambda: [result("nano_densities")["views"][n]["dense"]["mean"]["auc30"] for n in DENSITIES],
        ),
        ("is {:.1f} ± {:.1f} in AUC@30 of the scenes", lambda: bold_row("auc30")),
        ("and {:.1f} ± {:.1f} % in AbsRel", lambda: bold_row("abs_rel")),
        (
            "`--model nano` loses {:.1f} in AUC@30 by its 32 others",
            lambda: [many("nano, all pairs") - many("nano, 32 partners")],
        ),
        ("from scratch for {:.0f} minutes of CPU time each", lambda: [result("looped")["minutes"]]),
        ("tested on {} held-out scenes", lambda: [result("looped")["scenes"]]),
        (
            "The focal length error is {:.0f} % on average",
            lambda: [statistics.fmean(r["nano"]["focal"] for r in result("nano_accuracy")["synthetic"].values())],
        ),
    ],
    whole=False,
)

ATTENTION = Page(
    "docs/attention.md",
    [
        (
            "is {:.1f} dB on normally distributed numbers, {:.1f} with queries three times as long",
            lambda: [result("fp8")["kv"][f"normal numbers, queries x {n}"]["worst_db"] for n in (1, 3)],
        ),
        (
            "it is {:.1f} dB at worst with `gsa` (mean {:.1f}) and {:.1f} with `sla` (mean {:.1f})",
            lambda: [result("fp8")["kv"][f"nano, {n}"][key] for n in ("gsa", "sla") for key in ("worst_db", "mean_db")],
        ),
        (
            "With 64 regions {:.0f} % of them at 32 views, where these are {:.0f} % of all regions, "
            "and {:.0f} % with 16 regions ({:.0f} % of all)",
            lambda: [100 * regions(count)[key] for count in (64, 16) for key in ("recall", "candidates")],
        ),
        (
            "(AUC@30 {:.1f} with one level, {:.1f} and {:.1f})",
            lambda: [regions(64)["one_level"]["auc30"], *(regions(n)["two_levels"]["auc30"] for n in (64, 16))],
        ),
        (
            "(AbsRel {:.1f} %, {:.1f} and {:.1f} %)",
            lambda: [regions(64)["one_level"]["abs_rel"], *(regions(n)["two_levels"]["abs_rel"] for n in (64, 16))],
        ),
    ],
    whole=False,
)

MODELS = Page(
    "docs/models.md",
    [
        ("equal to within {}", lambda: [worst_of(result("peers")["da3-large"]["relative_rms"].values())]),
        ("equal to ours within {}", lambda: [worst_of(result("peers_amx")["vggt"]["relative_rms"].values())]),
        ("(limit {})", lambda: [result("loading")["limit"]]),
        ("da3-base, {:.0f} MB in float32", lambda: [result("loading")["rows"][0]["target_mb"]]),
        ("Of VGGT's {:.1f} s in bfloat16", lambda: [result("peers_amx")["vggt"]["8"]["bfloat16"]["cpu_seconds"]]),
    ],
    whole=False,
)

QUANTISE = Page(
    "docs/how-to/quantise.md",
    [
        (
            "a cast to E4M3 {}, one linear layer {} and its gradient {}, a feed-forward part {}",
            lambda: result("fp8")["noise"].values(),
        ),
        (
            "{:.2f} and {:.2f} at 300 tokens, {:.2f} and {:.2f} at 1,374, {:.2f} and {:.2f} at 2,748",
            lambda: [value for tokens in ("300", "1,374", "2,748") for value in feed_forward(tokens)],
        ),
    ],
    whole=False,
)

GUIDES = (NANO, ATTENTION, MODELS, QUANTISE)
