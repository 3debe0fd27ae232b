"""The tables that are made from recorded results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from docs.markdown import result, table
from docs.recorded import recorded


def lite3r_errors() -> str:
    """What the errors of Lite3R's release cost, from the file of the benchmark; trained figures as a range of seeds."""
    found = result("lite3r_errors")
    runs = found["trained, by seed"]

    def span(values: Sequence[float], form: str) -> str:
        return " to ".join(dict.fromkeys(format(pick(values), form) for pick in (min, max)))

    def seeds(rows: Sequence[dict[str, float]]) -> str:
        degrees, depth = ([row[name] for row in rows] for name in ("rot_err_deg", "abs_rel"))
        return f"{span(degrees, '.1f')} deg, AbsRel {span([100 * value for value in depth], '.1f')} %"

    def change(after: Sequence[dict[str, float]], before: Sequence[dict[str, float]]) -> str:
        degrees, depth = (
            [now[name] - then[name] for now, then in zip(after, before, strict=True)]
            for name in ("rot_err_deg", "abs_rel")
        )
        return f"{span(degrees, '+.1f')} deg, AbsRel {span([100 * value for value in depth], '+.1f')} points"

    evaluation, pictures = found["evaluation of the dense nano"], found["pictures of the dense nano"]
    cameras, nan = found["camera loss of the true cameras"], found["one depth of NaN: share of gradients that are NaN"]
    own = runs["test scenes are training scenes"]
    rows = [
        ["true cameras in the data set's world", "camera loss of a network that predicts the truth"]
        + [f"{cameras[form]:g}" for form in ("corrected", "as-released")],
        ["", f"student after {found['steps']} steps, {len(own)} seeds"]
        + [seeds(runs[form]) for form in ("corrected", "as-released")],
        ["pictures without normalisation", "dense nano"]
        + [seeds([pictures[name]]) for name in ("normalised", "raw")],
        ["poses inverted in the evaluation", "dense nano, Chamfer distance; F-score"]
        + [f"{evaluation[n]['chamfer']}; {evaluation[n]['fscore_5cm']:.2f}" for n in ("da3", "da3-as-released")],
        [
            "test scenes are training scenes",
            f"change from the dense nano by {found['steps']} steps on {found['few']} pairs",
            change([row["others"] for row in own], [evaluation["da3"]] * len(own)) + " on other scenes",
            change([row["its scenes"] for row in own], [row["dense, its scenes"] for row in own]) + " on its own",
        ],
        ["one depth of NaN", "share of depths with a gradient of NaN; loss"]
        + [f"{100 * nan[f]:g} %; {nan[f'loss, {f}']:g}" for f in ("corrected", "as-released")],
    ]  # fmt: skip
    return table(["error", "measured", "corrected", "as released"], rows)


def interval(found: dict[str, float]) -> str:
    """A difference with its interval."""
    return f"{found['mean']:+.1f} ({found['low']:+.1f} to {found['high']:+.1f})"


def densities(figure: str) -> str:
    """Differences of sparse students from dense nano, by the number of views, with the share of pairs or without."""
    found = result("nano_densities")["views"]
    views = sorted(found, key=int)
    names = [name for name in found[views[0]] if name != "dense"]

    def cell(row: dict[str, Any]) -> str:
        share = f", {row['density']:.0%}" if figure == "auc30" else ""
        return interval(row["against_dense"][figure]) + share

    rows = [
        [name.replace("gsa-fp8", "`nano-gsa-fp8`"), *(cell(found[count][name]) for count in views)] for name in names
    ]
    return table(["", *(f"{count} views" for count in views)], rows)


def ablations() -> str:
    """The papers' ablations on nano: differences from dense nano and from the base, over all seeds."""
    found = result("nano_ablations")
    rows = [
        [
            name,
            f"{found['runs'][name][0]['density']:.0%}",
            *(interval(against[figure]) for figure in ("auc30", "abs_rel")),
            interval(found["against_base"][name]["auc30"]),
        ]
        for name, against in found["against_dense"].items()
    ]
    return table(["", "density", "AUC@30 - dense", "AbsRel - dense", "AUC@30 - base"], rows)


def accuracy() -> str:
    """nano and the constant on held-out synthetic scenes."""

    def scores(row: dict[str, float]) -> str:
        return " / ".join(f"{row[key]:.1f}" for key in ("auc5", "auc15", "auc30"))

    rows = [
        [views, scores(found["nano"]), scores(found["constant"])]
        + [f"{found[kind]['abs_rel']:.1f} %" for kind in ("nano", "constant")]
        for views, found in result("nano_accuracy")["synthetic"].items()
    ]
    return table(["views", "pose AUC@5 / 15 / 30", "constant", "depth AbsRel", "constant"], rows)


def added() -> str:
    """Cameras of added pictures, and of the same ones reconstructed with all others at once."""

    def cell(row: dict[str, Any]) -> str:
        if "median_deg" not in row:
            return "all uncertain"
        doubts = f", {row['uncertain']} uncertain" if row["uncertain"] else ""
        return f"{row['median_deg']:.2f} deg, {row['median_percent']:.2f} %{doubts}"

    rows = [
        [
            name,
            f"{row['stored']} + {row['new']}",
            str(row["recalled"]),
            *(cell(row[way]) for way in ("added", "at_once")),
            " / ".join(f"{row[way]['processor_seconds']:.0f}" for way in ("added", "at_once")),
        ]
        for name, row in result("add")["accuracy"].items()
    ]
    return table(["scene", "views", "recalled", "added", "all at once", "CPU seconds: added / all at once"], rows)


def added_growth() -> str:
    """The cost of adding to ever larger results."""

    def cell(row: dict[str, Any]) -> str:
        return f"{row['processor_seconds']:.1f} CPU s, {row['of_the_place']} of {row['recalled']}"

    rows = [
        [str(row["stored"]), *(cell(row[way]) for way in ("first", "again")), f"{row['megabytes']:.0f} MB"]
        for row in result("add")["growth"]
    ]
    header = ["stored views", "two pictures, the first time; recalled of the place", "one more; recalled", "result"]
    return table(header, rows)


HOW = {"fallback": "from matches alone", "refined": "refined", "predicted": "predicted"}


def refined() -> str:
    """The network, refined and pycolmap on the photo scenes."""
    rows = [
        [
            f"{name} ({row['views']})",
            " / ".join(f"{row[way]['auc5']:.1f}" for way in ("network", "refined", "pycolmap")),
            HOW[row["refined"]["status"]],
            " / ".join(f"{row[way]['seconds']:.1f}" for way in ("refined", "pycolmap")),
        ]
        for name, row in result("refine")["photos"].items()
    ]
    return table(["photos", "AUC@5: network / refined / pycolmap", "how", "seconds: refined / pycolmap"], rows)


OF_RESULTS: dict[str, Callable[[], str]] = {
    "accuracy": accuracy,
    "added": added,
    "added-growth": added_growth,
    "refined": refined,
    "results": recorded,
    "lite3r-errors": lite3r_errors,
    "densities": lambda: densities("auc30"),
    "densities-depth": lambda: densities("abs_rel"),
    "ablations": ablations,
}
"""Name of a table on a page -> what makes it."""
