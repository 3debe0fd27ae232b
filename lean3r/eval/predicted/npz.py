"""predictions.npz, as `lean3r reconstruct` and `lean3r evaluate` write it."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from lean3r.errors import InputError
from lean3r.eval.predicted.base import Predicted

_KEYS = ("names", "cam_from_world", "K_original", "depth", "mask", "original_from_network")


def read(path: Path) -> Predicted:
    """Read the keys that docs/outputs.md describes; only cam_from_world or depth must be there. InputError if it cannot
    be read. Depth is 0 where `mask` is False."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: np.asarray(file[key]) for key in _KEYS if key in file}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{path} cannot be read as predictions: {error}; expected an .npz as in docs/outputs.md"
        ) from None
    if "cam_from_world" not in arrays and "depth" not in arrays:
        raise InputError(f"{path} has neither cam_from_world nor depth; expected keys as in docs/outputs.md")
    names, depth = arrays.get("names"), arrays.get("depth")
    lengths = {key: len(value) if value.ndim else 0 for key, value in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(f"{path} has arrays for different numbers of views: {lengths}")
    shapes = {"cam_from_world": (4, 4), "K_original": (3, 3), "original_from_network": (4,)}
    for key, shape in shapes.items():
        if key in arrays and arrays[key].shape[1:] != shape:
            raise InputError(f"{key} of {path} has the shape {arrays[key].shape}; expected [views, {shape}]")
    if depth is not None and depth.ndim != 3:
        raise InputError(f"depth of {path} has the shape {depth.shape}; expected [views, height, width]")
    if depth is not None and "mask" in arrays:
        depth = np.where(arrays["mask"], depth, 0)
    pose, intrinsics = arrays.get("cam_from_world"), arrays.get("K_original")
    return Predicted(
        path=path,
        names=None if names is None else tuple(map(str, names)),
        cam_from_world=None if pose is None else pose.astype(np.float64),
        intrinsics=None if intrinsics is None else intrinsics.astype(np.float64),
        depth=None if depth is None else tuple(depth.astype(np.float32)),
        original_from_depth=arrays.get("original_from_network"),
    )
