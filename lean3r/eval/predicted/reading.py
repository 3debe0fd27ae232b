"""Find and read the predictions for one item of a benchmark, in whatever forms they are there."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lean3r.data.sets.scenes import first_few
from lean3r.errors import InputError
from lean3r.eval.predicted import READERS
from lean3r.eval.predicted.base import MAX_GAP_S, Predicted
from lean3r.eval.predicted.text import ROWS, form_of
from lean3r.inputs.cameras import COLMAP_FILES, find_colmap

NPZ = "predictions.npz"
TEXTS = (".txt", ".csv", ".tum", ".kitti")
NAMED = {
    NPZ: "npz",
    "depth.npy": "depth",
    **{f"{stem}.json": "json" for stem in ("cameras", "transforms", "intrinsics")},
    **{f"{stem}{suffix}": "intrinsics" for stem in ("K", "intrinsics") for suffix in (".npy", ".txt")},
}
PARTS = ("times_s", "cam_from_world", "intrinsics", "depth", "original_from_depth", "cloud")
OWN = (NPZ, "cameras.json", "transforms.json", "sparse", "trajectory_tum.txt", "trajectory_kitti.txt", "cameras.csv")
"""The cameras of `lean3r reconstruct`, which its formats repeat: the first that is there is read."""
OF_A_MODEL = {*COLMAP_FILES, "rigs.txt", "frames.txt"}
MEANT = re.compile("pose|traj", re.IGNORECASE)  # a text file with such a name must hold predictions


def read(
    place: Path,
    names: Sequence[str] | None = None,
    times_s: Sequence[float] | np.ndarray | None = None,
    max_gap_s: float = MAX_GAP_S,
) -> Predicted:
    """The predictions in a folder, in files whose names are `place` with a suffix, or in the file `place`, as one.

    With `names` or `times_s` of a benchmark's pictures, each file is first brought to these: by names if it has them,
    else by times within `max_gap_s`, else by its order. Of what `lean3r reconstruct` wrote in several formats, one is
    read (OWN). InputError if there are none, if two files hold the same part, or if they are for different pictures.
    """
    parts = [_for(READERS.get(form)(path), names, times_s, max_gap_s) for path, form in _sources(place).items()]
    if not parts:
        there = sorted(path.name for path in place.iterdir()) if place.is_dir() else []
        raise InputError(
            f"{place} has no predictions{' among ' + first_few(there) if there else ''}. Expected any of: "
            f"{', '.join(READERS[form].files for form in READERS)}"
        )
    merged = _merged(place, parts, next((len(given) for given in (names, times_s) if given is not None), None))
    return merged if names is None or not merged.views else replace(merged, names=tuple(names))


def _sources(place: Path) -> dict[Path, str]:
    """{file or folder: its form} of an item."""
    beside = (place.with_name(place.name + suffix) for suffix in ("", ".npz", ".ply", *TEXTS))
    found = {path: _form(path, must=True) for path in beside if path.is_file()}
    inside = sorted(place.iterdir()) if place.is_dir() else []
    names = {path.name for path in inside}
    cameras = next((name for name in OWN if name in names), None) if "manifest.json" in names else None
    if cameras == NPZ:
        inside = [path for path in inside if path.name in (NPZ, "points.ply")]
    elif cameras is not None:
        again = {*OWN, *({"mesh.ply"} if "points.ply" in names else ()), *fnmatch.filter(names, "trajectory_*")}
        inside = [path for path in inside if path.name not in again - {cameras}]
    if cameras in (None, "sparse") and (model := find_colmap(place)) is not None:
        found[model] = "colmap"
        inside = [path for path in inside if path != model and path.name not in OF_A_MODEL]
    found.update((path, _form(path, must=bool(MEANT.search(path.stem)))) for path in inside if path.name[0] != ".")
    return {path: form for path, form in found.items() if form is not None}


def _form(path: Path, must: bool) -> str | None:
    """The row of READERS for a file or folder; None for others, InputError if it `must` hold predictions."""
    if path.is_dir():
        return "depth" if path.name == "depth" else None
    form = NAMED.get(path.name)
    if form is None and path.suffix in TEXTS:
        form = form_of(path)
    elif form is None and (path.suffix == ".ply" or must):
        form = {".ply": "ply", ".npz": "npz"}.get(path.suffix)
    if form is None and must and path.suffix in TEXTS:
        raise InputError(f"{path} holds no predictions that lean3r reads; expected {ROWS}")
    return form


def _for(
    part: Predicted, names: Sequence[str] | None, times_s: Sequence[float] | np.ndarray | None, max_gap_s: float
) -> Predicted:
    """One file's predictions for the pictures of a benchmark."""
    if _is_shared(part):
        return part
    if part.names is None and part.times_s is not None and part.cam_from_world is not None and times_s is not None:
        return part.at_times(times_s, max_gap_s)
    return part if names is None else part.of(names)


def _is_shared(part: Predicted) -> bool:
    """Whether it has one camera for all pictures."""
    held = [name for name in ("names", *PARTS) if getattr(part, name) is not None]
    return held == ["intrinsics"] and part.views == 1


def _merged(place: Path, parts: list[Predicted], count: int | None) -> Predicted:
    """All parts as one; `count` is the number of pictures if it is known."""
    found: dict[str, Any] = {}
    for name in PARTS:
        holders = [part for part in parts if getattr(part, name) is not None]
        if name == "cloud" and len(holders) == 2:  # a cloud of its own, rather than the points of a COLMAP model
            holders = [part for part in holders if not part.lacks_failures] or holders
        if len(holders) > 1:
            raise InputError(
                f"{holders[0].path} and {holders[1].path} both have {name}; expected one of them: remove the other"
            )
        found.update((name, part) for part in holders)
    pictures = sorted((part for part in parts if part.views and not _is_shared(part)), key=lambda part: -part.views)
    named = next((part.names for part in pictures if part.names is not None), None)
    matched = {id(part): part.of(named) if named and part.names is not None else part for part in parts}
    counts = {str(part.path): matched[id(part)].views for part in pictures}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{path}: {number}" for path, number in counts.items())
        raise InputError(
            f"the predictions in {place} are for different numbers of pictures ({said}); expected the same"
        )
    count = next(iter(counts.values()), count)
    for name, part in found.items():
        value = getattr(matched[id(part)], name)
        found[name] = np.repeat(value, count, 0) if count and _is_shared(part) else value
    lacks_failures = bool(pictures) and all(part.lacks_failures for part in pictures)
    return Predicted(path=place, names=named, lacks_failures=lacks_failures, **found)
