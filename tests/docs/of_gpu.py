"""The tables of what a GPU took: one layer and whole models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from docs.markdown import result, table

FORMS = {
    "dense-graphs": "dense, as CUDA graphs",
    "gsa": "`gsa`",
    "gsa-graphs": "the same, as CUDA graphs",
    "gsa-pooled": "`gsa, special=pooled`",
    "gsa-regions": "`gsa, special=pooled, regions=64`",
    "gsa-pooled-fp8": "`gsa, special=pooled`, and `fp8`",
    "gsa-pooled-fp8-graphs": "the same, as CUDA graphs",
    "gsa-regions-fp8": "`gsa, special=pooled, regions=64`, and `fp8`",
    "fp8": "`fp8`",
    "fp8-graphs": "the same, as CUDA graphs",
}
RUNS = ("first", "later", "models")
LAYER = {
    "gsa": "`gsa`",
    "gsa, special tokens pooled": "`gsa, special=pooled`",
    "gsa, special tokens pooled, two levels of 64": "`gsa, special=pooled, regions=64`",
}


def rows_of(part: str) -> dict[str, dict[str, Any]]:
    """Rows with a time, by name; those of later runs in the place of the first."""
    every = (row for kind in RUNS for row in result("gpu")[kind]["rows"])
    return {row["row"]: row for row in every if row["part"] == part and "ms" in row}


def dense_ms(views: int) -> float:
    """Pi3 dense; at 1,024 views by the law that was fitted to the others."""
    rows = rows_of("pi3").items()
    return next(row["ms"] for name, row in rows if row.get("form") == "dense" and row["views"] == views)


def layer_ms(views: int, form: str) -> float:
    """One layer with 5 special tokens a view."""
    return rows_of("layer")[f"{views} views, 5 special, {form}"]["ms"]


def variant_ms(views: int, form: str) -> float | None:
    """The same; None for two levels where only their first form ran, which no longer exists."""
    later = {row["row"] for row in result("gpu")["later"]["rows"]}
    if "levels" in form and f"{views} views, 5 special, {form}" not in later:
        return None
    return layer_ms(views, form)


def model_ms(views: int, form: str) -> float | None:
    """The whole of Pi3, None where it did not run."""
    return rows_of("pi3").get(f"{form}, {views} views", {}).get("ms")


def times(dense: Sequence[float], own: Sequence[float | None]) -> list[str]:
    """How many times faster, with milliseconds."""
    pairs = zip(dense, own, strict=True)
    return ["" if ms is None else f"{base / ms:.2g} ({shown(ms)})" for base, ms in pairs]


def shown(ms: float) -> str:
    """Milliseconds, or seconds above one."""
    return f"{ms / 1e3:.3g} s" if ms >= 1e3 else f"{ms:.3g} ms"


def layers() -> str:
    """One global layer, attention with norm and rotation."""
    views = (32, 128, 1024)
    dense = [layer_ms(count, "dense") for count in views]
    lines = [["dense", *(shown(ms) for ms in dense)]]
    lines += [[name, *times(dense, [variant_ms(count, form) for count in views])] for form, name in LAYER.items()]
    return table(["times faster (time), by views", *(f"{count:,}" for count in views)], lines)


def models() -> str:
    """The whole of Pi3."""
    views = (32, 128, 512, 1024)
    dense = [dense_ms(count) for count in views]
    lines = [["dense", *(shown(ms) for ms in dense[:-1]), f"{shown(dense[-1])}, extrapolated"]]
    lines += [[name, *times(dense, [model_ms(count, form) for count in views])] for form, name in FORMS.items()]
    return table(["times faster (time), by views", *(f"{count:,}" for count in views)], lines)


OF_GPU = {"gpu_layer": layers, "gpu_models": models}
