"""Read a result folder of `lean3r reconstruct` as a scene again."""

from __future__ import annotations

import shlex
import struct
import tomllib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from lean3r.errors import InputError
from lean3r.export.atomic import MANIFEST, result_files, settle
from lean3r.export.manifest import LAYOUT_VERSION
from lean3r.export.names import unique_names
from lean3r.geometry.lens import LENSES
from lean3r.inputs.colmap_files import check_model
from lean3r.json_text import parse_json
from lean3r.options import PointOptions
from lean3r.pipeline.trust import no_points
from lean3r.types import Lens, Reconstruction, Registration, Scale, Source, SparsePoints

PREDICTIONS, CAMERAS, CONFIG, MODEL = "predictions.npz", "cameras.json", "config.toml", "sparse/0"
CONFIRMED = ("refined", "fallback", "given")  # cameras that evidence beyond the network supports
# What the exporter adds to the manifest; all other keys are `info` of the scene.
_WRITTEN = {
    "layout_version",
    "lean3r",
    "seconds_by_format",
    "scale",
    "conventions",
    "network_size",
    "points",
    "views",
    "skipped",
    "files",
    "html",
    "mesh",
    "geotiff",
}
_SHAPES = {
    "depth": (0, 0),
    "conf": (0, 0),
    "mask": (0, 0),
    "K": (3, 3),
    "cam_from_world": (4, 4),
    "image_size": (2,),
    "original_from_network": (4,),
    "registration": (),
    "names": (),
}
UNDISTORTED = (
    "{out} was written with --undistort: its images/ and sparse/0 are of other cameras than its depth, and nothing can "
    "be added to it. Reconstruct all pictures at once, with the options that it had: lean3r reconstruct {inputs} "
    "NEW_PICTURES -o OTHER --undistort. Or make one without --undistort, to which pictures can be added again and "
    "again: lean3r reconstruct {inputs} -o OTHER; lean3r add OTHER NEW_PICTURES."
)
_ON_PIXEL = 1e-6  # of a pixel: a measured feature is never so near to a pixel's centre


@dataclass(frozen=True)
class About:
    """What the manifest and the config of a result say, without its scene."""

    manifest: Mapping[str, Any]
    config: Mapping[str, Any]

    @property
    def views(self) -> int:
        """How many there are."""
        return len(self.manifest["views"])

    @property
    def model(self) -> str:
        """The name of the model that made it; nano if that is not recorded."""
        names = (self.config.get("model_loaded"), self.manifest.get("model"))
        return next((name for name in names if isinstance(name, str) and name != "none"), "nano")


@dataclass(frozen=True)
class Result:
    """A result folder: its scene, without points and with grey pictures, what its manifest and its config say, and its
    formats."""

    folder: Path
    scene: Reconstruction
    manifest: Mapping[str, Any]
    config: Mapping[str, Any]
    formats: Sequence[str]

    @property
    def are_confirmed(self) -> bool:
        """Whether evidence beyond the network supports the cameras."""
        return sum(label in CONFIRMED for label in self.scene.registration) > 1


def read_result(folder: str | Path) -> Result:
    """Read a result that `lean3r reconstruct` wrote, or `lean3r.export` with all usual formats.

    InputError if it is none, of another version, of a stream, incomplete or damaged; the message says what is missing.
    """
    folder, about = Path(folder).expanduser(), read_about(folder)
    scene = read_scene(folder, about)
    return Result(folder, scene, about.manifest, about.config, tuple(about.manifest["seconds_by_format"]))


def read_about(folder: str | Path) -> About:
    """What a result says of itself. InputError if it is none that pictures can be added to; its arrays are not read."""
    folder = Path(folder).expanduser()
    if not folder.is_dir() or result_files(folder) is None:
        settle(folder)
    manifest, config = _manifest(folder), _config(folder / CONFIG)
    if config.get("undistort") or any(name.startswith("images_") for name in manifest["files"]):
        inputs = config.get("inputs")
        shown = shlex.join(map(str, inputs)) if isinstance(inputs, list) and inputs else "ITS_PICTURES"
        raise InputError(UNDISTORTED.format(out=folder, inputs=shown))
    return About(manifest, config)


def _manifest(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}; expected a result of `lean3r reconstruct`.")
    listed = result_files(folder)
    if listed is None:
        raise InputError(f"{folder} has no {MANIFEST} of lean3r; expected a result of `lean3r reconstruct`.")
    try:
        manifest = parse_json((folder / MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / MANIFEST} cannot be read ({error}).") from error
    if "stream.json" in listed or (folder / "stream.json").exists():
        raise InputError(
            f"{folder} holds a stream, to which pictures cannot be added. To have them in one world with its film: "
            "lean3r reconstruct FILM PICTURES -o NEW."
        )
    if manifest["layout_version"] != LAYOUT_VERSION:
        raise InputError(
            f"{folder} has the layout {manifest['layout_version']} (lean3r {manifest['lean3r']}), and this is "
            f"lean3r with layout {LAYOUT_VERSION}. Reconstruct it again with this version."
        )
    if missing := sorted(name for name in listed if not (folder / name).is_file()):
        more = f" and {len(missing) - 1} more files" if len(missing) > 1 else ""
        raise InputError(
            f"{folder} is incomplete: {missing[0]}{more} of its {MANIFEST} are gone. Reconstruct it again."
        )
    formats = manifest.get("seconds_by_format")
    if not isinstance(formats, dict) or not isinstance(manifest.get("views"), list) or not manifest["views"]:
        raise InputError(f"{folder} is a result of another command; expected one of `lean3r reconstruct`.")
    if PREDICTIONS not in listed:
        raise InputError(
            f"{folder} has no {PREDICTIONS}, which holds depth and cameras: reconstruct it with the format npz."
        )
    return manifest


def _config(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as TOML ({error}).") from error


def read_scene(folder: Path, about: About) -> Reconstruction:
    """The scene of a result folder, without points and with grey pictures; InputError if its arrays are damaged."""
    path, manifest, config = folder / PREDICTIONS, about.manifest, about.config
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: np.asarray(file[key]) for key in file.files}
        _check(arrays)
        sources = _sources(arrays, _times(folder / CAMERAS))
        certain = arrays["registration"] != "uncertain"
        status = (manifest.get("refinement") or {}).get("status")
        sparse = None
        if status in CONFIRMED and (folder / MODEL).is_dir():
            sparse = read_sparse(folder / MODEL, sources, certain)
        points = PointOptions(
            **{name: config[name] for name in ("conf_percentile", "max_points", "keep_sky") if name in config}
        )
        return Reconstruction(
            sources=sources,
            images=np.full((*arrays["depth"].shape, 3), 128, np.uint8),
            mask=arrays["mask"].astype(bool),
            depth=arrays["depth"].astype(np.float32),
            conf=arrays["conf"].astype(np.float32),
            cam_from_world=arrays["cam_from_world"].astype(np.float64),
            intrinsics=arrays["K"].astype(np.float64),
            points=no_points(),
            scale=_one_of(Scale, str(arrays["scale"])),
            skipped=tuple((str(each["name"]), str(each["reason"])) for each in manifest.get("skipped", ())),
            info=_info(manifest, config),
            lenses=_lenses(arrays),
            sparse=sparse,
            registration=tuple(_one_of(Registration, str(label)) for label in arrays["registration"]),
            point_options=points,
        )
    except InputError:
        raise
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, EOFError, OverflowError) as error:
        raise _damaged(path, error) from error
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, MemoryError, struct.error) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path.parent} cannot be read as a result ({error or type(error).__name__}); it is damaged.")


def _check(arrays: Mapping[str, np.ndarray]) -> None:
    """ValueError unless all arrays are there, for the same views, with values that a scene may have."""
    if missing := sorted(set(_SHAPES) - set(arrays)):
        raise ValueError(f"{PREDICTIONS} lacks {', '.join(missing)}")
    views = arrays["names"].shape
    size = arrays["depth"].shape[1:]
    for key, shape in _SHAPES.items():
        wanted = (*views, *(size if shape == (0, 0) else shape))
        if arrays[key].shape != wanted:
            raise ValueError(f"{key} of {PREDICTIONS} has the shape {arrays[key].shape}, expected {wanted}")
    if len(size) != 2 or not arrays["depth"].size:
        raise ValueError(f"{PREDICTIONS} has no pixels")
    for key in ("cam_from_world", "K", "original_from_network", "depth", "conf"):
        if not np.isfinite(arrays[key]).all():
            raise ValueError(f"{key} of {PREDICTIONS} is not finite")
    if (arrays["original_from_network"][:, :2] <= 0).any() or (arrays["image_size"] <= 0).any():
        raise ValueError(f"{PREDICTIONS} has a picture without a size")
    if not arrays["mask"].astype(bool).any(axis=(1, 2)).all():
        raise ValueError(f"{PREDICTIONS} has a view that is nothing but padding")
    if len(set(arrays["names"].tolist())) < len(arrays["names"]):
        raise ValueError(f"{PREDICTIONS} has two views of one name")


def _times(path: Path) -> dict[str, float]:
    """The times of video frames; none if there are none, or no cameras.json."""
    if not path.exists():
        return {}
    views = parse_json(path.read_bytes())["views"]
    return {str(view["name"]): float(view["timestamp_s"]) for view in views if "timestamp_s" in view}


def _sources(arrays: Mapping[str, np.ndarray], times_s: Mapping[str, float]) -> tuple[Source, ...]:
    rows = zip(arrays["names"], arrays["image_size"], arrays["original_from_network"], strict=True)
    return tuple(
        Source(str(name), int(width), int(height), (sx, sy, ox, oy), timestamp_s=times_s.get(str(name)))
        for name, (width, height), (sx, sy, ox, oy) in ((*row[:2], row[2].tolist()) for row in rows)
    )


def _lenses(arrays: Mapping[str, np.ndarray]) -> tuple[Lens, ...]:
    if "lens_model" not in arrays:
        return ()
    lenses = []
    for model, params in zip(arrays["lens_model"], arrays["lens_params"], strict=True):
        focals, more = LENSES[str(model)]
        values = params[: focals + 2 + more]
        if len(values) < focals + 2 + more or not np.isfinite(values).all() or (values[:focals] <= 0).any():
            raise ValueError("it has a lens without all of its parameters")
        lenses.append(Lens(str(model), tuple(map(float, values))))
    if len(lenses) != len(arrays["names"]):
        raise ValueError("it has lenses for other views")
    return tuple(lenses)


def _info(manifest: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """`info` of the scene, with what was said of each view of a refinement."""
    info = {key: value for key, value in manifest.items() if key not in _WRITTEN} | {"config": dict(config)}
    if "refinement" in info:
        known = {"name", "width", "height", "registration"}
        views = [{key: value for key, value in view.items() if key not in known} for view in manifest["views"]]
        info["refinement"] = {**info["refinement"], "views": views}
    return info


def _one_of(choices: Any, value: str) -> Any:
    if value not in get_args(choices):
        raise ValueError(f"{value!r} is none of {', '.join(get_args(choices))}")
    return value


def read_sparse(folder: Path, sources: Sequence[Source], certain: np.ndarray) -> SparsePoints | None:
    """The triangulated points of a binary COLMAP model, with their measurements in the `certain` [S] views of a result;
    None if there are none. Points from depth maps, which exporters make anew, are left out: their own view sees them at
    the centre of a pixel. InputError if the model is damaged."""
    check_model(folder)
    at = np.flatnonzero(certain)
    names = unique_names(source.name for source, is_kept in zip(sources, certain, strict=True) if is_kept)
    view_of = dict(zip(names, at.tolist(), strict=True))
    parts = []
    for name, xy, ids in _images((folder / "images.bin").read_bytes()):
        if (view := view_of.get(name)) is not None:
            parts.append((np.full(len(ids), view, np.int32), xy, ids))
    ids, xyz, rgb, error = _points((folder / "points3D.bin").read_bytes())
    if not parts or not len(ids):
        return None
    view, xy, of = (np.concatenate(part) for part in zip(*parts, strict=True))
    index = np.searchsorted(ids, of).clip(0, len(ids) - 1)
    seen = ids[index] == of
    view, xy, index = view[seen], xy[seen], index[seen]
    mapped = np.array([source.original_from_network for source in sources]).reshape(-1, 2, 2)
    place = (xy - mapped[view, 1]) / mapped[view, 0] - 0.5
    from_depth = np.zeros(len(ids), bool)
    from_depth[index[(np.abs(place - place.round()) < _ON_PIXEL).all(axis=1)]] = True
    kept = ~from_depth[index]
    used, point = np.unique(index[kept], return_inverse=True)
    if not len(used):
        return None
    return SparsePoints(xyz[used], rgb[used], error[used], point.astype(np.int32), view[kept], xy[kept])


def _images(data: bytes) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Of each picture in images.bin: its name, its measurements [O, 2], and the ids [O] of their points."""
    (count,), at, found = struct.unpack_from("<Q", data), 8, []
    for _ in range(count):
        end = data.index(b"\0", at + 64)
        name, (length,) = data[at + 64 : end].decode("utf-8", "replace"), struct.unpack_from("<Q", data, end + 1)
        rows = np.frombuffer(data, [("xy", "<f8", 2), ("point", "<u8")], length, end + 9)
        is_used = rows["point"] != np.iinfo(np.uint64).max
        found.append((name, rows["xy"][is_used], rows["point"][is_used]))
        at = end + 9 + rows.nbytes
    return found


def _points(data: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Ids [P], ascending, places [P, 3], colours [P, 3] and errors [P] in points3D.bin."""
    (count,), at = struct.unpack_from("<Q", data), 8
    head = np.dtype([("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("track", "<u8")])
    rows = np.empty(count, head)
    raw = rows.view(np.uint8).reshape(count, head.itemsize)
    for number in range(count):
        raw[number] = np.frombuffer(data, np.uint8, head.itemsize, at)
        at += head.itemsize + 8 * int(rows["track"][number])
    rows = rows[np.argsort(rows["id"], kind="stable")]
    return rows["id"], rows["xyz"].copy(), rows["rgb"].copy(), rows["error"].copy()
