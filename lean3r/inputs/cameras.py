"""Read known cameras: lean3r's cameras.json, COLMAP models, nerfstudio's transforms.json, trajectories, or numbers."""

from __future__ import annotations

import logging
import math
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from lean3r.errors import InputError, UsageError
from lean3r.geometry.lens import LENSES, colmap_camera
from lean3r.inputs.camera_checks import check_pose, no_pinhole
from lean3r.inputs.colmap_files import check_model, is_binary, names_in_text
from lean3r.inputs.given import GivenCamera, GivenCameras
from lean3r.inputs.listing import printable
from lean3r.json_text import parse_json

if TYPE_CHECKING:  # who reads cameras without lenses needs no torch
    from lean3r.colmap_library import pycolmap
    from lean3r.types import Lens

logger = logging.getLogger("lean3r")

FORMATS = (
    "a cameras.json of lean3r, a COLMAP model, a transforms.json of nerfstudio, a trajectory in TUM's format, or a "
    "JSON with fx, fy, cx, cy"
)
COLMAP_FOLDERS = (".", "sparse/0", "sparse", "0", "colmap/sparse/0")
BARE_KEYS = {"fx": "fl_x", "fy": "fl_y", "width": "w", "height": "h"}
COLMAP_FILES = {f"{part}{suffix}" for part in ("cameras", "images", "points3D") for suffix in (".bin", ".txt")}
OPENCV_FROM_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])  # x right, y up, z backwards -> x right, y down, z forward


def read_given(path: str | Path) -> GivenCameras:
    """Read cameras from a JSON file (cameras.json, transforms.json, or fx, fy, cx, cy), a COLMAP model (its folder, one
    of its files, or a folder with sparse/0), a trajectory, or a folder with one of the first three. InputError if it
    is missing, unreadable or of another kind, UsageError if `path` is no path."""
    if not isinstance(path, str | os.PathLike):
        raise UsageError(f"got {type(path).__name__} as cameras; expected GivenCameras, or the path of {FORMATS}.")
    path = Path(os.path.expanduser(path))
    if not path.exists():
        raise InputError(f"no such file or folder: {path}; expected {FORMATS}")
    if path.is_dir():
        return _from_folder(path)
    if path.suffix.lower() == ".json":
        return _from_json(path)
    if _is_colmap(path.parent) and path.name in COLMAP_FILES:
        return _from_colmap(path.parent)
    from lean3r.inputs.trajectory import read_trajectory

    try:
        return GivenCameras(origin=str(path), trajectory=read_trajectory(path))
    except ValueError as error:
        raise InputError(f"{path} holds no cameras that lean3r can read ({error}); expected {FORMATS}") from error


def _from_folder(path: Path) -> GivenCameras:
    files = [path / name for name in ("cameras.json", "transforms.json") if (path / name).is_file()]
    model = find_colmap(path)
    if files:
        given = _from_json(files[0])
    elif model is not None:
        if model != path:
            _warn_of_others(model)
        given = _from_colmap(model)
    else:
        raise InputError(f"{path} holds no cameras; expected {FORMATS}")
    return _with_kinds(given, path, files, model) if _is_undistorted(path) else given


def _is_undistorted(folder: Path) -> bool:
    """Whether a result was written with --undistort."""
    try:
        return bool(tomllib.loads((folder / "config.toml").read_bytes().decode("utf-8")).get("undistort"))
    except (OSError, ValueError):
        return False


def _with_kinds(given: GivenCameras, folder: Path, files: Sequence[Path], model: Path | None) -> GivenCameras:
    """The cameras of a result that was undistorted: cameras.json is of the pictures before, all other files of those
    after, which differ unless all lenses are pinholes."""
    if folder / "cameras.json" not in files:
        return replace(given, origin=str(folder), kinds=(given,))
    bent = [c for c in given.cameras if c.lens and not colmap_camera(c.lens, 1, 1).is_undistorted()]
    if not bent or (model is None and len(files) == 1):
        return given
    after = _from_json(files[1]) if model is None else _from_colmap(model)
    return replace(given, origin=str(folder), kinds=(given, replace(after, is_metric=given.is_metric)))


def read_intrinsics(given: str | Path | Sequence[float]) -> GivenCamera:
    """Intrinsics of all pictures: fx, fy, cx, cy in pixels of the originals, as numbers or as text with commas, or a
    JSON file that states them (also transforms.json without frames). InputError for anything else."""
    if isinstance(given, str | Path) and (Path(given).suffix.lower() == ".json" or Path(given).exists()):
        shared = read_given(given).shared
        if shared is None:
            raise InputError(f"{given} holds no intrinsics shared by all pictures; give it with --cameras instead.")
        return shared
    try:
        fx, fy, cx, cy = (float(part) for part in (str(given).split(",") if isinstance(given, str | Path) else given))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"got the intrinsics '{given}'; expected FX,FY,CX,CY in pixels of the pictures, or a JSON file with these."
        ) from error
    return GivenCamera("all pictures", intrinsics=np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]]))


def open_colmap(folder: str | Path) -> pycolmap.Reconstruction:
    """A COLMAP model, text or binary; InputError if there is none or it cannot be read."""
    from lean3r.colmap_library import pycolmap

    check_model(Path(folder))
    try:
        model = pycolmap.Reconstruction(str(folder))
        _ = [image.name for image in model.images.values()]  # raises if a name is not UTF-8
        for image_id, name in ({} if is_binary(Path(folder)) else names_in_text(Path(folder) / "images.txt")).items():
            model.images[image_id].name = name
        return model
    except (ValueError, RuntimeError, OSError, LookupError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"{folder} holds no readable COLMAP model ({reason}); expected cameras, images, points3D of one model."
        ) from error


def find_colmap(folder: Path) -> Path | None:
    """The folder of a COLMAP model: this one, or the first usual place in it; None if there is no model."""
    return next((folder / sub for sub in COLMAP_FOLDERS if _is_colmap(folder / sub)), None)


def _warn_of_others(model: Path) -> None:
    """COLMAP writes a model for each part of the pictures that it could not join; their worlds have nothing in
    common."""
    beside = sorted(model.parent.iterdir()) if model.name.isdigit() else []
    if others := [each.name for each in beside if each != model and each.name.isdigit() and _is_colmap(each)]:
        logger.warning(
            "%s holds several models, each with a world of its own: %s is used, %s not; name another one to use it",
            model.parent,
            model.name,
            ", ".join(others),
        )


def _is_colmap(folder: Path) -> bool:
    return any((folder / f"cameras{suffix}").is_file() for suffix in (".bin", ".txt"))


def _from_colmap(folder: Path) -> GivenCameras:
    model = open_colmap(folder)
    cameras = []
    for image_id in sorted(model.images):
        image = model.images[image_id]
        if not image.has_pose:
            continue
        camera, name = model.cameras[image.camera_id], printable(image.name.replace("\\", "/"))
        if camera.model.name not in LENSES:
            raise no_pinhole(name, camera.model.name)
        lens = _lens(camera.model.name, camera.params)
        pose = np.vstack([image.cam_from_world().matrix(), [0.0, 0.0, 0.0, 1.0]])
        cameras.append(GivenCamera(name, camera.width, camera.height, cam_from_world=pose, lens=lens))
    return _given(cameras, str(folder))


def _from_json(path: Path) -> GivenCameras:
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error})") from error
    try:
        if isinstance(content, dict) and "views" in content:
            return _from_lean3r(content, str(path))
        if isinstance(content, dict) and isinstance(content.get("frames"), list) and content["frames"]:
            return _from_nerfstudio(content, str(path))
        if isinstance(content, dict) and {"fx", "fl_x", "camera_angle_x"} & content.keys():
            shared = GivenCamera("all pictures", **_brown(content, str(path)))
            if shared.intrinsics is None:
                raise InputError(f"{path} states a field of view, but not the size of the pictures; add w and h.")
            return GivenCameras(origin=str(path), shared=shared)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{path} holds cameras in a form that lean3r cannot read ({what})") from error
    raise InputError(
        f"{path} has none of `views` (lean3r), `frames` (nerfstudio) and `fx` (intrinsics); expected {FORMATS}"
    )


def _from_lean3r(content: Mapping[str, Any], origin: str) -> GivenCameras:
    if content.get("axes", "opencv") != "opencv":
        raise InputError(f"{origin} states the axes {content['axes']!r}; expected opencv")
    cameras = []
    for view in content["views"]:
        pose = None if view.get("uncertain") else view.get("cam_from_world")
        intrinsics, lens = view.get("K"), view.get("lens")
        size = (int(view["width"]), int(view["height"])) if intrinsics is not None else (None, None)
        if lens is not None:
            lens = _lens(str(lens["model"]), lens["params"])
        cameras.append(GivenCamera(str(view["name"]), *size, _matrix(intrinsics), _matrix(pose), lens))
    return _given(cameras, origin, content.get("scale") == "metric")


def _from_nerfstudio(content: Mapping[str, Any], origin: str) -> GivenCameras:
    cameras = []
    for frame in content["frames"]:
        name = printable(str(PurePosixPath(str(frame["file_path"]).replace("\\", "/"))))
        matrix = _matrix(frame.get("transform_matrix"))
        pose = None
        if matrix is not None:
            matrix = np.vstack([matrix, [0.0, 0.0, 0.0, 1.0]]) if matrix.shape == (3, 4) else matrix
            check_pose(matrix, name)
            pose = np.linalg.inv(matrix @ OPENCV_FROM_OPENGL)
        cameras.append(GivenCamera(name, cam_from_world=pose, **_brown({**content, **frame}, name)))
    if "camera_angle_x" in content and cameras and all(camera.intrinsics is None for camera in cameras):
        logger.warning("%s states camera_angle_x, but not w and h: no intrinsics are read; add them", origin)
    return _given(cameras, origin)


def _brown(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Size, intrinsics and lens from nerfstudio's keys, or fx, fy, width, height. Without a focal length the intrinsics
    are None; if distortion is not mentioned, the lens is None."""
    values = {BARE_KEYS.get(key, key): value for key, value in values.items()}
    kind = str(values.get("camera_model", "OPENCV")).upper()
    if not kind.endswith(("OPENCV", "PINHOLE", "RADIAL")) or values.get("is_fisheye"):
        raise no_pinhole(name, "FISHEYE" if values.get("is_fisheye") else kind)
    if float(values.get("k4", 0)):
        raise no_pinhole(name, f"{kind} with k4 = {values['k4']}")
    width, height = (int(values[key]) if key in values else None for key in ("w", "h"))
    camera: dict[str, Any] = {"width": width, "height": height, "intrinsics": None, "lens": None}
    if "fl_x" in values:
        fx = float(values["fl_x"])
    elif "camera_angle_x" in values and width:
        fx = _focal(values["camera_angle_x"], width)
    else:
        return camera
    fy = float(values.get("fl_y", fx))
    if "fl_y" not in values and "camera_angle_y" in values and height:
        fy = _focal(values["camera_angle_y"], height)
    cx, cy = (
        float(values[key] if key in values or not size else size / 2) for key, size in (("cx", width), ("cy", height))
    )
    camera["intrinsics"] = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])
    k1, k2, p1, p2, k3 = (float(values.get(key, 0)) for key in ("k1", "k2", "p1", "p2", "k3"))
    if k3:
        camera["lens"] = _lens("FULL_OPENCV", (fx, fy, cx, cy, k1, k2, p1, p2, k3, 0.0, 0.0, 0.0))
    elif k1 or k2 or p1 or p2:
        camera["lens"] = _lens("OPENCV", (fx, fy, cx, cy, k1, k2, p1, p2))
    elif {"k1", "k2", "p1", "p2", "k3"} & values.keys() or kind.endswith("PINHOLE"):
        camera["lens"] = _lens("PINHOLE", (fx, fy, cx, cy))
    return camera


def _lens(model: str, params: Iterable[Any]) -> Lens:
    from lean3r.types import Lens

    return Lens(model, tuple(map(float, params)))


def _focal(angle: Any, size: int) -> float:
    """The focal length in pixels of a field of view in radians over so many pixels."""
    return size / 2 / math.tan(float(angle) / 2)


def _given(cameras: Sequence[GivenCamera], origin: str, is_metric: bool = False) -> GivenCameras:
    if not cameras:
        raise InputError(f"{origin} holds no camera with a pose")
    return GivenCameras(tuple(cameras), origin, is_metric)


def _matrix(rows: Any) -> np.ndarray | None:
    return None if rows is None else np.array(rows, dtype=np.float64)
