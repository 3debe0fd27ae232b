"""Depth maps: a folder with one file a picture."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lean3r.data.sets.formats.files import naming, open_picture, read_array, read_pfm
from lean3r.data.sets.scenes import first_few
from lean3r.errors import InputError, MissingExtraError
from lean3r.eval.predicted.base import Predicted
from lean3r.inputs.listing import natural_key
from lean3r.json_text import parse_json

MILLIMETRES = 1000.0
AFFIX = re.compile(r"^(depth|pred)_(?=.)|(?<=.)_(depth|pred)$", re.IGNORECASE)


def read(place: Path) -> Predicted:
    """Depth maps from a folder of .npy, .npz, .exr, .pfm, .tiff or .png, or from one depth.npy [S, h, w]; None if there
    are none.

    Integers are divided by `units_per_metre` of a depth.json in the folder or beside it, else by 1000; floats are
    divided only if it is stated. The PNGs of `lean3r reconstruct` bring their own scale.json. InputError if there are
    two kinds of maps, or one is no map of depths.
    """
    if place.is_file():
        maps = _stack(place)
        return Predicted(path=place, depth=tuple(_in_metres(m, _units(place.parent)) for m in maps) or None)
    files = _files(place)
    if not files:
        return Predicted(path=place)
    units = _units(place)
    sidecar = place / "scale.json"
    if sidecar.is_file():
        return _exported(place, sidecar)
    return Predicted(
        path=place,
        names=tuple(file.relative_to(place).with_name(AFFIX.sub("", file.stem)).as_posix() for file in files),
        depth=tuple(_in_metres(_map(file), units) for file in files),
    )


def _files(folder: Path) -> list[Path]:
    """The maps in natural order, in folders too. Pictures in colours beside maps are previews."""
    kinds: dict[str, list[Path]] = {}
    with naming(folder):
        for file in sorted(folder.rglob("*"), key=lambda file: natural_key(file.relative_to(folder).as_posix())):
            if file.suffix.lower() in MAPS and file.is_file() and file.name[0] != ".":
                kinds.setdefault(file.suffix.lower(), []).append(file)
    if len(kinds) > 1 and ".png" in kinds and _is_coloured(kinds[".png"][0]):
        del kinds[".png"]
    if len(kinds) > 1:
        raise InputError(f"{folder} has depth twice, as {' and '.join(kinds)}; expected files of one kind")
    return next(iter(kinds.values()), [])


def _units(folder: Path) -> float | None:
    """`units_per_metre` of depth.json in the folder or beside it."""
    path = next((p for p in (folder / "depth.json", folder.parent / "depth.json") if p.is_file()), None)
    if path is None:
        return None
    with naming(path):
        stated = float(parse_json(path.read_bytes())["units_per_metre"])
    if not 0 < stated < np.inf:
        raise InputError(f"{path} states {stated} units per metre; expected a positive number, such as 1000")
    return stated


def _in_metres(values: np.ndarray, units: float | None) -> np.ndarray:
    if units is None:
        units = MILLIMETRES if values.dtype.kind in "iu" else 1.0
    with np.errstate(over="ignore"):
        return (values / units).astype(np.float32)


def _exported(folder: Path, sidecar: Path) -> Predicted:
    """depth/ of `lean3r reconstruct` (docs/outputs.md)."""
    with naming(sidecar):
        content = parse_json(sidecar.read_bytes())
        scale, views = float(content["scale"]), content["views"]
        offsets = np.array([view["network_offset"] for view in views], float).reshape(-1, 2)
        places = np.array([view["original_from_network"] for view in views], float).reshape(-1, 4)
        names, files = [str(view["name"]) for view in views], [folder / Path(view["file"]).name for view in views]
    places[:, 2:] += places[:, :2] * offsets
    maps = tuple((_map(file) * scale).astype(np.float32) for file in files)
    return Predicted(path=folder, names=tuple(names), depth=maps, original_from_depth=places)


def _map(path: Path) -> np.ndarray:
    values = MAPS[path.suffix.lower()](path)
    values = values[0] if values.ndim == 3 and values.shape[0] == 1 else values
    values = values[..., 0] if values.ndim == 3 and values.shape[-1] == 1 else values
    if values.ndim != 2 or not values.size or values.dtype.kind not in "iuf" or values.dtype == np.uint8:
        raise InputError(
            f"{path} has values {values.dtype} of the shape {values.shape}; expected depth [height, width] in floats "
            "or 16-bit integers, not a coloured picture"
        )
    return values


def _stack(path: Path) -> np.ndarray:
    values = _npy(path)
    if values.ndim == 4 and 1 in (values.shape[1], values.shape[-1]):
        values = values[:, 0] if values.shape[1] == 1 else values[..., 0]
    if not values.size:
        return values[:0]
    if values.ndim != 3 or values.dtype.kind not in "iuf" or values.dtype == np.uint8:
        raise InputError(f"{path} has values {values.dtype} of the shape {values.shape}; expected [S, height, width]")
    return values


def _npy(path: Path) -> np.ndarray:
    with naming(path), open(path, "rb") as file:
        return read_array(file)


def _npz(path: Path) -> np.ndarray:
    with naming(path), np.load(path, allow_pickle=False) as file:
        keys = [key for key in file if key == "depth"] or list(file)
        if len(keys) != 1:
            raise ValueError(f"it has the arrays {first_few(keys)}; expected one, or one called depth")
        return np.asarray(file[keys[0]])


def _picture(path: Path) -> np.ndarray:
    with open_picture(path) as picture:
        return np.asarray(picture)


def _is_coloured(path: Path) -> bool:
    with open_picture(path) as picture:
        return picture.mode not in ("I", "I;16", "I;16B", "F")


def _exr(path: Path) -> np.ndarray:
    """The channel of an EXR that is called Z or depth, or the only one, or any of equal ones."""
    try:
        import OpenEXR
    except ImportError as error:
        raise MissingExtraError.of("reading depth in EXR files", "eval") from error
    if not path.is_file():
        raise InputError(f"{path} is missing")
    with naming(path), OpenEXR.File(str(path), separate_channels=True) as file:
        channels: dict[str, Any] = {name: channel.pixels for name, channel in file.channels().items()}
        depth = [name for name in channels if name.split(".")[-1] == "Z" or "depth" in name.lower()]
        names = depth if len(depth) == 1 else list(channels)
        first = channels[names[0]]
        if any(not np.array_equal(first, channels[name], equal_nan=True) for name in names[1:]):
            raise ValueError(f"it has the channels {', '.join(names)}; expected one, or one called Z or depth")
        return np.array(first)


MAPS: dict[str, Callable[[Path], np.ndarray]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".exr": _exr,
    ".pfm": read_pfm,
    ".tiff": _picture,
    ".tif": _picture,
    ".png": _picture,
}
