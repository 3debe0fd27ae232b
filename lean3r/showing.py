"""How results print: a few lines with sizes, ranges and units, without arrays; notebooks use the same figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lean3r.types import Known, PointCloud, Prediction, Reconstruction, Source, SparsePoints, Tokens, Views

FEW = 3
LONG, LONGEST = 60, 300  # characters in a name, and in a line
_LABEL = 12


def lines(title: str, figures: dict[str, str]) -> str:
    """The title, then one line for each figure that has a text."""
    return "\n".join([title, *(f"  {label:<{_LABEL}} {_plain(text)}" for label, text in figures.items() if text)])


def source(of: Source) -> str:
    """One line: name, size, focal length, time and orientation."""
    parts = [_names([of.name]), f"{of.width}x{of.height} px"]
    parts += [] if of.focal_px is None else [f"focal {of.focal_px:.0f} px by EXIF"]
    parts += [] if of.timestamp_s is None else [f"at {of.timestamp_s:.2f} s"]
    parts += [] if of.orientation == 1 else [f"orientation {of.orientation}"]
    parts += [] if of.up_in_camera is None else ["up measured"]
    return f"Source({', '.join(parts)})"


def views(of: Views) -> str:
    """A few lines: number and size, padding, names, known cameras and depth."""
    figures = {
        "images": f"{_array(of.images)}, {_span(of.images)}",
        "padding": "none" if of.mask is None else _share(~of.mask),
        "names": _names([s.name for s in of.sources]),
        "known": "" if of.known is None else ", ".join(_given(of.known)),
    }
    return lines(f"Views({_scenes(of.images.shape[:2], of.images.shape[-2:])})", figures)


def known(of: Known) -> str:
    """One line: the parts that are given, with their shapes."""
    return f"Known({', '.join(f'{name} {list(value.shape)}' for name, value in _given(of).items())})"


def tokens(of: Tokens) -> str:
    """A few lines: the layers by name, with their shapes."""
    layout = of.layout
    title = f"Tokens({layout.views} views of {layout.special} special and {layout.rows}x{layout.cols} patch tokens)"
    return lines(title, {name: _array(value) for name, value in of.layers.items()})


def prediction(of: Prediction) -> str:
    """A few lines: number and size, and the ranges of depth, confidence and focal length."""
    size = () if of.depth is None else of.depth.shape[-2:]
    unit = "m" if of.is_metric else "world units"
    figures = {
        "depth": "not requested" if of.depth is None else f"{_array(of.depth)}, {_span(of.depth, unit)}",
        "conf": "" if of.conf is None else f"{_array(of.conf)}, {_span(of.conf)}",
        "focal": _span(of.intrinsics[..., [0, 1], [0, 1]], "px"),
    }
    return lines(f"Prediction({_scenes(of.cam_from_world.shape[:2], size)})", figures)


def points(of: PointCloud) -> str:
    """A few lines: number of points, extent, confidence, number of views."""
    figures = {axis: _span(of.xyz[:, i], "world units") for i, axis in enumerate("xyz")}
    figures |= {"conf": _span(of.conf), "views": f"{len(np.unique(of.view)):,}"}
    return lines(f"PointCloud({len(of.xyz):,} points)", figures)


def sparse(of: SparsePoints) -> str:
    """One line: numbers of points and measurements, reprojection error."""
    return f"SparsePoints({len(of.xyz):,} points, {len(of.point):,} measurements, error {_span(of.error_px, 'px')})"


def reconstruction(of: Reconstruction) -> str:
    """About ten lines: number and size of views, then the main figures."""
    return lines(f"Reconstruction({_scenes((1, len(of.sources)), of.images.shape[1:3])})", figures(of))


def figures(of: Reconstruction) -> dict[str, str]:
    """The main figures of a scene, in words. File names of the user are quoted, but not escaped for HTML."""
    warnings = [str(warning.get("text", warning)) for warning in of.info.get("warnings", ())]
    unit = "m" if of.scale == "metric" else "world units"
    depth = of.depth[of.depth > 0]
    centres = -np.einsum("vji,vj->vi", of.cam_from_world[:, :3, :3], of.cam_from_world[:, :3, 3])
    apart = float(np.linalg.norm(np.ptp(centres, axis=0))) if len(centres) else 0.0
    plan = of.info.get("plan")
    return {
        "model": ", ".join(filter(None, [of.info.get("model"), plan and plan.get("name")])),
        "names": _names(of.names),
        "skipped": _names([name for name, _ in of.skipped]),
        "scale": of.scale,
        "depth": f"{_span(depth, unit)}, known in {_share(of.depth > 0)} of the pixels" if len(depth) else "unknown",
        "cameras": f"within {apart:.3g} {unit}, focal {_span(of.intrinsics[:, [0, 1], [0, 1]], 'px')}",
        "poses": ", ".join(f"{count} {kind}" for kind, count in Counter(of.registration).items()) or "all predicted",
        "points": f"{len(of.points.xyz):,}" + (f", {len(of.sparse.xyz):,} triangulated" if of.sparse else ""),
        "warnings": "; ".join(warnings[:FEW]) + (f" and {len(warnings) - FEW} more" if len(warnings) > FEW else ""),
    }


def _scenes(counts: Sequence[int], size: Sequence[int]) -> str:
    scenes, views = counts
    text = f"{scenes} scenes of " if scenes != 1 else ""
    text += f"{views} view" + ("" if views == 1 else "s")
    return text + (f" of {size[1]}x{size[0]} px" if size else "")


def _names(names: Sequence[str]) -> str:
    """Quoted names; only the first two and the last if there are many."""
    shown = [repr(name if len(name) <= LONG else f"{name[:LONG]}...") for name in names]
    return ", ".join(shown) if len(shown) <= FEW else f"{shown[0]}, {shown[1]} ... {shown[-1]} ({len(names):,})"


def _plain(text: str) -> str:
    """The text without terminal control characters, shortened if it is long."""
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _array(value: torch.Tensor | np.ndarray) -> str:
    where = f" on {value.device}" if isinstance(value, torch.Tensor) and value.device.type != "cpu" else ""
    return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}{where}"


def _span(values: Any, unit: str = "") -> str:
    """The range of the finite values as `0.5 to 7.2 px`, and the number of values that are not finite."""
    if isinstance(values, torch.Tensor):
        if values.device.type == "meta":
            return "no values"
        values = values.detach().float().cpu().numpy()
    finite = values[np.isfinite(values)]
    if not finite.size:
        return "no values"
    low, high = f"{finite.min():.3g}", f"{finite.max():.3g}"
    text = (low if low == high else f"{low} to {high}") + (f" {unit}" if unit else "")
    return text + ("" if finite.size == values.size else f", {values.size - finite.size:,} not finite")


def _share(which: Any) -> str:
    return f"{float(which.mean() if isinstance(which, np.ndarray) else which.float().mean()):.0%}".replace("%", " %")


def _given(known: Known) -> dict[str, torch.Tensor]:
    return {name: value for name, value in vars(known).items() if value is not None}
