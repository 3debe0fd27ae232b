"""What a reconstruction says at its end: a table for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lean3r.cli.console import group_skips
from lean3r.processes import peak_memory_mb

if TYPE_CHECKING:
    from lean3r.types import Reconstruction

SHOWN = 3  # views that a warning names in the summary; manifest.json names all of them


def summary(scene: Reconstruction, out: Path, files: Sequence[str], seconds: Mapping[str, float]) -> dict:
    """The values that `--json` prints: seconds by stage, the process's peak memory in MB (10^6 bytes), ..."""
    return {
        "out": str(out),
        "warnings": scene.info.get("warnings", []),
        "views": list(scene.names),
        "skipped": [{"name": name, "reason": reason} for name, reason in scene.skipped],
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        "peak_memory_mb": peak_memory_mb(),
        "points": len(scene.points.xyz),
        "scale": scene.scale,
        "refinement": scene.info.get("refinement"),
        "stereo": scene.info.get("stereo"),
        "files": sorted(files),
    }


def describe_warning(warning: Mapping) -> str:
    """The code and text of a warning, with the names of the first few views concerned."""
    names = warning["views"]
    about = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")
    return f"[{warning['code']}] {warning['text']}" + (f" ({about})" if names else "")


def describe_known(known: Mapping) -> str:
    """The known parts of the cameras, and how each was used."""
    counts, used = known["views"], known["used"]
    parts = []
    for part, name in (("intrinsics", "intrinsics"), ("cam_from_world", "poses"), ("depth", "depth")):
        if part not in counts:
            continue
        distorted = counts.get("distortion", 0) if part == "intrinsics" else 0
        lens = f" (with lens distortion: {distorted})" if distorted else ""
        parts.append(f"known {name} of {counts[part]} views{lens}: {', '.join(used[part]) or 'not used'}")
    return "; ".join(parts)


def describe_refinement(report: Mapping, are_given: bool) -> str:
    """The outcome of a refinement, of cameras that may all be given, and the reprojection error before and after."""
    if report["status"] == "kept":
        return f"none, the cameras are kept as they were: {report['reason']}"
    start = "with the given poses" if are_given else "from the predicted cameras"
    how = start if report["status"] == "refined" else "from matches alone (fallback)"
    error = report["error_px"]
    views = (
        f"{report['trusted']} of {len(report['views'])} views"
        if report["trusted"] < len(report["views"])
        else "all views"
    )
    return f"{views} {how}; reprojection error {error['before']:.2f} -> {error['after']:.2f} px"


def describe_stereo(report: Mapping) -> str:
    """Where depth comes from, and how well the views agree on it."""
    if report["status"] == "kept":
        return f"not measured by stereo: {report['reason']}"
    before, after = (report["disagreement"][key] for key in ("before", "after"))
    said = f"stereo in {report['views']:,} views" + (" until it was interrupted" if "interrupted" in report else "")
    said += f", {report['share']:.0%} of their pixels" if "share" in report else ""
    if after is None:
        return f"{said}; no two of them show the same place"
    return f"{said}; they disagree by {after:.1%} (median)" + ("" if before is None else f", {before:.1%} before")


def describe_mesh(figures: Mapping) -> str:
    """The size of the mesh, in how many pieces and with how many holes it came out, and the size of its texture."""
    numbers = [f"{figures[name]:,} {name.replace('_', ' ')}" for name in ("triangles", "components", "boundary_loops")]
    if texture := figures.get("texture"):
        numbers.append("a texture of {:,} x {:,} on {:,} triangles".format(*texture["size"], texture["triangles"]))
    return ", ".join(numbers)


def describe_page(figures: Mapping) -> str:
    """The size of the page view.html."""
    return f"view.html, {figures['bytes'] / 1e6:.1f} MB with {figures['points']:,} points"


def summary_rows(scene: Reconstruction, done: Mapping) -> list[tuple[str, str]]:
    """The table at the end of a run."""
    seconds = done["seconds"]
    stages = ", ".join(f"{stage} {value:.1f}" for stage, value in seconds.items())
    gpu = scene.info.get("peak_gpu_memory_mb")
    known, masks = scene.info.get("known"), scene.info.get("masks")
    refinement = scene.info.get("refinement")
    return [
        *(("warning", describe_warning(warning)) for warning in done["warnings"]),
        ("views", f"{len(scene.names):,} used"),
        *([("cameras", describe_known(known))] if known else []),
        *([("refinement", describe_refinement(refinement, scene.are_given))] if refinement else []),
        *([("depth", describe_stereo(report))] if (report := scene.info.get("stereo")) else []),
        *([("masks", f"{masks['views']:,} of {len(scene.names):,} views have one")] if masks else []),
        *(("skipped", text) for text in group_skips(scene.skipped)),
        ("seconds", f"{sum(seconds.values()):.1f} ({stages})"),
        ("memory", f"{done['peak_memory_mb']:,.0f} MB peak" + (f", {gpu:,.0f} MB on the GPU" if gpu else "")),
        ("points", f"{done['points']:,}, scale: {done['scale']}"),
        *([("mesh", describe_mesh(figures))] if (figures := done.get("mesh")) else []),
        *([("page", describe_page(figures))] if (figures := done.get("html")) else []),
        ("files", f"{len(done['files'])} in {done['out']}"),
    ]
