"""docs/models.md, docs/attention.md and docs/how-to/parity.md."""

from __future__ import annotations

from docs.figures import Page
from docs.markdown import result
from docs.measured.values import as_power, worst_of
from lean3r.bench.official import AGREE
from lean3r.models.base import HALF_DB


def regions(count: int) -> dict:
    """Selection in two levels at 32 views."""
    (row,) = (row for row in result("regions")["rows"] if (row["views"], row["regions"]) == (32, count))
    return row


def gigabytes(name: str, dtype: str) -> float:
    """Weights as they are held."""
    return result("peers_amx")[name]["weights_mb"][dtype] / 1000


def earlier_official(figure: str) -> list[float]:
    """By how many per cent the earlier figures of DA3-Large's official program differ from those of the table."""
    found = result("peers")["da3-large"]
    pairs = [(found["reference_official"][n][figure], found["float32"][n]["official"][figure]) for n in ("8", "16")]
    return [100 * abs(then / now - 1) for then, now in pairs]


def kernels_ms() -> float:
    """What the GPU took of a run whose launches took longer."""
    (found,) = result("gpu")["models"]["profile"].values()
    return found["kernels_ms"]


def eight_bits_ms() -> list[float]:
    """One global layer with keys and values in 8 bits, and in bfloat16, by the kernels of the same run."""
    rows = {row["row"]: row for row in result("gpu")["first"]["rows"] if row["part"] == "layer"}
    names = ("gsa, fp8 keys and values", "gsa")
    return [rows[f"1024 views, 5 special, {name}"]["ms"] for name in names]


def worst_of_peers() -> str:
    """The largest difference from an official program in the recorded runs."""
    every = result("peers")["da3-large"], result("peers_amx")["vggt"], result("peers_amx")["pi3"]
    return worst_of(error for found in every for error in found["relative_rms"].values())


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
        ("takes `gsa` {:.0f} ms with it and {:.0f} ms without", eight_bits_ms),
        ("at 32 views the kernels themselves take {:.0f} ms", lambda: [kernels_ms()]),
    ],
    {
        "NVIDIA H200, torch 2.11, Triton 3.6": "a GPU, and versions",
        "16 heads of 64, 864 patches and 5 special tokens": "sizes",
        "336 x 504 pixels": "a size",
        "Dense at 1,024 views is a n + b n²": "a number of views, and a law",
        "| `sla` | `keep=1.0` with a zero `proj_lin` (`init_std=0.0`)": "settings",
        '`mode="three-way", critical=1.0`': "settings",
        "| `thu-sla` | `keep=1.0` before training": "a setting",
        "`sparsity=0.0`, or `threshold=1.0`": "settings",
        "`ratio=0.0, protect=0.0`": "settings",
        "compute capability 8.9": "a generation of GPUs",
        "The tests require 20 dB.": "the limit of a test",
        "regions of 2 x 2 windows instead (16 times fewer scores)": "a setting, and arithmetic",
    },
)

MODELS = Page(
    "docs/models.md",
    [
        ("all keep at least {:.0f} dB below", lambda: [HALF_DB]),
        (
            "VGGT takes {:.1f} GB instead of {:.1f}, Pi3 {:.1f} instead of {:.1f}.",
            lambda: [gigabytes(name, dtype) for name in ("vggt", "pi3") for dtype in ("bfloat16", "float32")],
        ),
        ("its worst output keeps more than {:.0f} dB too", lambda: [HALF_DB]),
        ("(limit {})", lambda: [result("loading")["limit"]]),
        ("da3-base, {:.0f} MB in float32", lambda: [result("loading")["rows"][0]["target_mb"]]),
        (
            "{} x {} px, 2 cores of an AMD EPYC with avx512_bf16, torch {},",
            lambda: [*result("peers")["size"], result("peers")["hardware"]["torch"].partition("+")[0]],
        ),
        ("equal to within {}", lambda: [worst_of(result("peers")["da3-large"]["relative_rms"].values())]),
        (
            "earlier official figures are {:.0f} and {:.0f} % lower in time and {:.0f} and {:.0f} % higher in memory",
            lambda: [*earlier_official("seconds"), *earlier_official("activation_mb")],
        ),
        ("equal to ours within {}", lambda: [worst_of(result("peers_amx")["vggt"]["relative_rms"].values())]),
        ("Much of VGGT's {:.1f} s in bfloat16", lambda: [result("peers_amx")["vggt"]["8"]["bfloat16"]["cpu_seconds"]]),
    ],
    {
        "weights of Pi3 and Pi3X under CC BY-NC 4.0": "a licence",
        "the README says CC BY-NC 4.0": "a licence",
        "within 2 % of the peak of torch's allocator on a CPU, and for Pi3X up to 25 % below it": "limits of a test",
        "(40 dB is 1 %, 35 dB 1.8 %)": "arithmetic",
    },
)

COMPARE = Page(
    "docs/how-to/parity.md",
    [
        ("must agree to {} (relative RMS; recorded: {} at most)", lambda: [as_power(AGREE), worst_of_peers()]),
        (
            "in memory at a time: {:.0f} GB for VGGT, {:.0f} GB for Pi3",
            lambda: [2 * gigabytes(name, "float32") for name in ("vggt", "pi3")],
        ),
    ],
    {
        "training agree to 1e-6 in the forward pass": "the limit of a test",
        "as torchao's, to within 1 dB": "the limit of a test",
        "compute capability 8.9": "a generation of GPUs",
    },
)

OF_MODELS = (ATTENTION, MODELS, COMPARE)
