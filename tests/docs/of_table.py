"""nano's table: every mechanism, number format and student by number of views, from nano_table.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from docs.markdown import result, table

COSTS = ("seconds", "cpu_seconds", "activation_mb")
HEADER = ("", "density", "AUC@3 / 5 / 15 / 30", "AUC@30 - dense", "AbsRel", "AbsRel - dense")


def interval(found: Mapping[str, float | None]) -> str:
    """A difference with its interval; without one where too few scenes have the figure."""
    difference, low, high = (found[key] for key in ("difference", "low", "high"))
    if difference is None:
        return ""
    span = "" if low is None or high is None else f" ({low:+.1f} to {high:+.1f})"
    return f"{difference:+.1f}{span}"


def cells(name: str, row: Mapping[str, Any], benchmark: str, views: str | None) -> list[str]:
    """A row without costs; `views` names its density."""
    found, against = row["benchmarks"][benchmark], row.get("against_dense", {}).get(benchmark)
    return [
        f"`{name}`" if "=" in name else name,
        "" if views is None else f"{row['density'][views]:.0%}".replace("%", " %"),
        " / ".join(f"{found[f'auc{angle}']:.1f}" for angle in (3, 5, 15, 30)),
        interval(against["auc30"]) if against else "",
        f"{found['abs_rel']:.1f} %",
        interval(against["abs_rel"]) if against else "",
    ]


def synthetic(views: str, chosen: Callable[[str], bool] = lambda name: True) -> str:
    """The rows at one number of views of the synthetic world, with seconds and memory of the network."""

    def costs(row: Mapping[str, Any]) -> list[str]:
        spent = row.get("cost", {}).get(views)
        return [f"{spent[name]:.{0 if name == 'activation_mb' else 2}f}" for name in COSTS] if spent else [""] * 3

    rows = result("nano_table")["rows"].items()
    lines = [cells(name, row, f"synthetic@{views}", views) + costs(row) for name, row in rows if chosen(name)]
    return table([*HEADER, "seconds", "CPU seconds", "MB"], lines)


def photos(benchmark: str, views: str | None) -> str:
    """The rows on the photo scenes, with the median of what a scene takes."""
    lines = []
    for name, row in result("nano_table")["rows"].items():
        spent = row["benchmarks"][benchmark]
        lines.append([*cells(name, row, benchmark, views), f"{spent['cpu_seconds']:.1f}"])
    return table([*HEADER, "CPU seconds"], lines)


def is_main(name: str) -> bool:
    """Dense nano, students and mechanisms at a tenth, not refined."""
    at_a_tenth = ("=12", "=0.1", "sparsity=0.9", "ratio=0.68", "grid=[3,3]", "stride=3")
    return name == "dense" or name.endswith(at_a_tenth) or (name.startswith("student") and "refined" not in name)


OF_TABLE: dict[str, Callable[[], str]] = {
    **{f"nano-{views}": lambda views=views: synthetic(views) for views in ("2", "4", "8", "16", "32")},
    "nano-main-8": lambda: synthetic("8", is_main),
    "nano-photos-2": lambda: photos("colmap@2", "2"),
    "nano-photos-8": lambda: photos("colmap@8", "8"),
    "nano-photos": lambda: photos("colmap", None),
}
"""Name of a table on a page -> what makes it."""
