"""predictions.npz, as `lean3r reconstruct` and `lean3r evaluate` write it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lean3r.data.sets.formats.files import naming
from lean3r.errors import InputError
from lean3r.eval.predicted.base import Predicted

_KEYS = {
    "names": (),
    "cam_from_world": (4, 4),
    "K_original": (3, 3),
    "depth": ("height", "width"),
    "mask": ("height", "width"),
    "original_from_network": (4,),
}


def read(path: Path) -> Predicted:
    """Read the keys that docs/outputs.md describes; only cam_from_world or depth must be there. InputError if it cannot
    be read. Depth is 0 where `mask` is False; arrays
    without a pixel are no depth."""
    with naming(path), np.load(path, allow_pickle=False) as file:
        arrays = {key: np.asarray(file[key]) for key in _KEYS if key in file}
    if "depth" in arrays and not arrays["depth"].size:
        arrays = {key: value for key, value in arrays.items() if key not in ("depth", "mask")}
    if "cam_from_world" not in arrays and "depth" not in arrays:
        raise InputError(f"{path} has neither cam_from_world nor depth; expected keys as in docs/outputs.md")
    lengths = {key: len(value) if value.ndim else 0 for key, value in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(f"{path} has arrays for different numbers of views: {lengths}")
    for key, array in arrays.items():
        fits = all(
            wanted in ("height", "width", side) for wanted, side in zip(_KEYS[key], array.shape[1:], strict=False)
        )
        if array.ndim != 1 + len(_KEYS[key]) or not fits or (array.dtype.kind in "US") != (key == "names"):
            raise InputError(
                f"{key} of {path} has the shape {array.shape} of {array.dtype}; expected {('views', *_KEYS[key])}"
            )
    depth, pose, intrinsics = arrays.get("depth"), arrays.get("cam_from_world"), arrays.get("K_original")
    if depth is not None:
        mask = arrays.get("mask", np.ones_like(depth, bool))
        if mask.shape != depth.shape:
            raise InputError(f"mask of {path} has the shape {mask.shape}; expected that of depth, {depth.shape}")
        depth = tuple(np.where(mask, depth, 0).astype(np.float32))
    names, original = arrays.get("names"), arrays.get("original_from_network")
    return Predicted(
        path=path,
        names=None if names is None else tuple(map(str, names)),
        cam_from_world=None if pose is None else pose.astype(np.float64),
        intrinsics=None if intrinsics is None else intrinsics.astype(np.float64),
        depth=depth,
        original_from_depth=original if depth is not None else None,
    )
