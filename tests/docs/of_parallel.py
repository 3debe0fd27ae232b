"""The tables of one scene on several processes, from benchmarks/results/parallel.json."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from docs.markdown import result, table


def sent() -> str:
    """What one of four processes sends for a block across views."""
    dense, sparse = (
        {row["views"]: row for row in result("parallel")["bytes"] if row["model"] == model}
        for model in ("nano, dense", "nano-gsa-fp8")
    )

    def row(views: int) -> list[str]:
        found = sparse[views]
        some = {name: value / found["blocks"] for name, value in found["bytes"].items()}
        parts = [some["coarse"], some["special"], some["windows"] / found["processes"], found["block"]]
        return [str(views), *(f"{part / 1e6:.2f} MB" for part in (dense[views]["block"], *parts)), fetched(views)]

    def fetched(views: int) -> str:
        return f"{sparse[views]['windows_fetched']:.0%}".replace("%", " %")

    head = ["views", "dense: keys and values", "`gsa`: means", "special tokens", "windows", "in all", "windows fetched"]
    return table(head, map(row, dense))


def memory() -> str:
    """Peak memory of a process by the number of processes, and the line through it."""
    rows = []
    for plan in ("dense", "gsa"):
        found = [row for row in result("parallel")["memory"] if row["plan"] == plan]
        line = next(row for row in found if "constant_mb" in row)
        peaks = [f"{row['mb']:.0f} MB" for row in found if "mb" in row]
        rows.append([f"`{plan}`", *peaks, f"{line['constant_mb']:.0f} MB + {line['shared_mb']:.0f} MB / n"])
    return table(["attention between views", "1 process", "2 processes", "4 processes", "line through them"], rows)


def recorded(found: Mapping[str, Any]) -> Iterable[str]:
    """The main figures, for the list of results."""
    worst = max(row["error"] for row in found["equality"] if "error" in row)
    yield f"largest difference to one process: {worst:.0e}"
    for row in found["memory"]:
        if "constant_mb" in row:
            yield f"{row['plan']}: {row['constant_mb']:.0f} MB + {row['shared_mb']:.0f} MB / processes"
    for row in found["bytes"]:
        yield f"{row['model']}, {row['views']} views, {row['processes']} processes: {row['block'] / 1e6:.2f} MB a block"


OF_PARALLEL: dict[str, Callable[[], str]] = {"parallel-bytes": sent, "parallel-memory": memory}
"""Name of a table on a page -> what makes it."""
