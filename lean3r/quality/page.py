"""From facts to the page: what each section shows, and the template that lays it out."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from lean3r.export.frusta import camera_centres
from lean3r.geometry.up import estimate_up, rotation_down
from lean3r.grow.result import CONFIRMED
from lean3r.quality import charts
from lean3r.quality.agreement import Agreement, agreement_of, calibration, common_points
from lean3r.quality.facts import Facts
from lean3r.quality.plain import as_list, as_map, as_number, as_text, visible

KINDS = {
    "refined": "adjusted to verified matches, from the network's prediction",
    "fallback": "from matches alone, because the prediction did not lead there",
    "given": "known cameras, held as they were given",
    "predicted": "by the network; nothing else confirms it",
    "uncertain": "may be far off; left out of the cloud",
}
MANY = 12  # names that a warning lists
LEAST_TIES = 10  # common points that tie two views firmly
UNWRITTEN = "without writing the files"


def page(facts: Facts) -> str:
    """The HTML of a report."""
    agreement = None if facts.scene is None else agreement_of(facts.scene)
    about = facts.about
    known = {
        "facts": facts,
        "version": as_text(about.get("lean3r")) or _version(),
        "tiles": _tiles(facts, agreement),
        "warnings": _warnings(about),
        "preview": None if facts.preview is None else base64.b64encode(facts.preview).decode(),
        "sizes": Counter(f"{v.size[0]} x {v.size[1]}" for v in facts.views if v.size is not None).most_common(6),
        "kinds": [(k, KINDS.get(k, ""), n) for k, n in Counter(v.registration for v in facts.views).most_common()],
        "confirmed": _confirmed(facts),
        "gps": as_map(about.get("gps")),
        "up": as_map(about.get("up")),
        "refinement": as_map(about.get("refinement")),
        "stereo": as_map(about.get("stereo")),
        "distance": as_map(about.get("known_distance")),
        "costs": _costs(about),
        "run": _run(facts),
        "settings": _settings(facts.config),
        "table": _table(facts, agreement),
    }
    return _template().render(known | _figures(facts, agreement))


@cache
def _template() -> Any:
    jinja = Environment(
        loader=PackageLoader("lean3r.quality", ""),
        autoescape=True,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters["number"] = _number
    return jinja.get_template("page.html")


def _shown(value: object) -> object:
    """What an expression of the template prints; every text from outside has its control signs made visible."""
    if value is None:
        return "–"
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _number(value: object, spec: str = ",.3g", unit: str = "") -> str:
    found = as_number(value.item() if isinstance(value, np.generic) else value)
    return "–" if found is None else f"{found:{spec}}{unit}"


def _version() -> str:
    from importlib import metadata

    return metadata.version("lean3r")


def _unit(facts: Facts) -> str:
    return "m" if facts.scale == "metric" else "units"


def _confirmed(facts: Facts) -> int:
    """The number of views whose cameras more than the network supports."""
    return sum(view.registration in CONFIRMED for view in facts.views)


def _tiles(facts: Facts, agreement: Agreement | None) -> list[tuple[str, str, str]]:
    """The key figures: label, value, remark."""
    about = facts.about
    error = as_map(as_map(about.get("refinement")).get("error_px"))
    before, after = (as_number(error.get(key)) for key in ("before", "after"))
    sure = _confirmed(facts)
    costs = dict(_costs(about))
    memory, gpu = (as_number(about.get(key)) for key in ("peak_memory_mb", "peak_gpu_memory_mb"))
    differs = _disagreement(facts, agreement)
    rms = as_number(as_map(about.get("gps")).get("rms_m"))
    tiles = [
        ("Views", f"{len(facts.views):,}", f"{len(facts.skipped):,} skipped"),
        ("Cameras confirmed", f"{sure:,} of {len(facts.views):,}", "by matches, or given"),
    ]
    if after is not None and as_map(about.get("refinement")).get("status") != "kept":
        tiles.append(("Reprojection error", f"{after:.2f} px", f"{_number(before, '.2f')} px before refinement"))
    if differs is not None:
        tiles.append(("Depth disagreement", f"{differs:.1%}".replace("%", " %"), "median between views"))
    if facts.points is not None:
        tiles.append(("Points", f"{facts.points:,}", f"scale: {facts.scale}"))
    if rms is not None:
        tiles.append(("GPS residual", f"{rms:.2f} m", "root mean square"))
    if costs:
        parts = [as_text(about.get("device")), "" if "export" in costs else UNWRITTEN]
        tiles.append(("Time", f"{sum(costs.values()):,.1f} s", ", ".join(filter(None, parts))))
    if memory is not None:
        parts = ["" if gpu is None else f"{gpu:,.0f} MB on the GPU", "" if "export" in costs else UNWRITTEN]
        tiles.append(("Peak memory", f"{memory:,.0f} MB", ", ".join(filter(None, parts))))
    return tiles


def _disagreement(facts: Facts, agreement: Agreement | None) -> float | None:
    """The median relative difference between views: that of the summary if stereo measured depth, because the final
    depth of a view has taken that of the others into account."""
    stereo = as_map(facts.about.get("stereo"))
    if stereo.get("status") == "measured":
        return as_number(as_map(stereo.get("disagreement")).get("after"))
    differs = np.zeros(0) if agreement is None else agreement.difference[np.isfinite(agreement.difference)]
    return float(np.median(differs)) if len(differs) else None


def _warnings(about: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = []
    for each in as_list(about.get("warnings")):
        names = [as_text(name) for name in as_list(as_map(each).get("views"))]
        said = as_text(as_map(each).get("text")) or as_text(each, "a warning without a text")
        code = as_text(as_map(each).get("code"), "warning")
        found.append({"code": code, "text": said, "views": names[:MANY], "more": max(0, len(names) - MANY)})
    return found


def _costs(about: Mapping[str, Any]) -> list[tuple[str, float]]:
    stages = ((str(stage), as_number(value)) for stage, value in as_map(about.get("seconds")).items())
    return [(stage, value) for stage, value in stages if value is not None]


def _run(facts: Facts) -> list[tuple[str, str]]:
    """What ran, with which weights and under which licence."""
    about = facts.about
    plan = as_map(about.get("plan"))
    rows = [
        ("Model", as_text(about.get("model"))),
        ("Licence of the weights", as_text(about.get("licence"))),
        ("Weights", as_text(about.get("weights"))),
        ("Hash of the weights", as_text(about.get("weights_hash"))),
        ("Compression", as_text(plan.get("name"))),
        ("Device", as_text(about.get("device"))),
        ("Number type", as_text(facts.config.get("dtype"))),
        ("lean3r", as_text(about.get("lean3r")) or _version()),
        ("torch", as_text(about.get("torch"))),
        ("Command", as_text(about.get("command"))),
    ]
    return [(label, text) for label, text in rows if text]


def _settings(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in config.items():
        if isinstance(value, Mapping):
            rows += _settings(value, f"{prefix}{key}.")
        elif value is not None:
            shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            rows.append((f"{prefix}{key}", shown))
    return rows


def _table(facts: Facts, agreement: Agreement | None) -> list[dict[str, Any]]:
    """A row for each view."""
    scene, residuals = facts.scene, _residuals(facts)
    ties = None if scene is None else common_points(scene)
    sky = as_list(facts.about.get("sky"))
    rows = []
    for number, view in enumerate(facts.views):
        error = as_map(view.record.get("error_px"))
        row: dict[str, Any] = {
            "view": view,
            "kind": view.registration if view.registration in KINDS else "predicted",
            "before": as_number(error.get("before")),
            "after": as_number(error.get("after")),
            "doubt": as_text(view.record.get("uncertain")),
            "sky": as_number(sky[number]) if number < len(sky) else None,
            "gps": float(np.linalg.norm(residuals[view.name])) if view.name in residuals else None,
        }
        if ties is not None:
            partners = (ties[number] >= LEAST_TIES).sum() - (ties[number, number] >= LEAST_TIES)
            row |= {"points": int(ties[number, number]), "partners": int(partners)}
        if scene is not None and scene.depth.shape[-1] > 1:
            inside = scene.mask[number]
            row["known"] = float((scene.depth[number][inside] > 0).mean()) if inside.any() else 0.0
        if agreement is not None and number in agreement.views:
            at = int(np.searchsorted(agreement.views, number))
            others = np.delete(agreement.overlap[at], at)
            row["overlap"] = float(np.nanmax(others)) if len(others) and np.isfinite(others).any() else None
        rows.append(row)
    return rows


def _residuals(facts: Facts) -> dict[str, tuple[float, ...]]:
    """East, north and, where the positions have altitudes, up in metres from the position by GPS to each camera."""
    found = {}
    for each in as_list(as_map(facts.about.get("gps")).get("residuals")):
        east, north, up = (as_number(as_map(each).get(key)) for key in ("east_m", "north_m", "up_m"))
        if east is not None and north is not None:
            found[as_text(as_map(each).get("name"))] = (east, north) if up is None else (east, north, up)
    return found


def _figures(facts: Facts, agreement: Agreement | None) -> dict[str, Any]:
    """The drawings; those that cannot be made are left out."""
    views, unit = facts.views, _unit(facts)
    kinds = [view.registration if view.registration in KINDS else "predicted" for view in views]
    names = [visible(view.name) for view in views]
    found: dict[str, Any] = {}
    errors = [as_number(as_map(view.record.get("error_px")).get("after")) for view in views]
    if any(error is not None for error in errors):
        label = f"Bars: the reprojection error of each of {len(views)} views, in pixels of the original pictures"
        found["errors"] = charts.bars(errors, names, label, "px", kinds)
    if facts.scene is not None:
        turn = _upright(facts)
        level = turn[[0, 2, 1]] * np.array([1.0, 1.0, -1.0])[:, None]  # x, y (down), z: to east, north, height
        found["plan"] = _plan(facts, level, kinds, names, unit)
        if agreement is not None:
            found |= _of_agreement(agreement, agreement.xyz @ level.T, unit)
    return found


def _plan(facts: Facts, level: np.ndarray, kinds: list[str], names: list[str], unit: str) -> Markup:
    assert facts.scene is not None
    poses = facts.scene.cam_from_world
    places, ahead = camera_centres(poses) @ level.T, poses[:, 2, :3] @ level.T
    ground = None
    if facts.cloud is not None and len(facts.cloud[0]):
        xyz, rgb = facts.cloud[0].astype(np.float64) @ level.T, facts.cloud[1]
        # Ceilings would hide the room.
        low = xyz[:, 2] <= places[:, 2].max() + 0.02 * np.ptp(xyz[:, 2])
        ground = (xyz[low], rgb[low]) if low.mean() > 0.3 else (xyz, rgb)
    residuals = _residuals(facts)
    offsets = None
    if residuals:
        offsets = -np.array([residuals.get(view.name, (np.nan,) * 3)[:2] for view in facts.views])
    label = f"Plan from above: {len(places)} cameras over the cloud, each with the direction in which it looks"
    return charts.plan(places[:, :2], ahead[:, :2], kinds, names, ground, unit, label, offsets=offsets)


def _of_agreement(agreement: Agreement, level_xyz: np.ndarray, unit: str) -> dict[str, Any]:
    found: dict[str, Any] = {"shares": agreement.shares, "compared": len(agreement.views)}
    count = len(agreement.views)
    if count > 1:
        values = np.where(np.eye(count, dtype=bool), np.nan, agreement.overlap)
        best = np.nanmax(np.nan_to_num(values), axis=1)
        weakest = int(best.argmin())
        found["weakest"] = {"number": int(agreement.views[weakest]) + 1, "share": float(best[weakest])}
        label = (
            f"Matrix of the overlap of {count} views; of the most isolated one, {best[weakest]:.0%} is seen by another"
        )
        found["matrix"] = charts.matrix(values, [str(view + 1) for view in agreement.views], label)
        label = "Map from above: darker where more other views confirm the surface"
        found["coverage"] = charts.heat(level_xyz, agreement.seen_by, 6.0, unit, label)
    bins = calibration(agreement)
    if any(each.difference is not None for each in bins):
        values = [None if each.difference is None else 100 * each.difference for each in bins]
        label = "Curve: how far other views differ, from the least to the most confident tenth of the pixels"
        found["calibration"] = charts.curve(values, "least confident", "most confident", label, "%")
        found["bins"] = bins
    return found


def _upright(facts: Facts) -> np.ndarray:
    """The rotation [3, 3] into a world with y down: as recorded, or by an estimate."""
    assert facts.scene is not None
    stored = [as_number(value) for value in as_list(as_map(facts.about.get("up")).get("direction"))]
    direction = [value for value in stored if value is not None]
    if len(direction) == 3 and np.linalg.norm(direction) > 0.5:
        return rotation_down(direction)
    return rotation_down(estimate_up(facts.scene.cam_from_world[facts.scene.is_certain]).direction)
