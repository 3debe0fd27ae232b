"""Known cameras: lean3r's cameras.json, COLMAP models, nerfstudio's transforms.json, trajectories, or numbers.

All are converted to lean3r's conventions (docs/conventions.md) and matched to pictures by file name or time.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from lean3r.errors import InputError
from lean3r.geometry.lens import LENSES, move_lens, pinhole_part, scale_lens
from lean3r.inputs.camera_checks import check_intrinsics, check_lens, check_pose, no_pinhole, rigid
from lean3r.inputs.colmap_files import check_model
from lean3r.inputs.listing import IMAGE_SUFFIXES, printable
from lean3r.inputs.trajectory import Trajectory, read_trajectory
from lean3r.json_text import parse_json
from lean3r.types import Lens

if TYPE_CHECKING:
    from lean3r.colmap_library import pycolmap

logger = logging.getLogger("lean3r")

FORMATS = (
    "a cameras.json of lean3r, a COLMAP model, a transforms.json of nerfstudio, a trajectory in TUM's format, or a "
    "JSON with fx, fy, cx, cy"
)
COLMAP_FOLDERS = (".", "sparse/0", "sparse", "0", "colmap/sparse/0")
BARE_KEYS = {"fx": "fl_x", "fy": "fl_y", "width": "w", "height": "h"}
COLMAP_FILES = {f"{part}{suffix}" for part in ("cameras", "images", "points3D") for suffix in (".bin", ".txt")}
OPENCV_FROM_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])  # x right, y up, z backwards -> x right, y down, z forward
ASPECT_TOLERANCE = 0.01  # scaling keeps the aspect ratio, except for rounding to whole pixels
SHOWN_NAMES = 3


@dataclass(frozen=True, eq=False)
class GivenCamera:
    """One picture's camera; unknown parts are None: intrinsics [3, 3] in pixels of a picture of width x height,
    cam_from_world [4, 4], both float64. `name` is the picture's, perhaps with folders. `lens` is the whole camera if
    its distortion is known too (even if it is zero); `intrinsics` are then its pinhole part."""

    name: str
    width: int | None = None
    height: int | None = None
    intrinsics: np.ndarray | None = None
    cam_from_world: np.ndarray | None = None
    lens: Lens | None = None

    def __post_init__(self) -> None:
        if self.lens is not None:
            check_lens(self.lens, self.name)
            if self.intrinsics is None:
                object.__setattr__(self, "intrinsics", pinhole_part(self.lens))
        if self.intrinsics is not None:
            object.__setattr__(self, "intrinsics", np.asarray(self.intrinsics, np.float64))
            check_intrinsics(self.intrinsics, self.name)
        if self.cam_from_world is not None:
            pose = np.asarray(self.cam_from_world, np.float64)
            object.__setattr__(self, "cam_from_world", rigid(pose, self.name))

    def intrinsics_of(self, width: int, height: int) -> np.ndarray | None:
        """Intrinsics [3, 3] in pixels of this picture at another size; InputError if the aspect ratio differs."""
        if self.intrinsics is None:
            return None
        return np.diag([*self._factors(width, height), 1.0]) @ self.intrinsics

    def lens_of(self, width: int, height: int) -> Lens | None:
        """The lens for this picture at another size; InputError if the aspect ratio differs."""
        return None if self.lens is None else scale_lens(self.lens, *self._factors(width, height))

    def without_bars(self, bars: tuple[int, int, int, int] | None, width: int, height: int) -> GivenCamera:
        """The camera of a video's frame of width x height, of which `bars` (left, top, right, lower) were cut off, if
        this one is of the whole frame; else itself. Without a size it is of the one whose middle is nearer."""
        if bars is None or self.intrinsics is None:
            return self
        left, top, right, lower = bars
        whole = width + left + right, height + top + lower
        if self.width and self.height:
            is_of_whole = (self.width, self.height) != (width, height) and self._fits(*whole)
        else:
            away = [np.linalg.norm(self.intrinsics[:2, 2] - np.array(size) / 2) for size in (whole, (width, height))]
            is_of_whole = away[0] <= away[1]
        if not is_of_whole:
            return self
        matrix, lens = self.intrinsics_of(*whole), self.lens_of(*whole)
        assert matrix is not None
        matrix[:2, 2] -= left, top
        return replace(self, width=width, height=height, intrinsics=matrix, lens=lens and move_lens(lens, left, top))

    def _fits(self, width: int, height: int) -> bool:
        assert self.width and self.height
        return abs(width / height * self.height / self.width - 1) <= ASPECT_TOLERANCE

    def _factors(self, width: int, height: int) -> tuple[float, float]:
        if not self.width or not self.height:
            return 1.0, 1.0
        if not self._fits(width, height):
            is_turned = self._fits(height, width)
            why = "turned: the program that made it ignored the EXIF orientation" if is_turned else "cropped"
            raise InputError(
                f"the camera of {self.name} is for {self.width}x{self.height} pixels, the picture has {width}x{height}"
                f" ({why}). Use the pictures that the cameras were made for."
            )
        return width / self.width, height / self.height


@dataclass(frozen=True, eq=False)
class GivenCameras:
    """Cameras of one scene. `origin` says where they come from, `is_metric` whether lengths are in metres. `shared` are
    the intrinsics of all pictures without their own; `trajectory` gives poses by time."""

    cameras: tuple[GivenCamera, ...] = ()
    origin: str = "the given cameras"
    is_metric: bool = False
    shared: GivenCamera | None = None
    trajectory: Trajectory | None = None

    def match(self, names: Sequence[str], times_s: Sequence[float | None] = ()) -> list[GivenCamera | None]:
        """The camera of each picture, None where there is none.

        A picture and a camera match if their paths end alike (a.jpg and images/a.jpg); a camera name without an image
        suffix matches any suffix. Poses of a trajectory are matched by `times_s`, the times of video frames in seconds,
        or by numbers in the names (Trajectory.match). Pictures and cameras without a match are logged. InputError if
        nothing matches, or a name matches more than one.
        """
        cameras: list[GivenCamera | None] = [None] * len(names)
        if self.trajectory is not None:
            poses = self.trajectory.match(names, times_s, self.origin)
            cameras = [
                None if pose is None else GivenCamera(name, cam_from_world=pose)
                for name, pose in zip(names, poses, strict=True)
            ]
        elif self.cameras:
            cameras = self._by_name(names)
        if self.cameras or self.trajectory:
            without = [name for name, camera in zip(names, cameras, strict=True) if camera is None]
            if without:
                logger.warning(
                    "%d of %d views have no camera in %s: %s", len(without), len(names), self.origin, _some(without)
                )
        if self.shared is None:
            return cameras
        return [self._with_shared(name, camera) for name, camera in zip(names, cameras, strict=True)]

    def _with_shared(self, name: str, camera: GivenCamera | None) -> GivenCamera:
        assert self.shared is not None
        if camera is None:
            return replace(self.shared, name=name)
        return (
            camera
            if camera.intrinsics is not None
            else replace(self.shared, name=name, cam_from_world=camera.cam_from_world)
        )

    def _by_name(self, names: Sequence[str]) -> list[GivenCamera | None]:
        by_last: dict[str, list[GivenCamera]] = {}
        for camera in self.cameras:
            by_last.setdefault(PurePosixPath(camera.name).name, []).append(camera)
        cameras = [self._camera_of(name, by_last) for name in names]
        taken: dict[str, str] = {}
        for name, camera in zip(names, cameras, strict=True):
            if camera is not None and taken.setdefault(camera.name, name) != name:
                raise InputError(
                    f"{self.origin} has one camera {camera.name} for both {taken[camera.name]} and {name}. "
                    "Include the folders in the cameras' names."
                )
        if not taken:
            raise InputError(
                f"no camera of {self.origin} matches a picture by file name. Pictures: {_some(names)}; "
                f"cameras: {_some([c.name for c in self.cameras])}. Rename one or the other."
            )
        unused = [camera.name for camera in self.cameras if camera.name not in taken]
        if unused:
            logger.info("%d cameras of %s match no view: %s", len(unused), self.origin, _some(unused))
        return cameras

    def _camera_of(self, name: str, by_last: Mapping[str, list[GivenCamera]]) -> GivenCamera | None:
        path = PurePosixPath(name)
        fitting = [c for c in by_last.get(path.name, ()) if _end_alike(path, PurePosixPath(c.name))]
        fitting = [c for c in fitting if c.name == name] or fitting
        bare = path.with_suffix("")
        if not fitting and path.suffix.lower() in IMAGE_SUFFIXES:
            fitting = [c for c in by_last.get(bare.name, ()) if _end_alike(bare, PurePosixPath(c.name))]
        if len(fitting) > 1:
            raise InputError(
                f"{name} matches several cameras of {self.origin}: {_some([c.name for c in fitting])}. "
                "Give the pictures as folders whose names tell them apart."
            )
        return fitting[0] if fitting else None


def read_given(path: str | Path) -> GivenCameras:
    """Read cameras from a JSON file (cameras.json, transforms.json, or fx, fy, cx, cy), a COLMAP model (its folder, one
    of its files, or a folder with sparse/0), a trajectory, or a folder with one of the first three. InputError if it
    is missing, unreadable or of another kind."""
    path = Path(os.path.expanduser(path))
    if not path.exists():
        raise InputError(f"no such file or folder: {path}; expected {FORMATS}")
    if path.is_dir():
        for name in ("cameras.json", "transforms.json"):
            if (path / name).is_file():
                return _from_json(path / name)
        if (model := find_colmap(path)) is not None:
            if model != path:
                _warn_of_others(model)
            return _from_colmap(model)
        raise InputError(f"{path} holds no cameras; expected {FORMATS}")
    if path.suffix.lower() == ".json":
        return _from_json(path)
    if _is_colmap(path.parent) and path.name in COLMAP_FILES:
        return _from_colmap(path.parent)
    try:
        return GivenCameras(origin=str(path), trajectory=read_trajectory(path))
    except ValueError as error:
        raise InputError(f"{path} holds no cameras that lean3r can read ({error}); expected {FORMATS}") from error


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
        return model
    except (ValueError, RuntimeError, OSError, IndexError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"{folder} holds no readable COLMAP model ({reason}); expected cameras, images, points3D."
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
        lens = Lens(camera.model.name, tuple(map(float, camera.params)))
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
            lens = Lens(str(lens["model"]), tuple(map(float, lens["params"])))
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
    if not kind.endswith(("OPENCV", "PINHOLE", "RADIAL")) or values.get("is_fisheye") or float(values.get("k4", 0)):
        raise no_pinhole(name, "FISHEYE" if values.get("is_fisheye") else kind)
    width, height = (int(values[key]) if key in values else None for key in ("w", "h"))
    camera: dict[str, Any] = {"width": width, "height": height, "intrinsics": None, "lens": None}
    if "fl_x" in values:
        fx = float(values["fl_x"])
    elif "camera_angle_x" in values and width:
        fx = width / 2 / math.tan(float(values["camera_angle_x"]) / 2)
    else:
        return camera
    fy = float(values.get("fl_y", fx))
    cx, cy = (
        float(values[key] if key in values or not size else size / 2) for key, size in (("cx", width), ("cy", height))
    )
    camera["intrinsics"] = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])
    k1, k2, p1, p2, k3 = (float(values.get(key, 0)) for key in ("k1", "k2", "p1", "p2", "k3"))
    if k3:
        camera["lens"] = Lens("FULL_OPENCV", (fx, fy, cx, cy, k1, k2, p1, p2, k3, 0.0, 0.0, 0.0))
    elif k1 or k2 or p1 or p2:
        camera["lens"] = Lens("OPENCV", (fx, fy, cx, cy, k1, k2, p1, p2))
    elif {"k1", "k2", "p1", "p2", "k3"} & values.keys() or kind.endswith("PINHOLE"):
        camera["lens"] = Lens("PINHOLE", (fx, fy, cx, cy))
    return camera


def _given(cameras: Sequence[GivenCamera], origin: str, is_metric: bool = False) -> GivenCameras:
    if not cameras:
        raise InputError(f"{origin} holds no camera with a pose")
    return GivenCameras(tuple(cameras), origin, is_metric)


def _matrix(rows: Any) -> np.ndarray | None:
    return None if rows is None else np.array(rows, dtype=np.float64)


def _end_alike(a: PurePosixPath, b: PurePosixPath) -> bool:
    return all(x == y for x, y in zip(reversed(a.parts), reversed(b.parts), strict=False))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more
