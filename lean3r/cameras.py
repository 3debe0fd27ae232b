"""Cameras that the user has, in files: lean3r's cameras.json, COLMAP models, nerfstudio's transforms.json.

Everything comes out in lean3r's conventions (docs/conventions.md), matched to pictures by file name.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from lean3r.colmap_files import check_model
from lean3r.errors import InputError
from lean3r.sources import IMAGE_SUFFIXES, printable

if TYPE_CHECKING:
    from lean3r.colmap_library import pycolmap

logger = logging.getLogger("lean3r")

FORMATS = "a cameras.json of lean3r, a COLMAP model, or a transforms.json of nerfstudio"
COLMAP_FOLDERS = (".", "sparse/0", "sparse", "0", "colmap/sparse/0")
OPENCV_FROM_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])  # x right, y up, z backwards -> x right, y down, z forward
ASPECT_TOLERANCE = 0.01  # a picture that was scaled has its aspect ratio but for whole pixels
SHOWN_NAMES = 3


@dataclass(frozen=True, eq=False)
class GivenCamera:
    """One picture's camera, None where a part is not known: intrinsics [3, 3] in pixels of a picture of
    width x height, cam_from_world [4, 4], both float64. `name` is the picture's, perhaps with folders."""

    name: str
    width: int | None = None
    height: int | None = None
    intrinsics: np.ndarray | None = None
    cam_from_world: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.intrinsics is not None:
            _check_intrinsics(np.asarray(self.intrinsics), self.name)
        if self.cam_from_world is not None:
            _check_pose(np.asarray(self.cam_from_world), self.name)

    def intrinsics_of(self, width: int, height: int) -> np.ndarray | None:
        """Intrinsics [3, 3] in pixels of this picture at another size; InputError where the shape is another."""
        if self.intrinsics is None or not self.width or not self.height:
            return self.intrinsics
        if abs(width / height * self.height / self.width - 1) > ASPECT_TOLERANCE:
            turned = abs(height / width * self.height / self.width - 1) <= ASPECT_TOLERANCE
            why = "it is turned: that program did not apply its EXIF orientation" if turned else "it was cropped"
            raise InputError(
                f"the camera of {self.name} is for {self.width}x{self.height} pixels, the picture has {width}x{height}"
                f" ({why}). Give the pictures that the cameras were made for"
            )
        return np.diag([width / self.width, height / self.height, 1.0]) @ self.intrinsics


@dataclass(frozen=True, eq=False)
class GivenCameras:
    """Cameras of one scene. `origin` says where they come from; `is_metric` whether lengths are known as metres."""

    cameras: tuple[GivenCamera, ...]
    origin: str = "the given cameras"
    is_metric: bool = False

    def match(self, names: Sequence[str]) -> list[GivenCamera | None]:
        """The camera of each picture, None where there is none.

        A picture and a camera belong together where their paths end alike (a.jpg and images/a.jpg); a camera
        without a suffix of pictures matches any suffix. Those that are left over are logged. InputError when
        nothing matches, or when a name fits more than one.
        """
        by_last: dict[str, list[GivenCamera]] = {}
        for camera in self.cameras:
            by_last.setdefault(PurePosixPath(camera.name).name, []).append(camera)
        found = [self._camera_of(name, by_last) for name in names]
        taken: dict[str, str] = {}
        for name, camera in zip(names, found, strict=True):
            if camera is not None and taken.setdefault(camera.name, name) != name:
                raise InputError(
                    f"{self.origin} has one camera {camera.name} for both {taken[camera.name]} and {name}. "
                    "Name the cameras with their folders"
                )
        if not taken:
            raise InputError(
                f"no camera of {self.origin} is that of a picture. Pictures: {_some(names)}; "
                f"cameras: {_some([c.name for c in self.cameras])}. They are matched by file name"
            )
        without = [name for name, camera in zip(names, found, strict=True) if camera is None]
        if without:
            logger.warning(
                "%d of %d views have no camera in %s: %s", len(without), len(names), self.origin, _some(without)
            )
        unused = [camera.name for camera in self.cameras if camera.name not in taken]
        if unused:
            logger.info("%d cameras of %s belong to no view: %s", len(unused), self.origin, _some(unused))
        return found

    def _camera_of(self, name: str, by_last: Mapping[str, list[GivenCamera]]) -> GivenCamera | None:
        path = PurePosixPath(name)
        fitting = [c for c in by_last.get(path.name, ()) if _end_alike(path, PurePosixPath(c.name))]
        fitting = [c for c in fitting if c.name == name] or fitting
        bare = path.with_suffix("")
        if not fitting and path.suffix.lower() in IMAGE_SUFFIXES:
            fitting = [c for c in by_last.get(bare.name, ()) if _end_alike(bare, PurePosixPath(c.name))]
        if len(fitting) > 1:
            raise InputError(
                f"{name} fits several cameras of {self.origin}: {_some([c.name for c in fitting])}. "
                "Give the pictures by a folder whose names tell them apart"
            )
        return fitting[0] if fitting else None


def read_given(path: str | Path) -> GivenCameras:
    """Read a cameras.json, a transforms.json, a COLMAP model (its folder, one of its files, or a folder with
    sparse/0), or a folder with one of these. InputError when it is absent, unreadable or of another kind."""
    path = Path(os.path.expanduser(path))
    if not path.exists():
        raise InputError(f"no such file or folder: {path}; cameras come as {FORMATS}")
    if path.is_dir():
        for name in ("cameras.json", "transforms.json"):
            if (path / name).is_file():
                return _from_json(path / name)
        for folder in (path / sub for sub in COLMAP_FOLDERS):
            if _is_colmap(folder):
                return _from_colmap(folder)
        raise InputError(f"{path} holds no cameras; expected {FORMATS}")
    if path.suffix.lower() == ".json":
        return _from_json(path)
    if _is_colmap(path.parent) and path.suffix in (".bin", ".txt"):
        return _from_colmap(path.parent)
    raise InputError(f"{path} holds no cameras that lean3r reads; expected {FORMATS}")


def open_colmap(folder: str | Path) -> pycolmap.Reconstruction:
    """A COLMAP model, text or binary; InputError when there is no readable one."""
    from lean3r.colmap_library import pycolmap

    check_model(Path(folder))
    try:
        model = pycolmap.Reconstruction(str(folder))
        _ = [image.name for image in model.images.values()]  # raises where a name is no UTF-8
        return model
    except (ValueError, RuntimeError, OSError, IndexError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"{folder} holds no readable COLMAP model ({reason}); expected cameras, images, points3D."
        ) from error


def _is_colmap(folder: Path) -> bool:
    return any((folder / f"cameras{suffix}").is_file() for suffix in (".bin", ".txt"))


def _from_colmap(folder: Path) -> GivenCameras:
    model = open_colmap(folder)
    found, lenses = [], {}
    for image_id in sorted(model.images):
        image = model.images[image_id]
        if not image.has_pose:
            continue
        camera = model.cameras[image.camera_id]
        if image.camera_id not in lenses:
            lenses[image.camera_id] = _pinhole(camera, printable(image.name))
        pose = np.vstack([image.cam_from_world().matrix(), [0.0, 0.0, 0.0, 1.0]])
        name = printable(image.name.replace("\\", "/"))
        found.append(GivenCamera(name, camera.width, camera.height, lenses[image.camera_id][0], pose))
    return _given(found, str(folder), [off for _, off in lenses.values()])


def _from_json(path: Path) -> GivenCameras:
    try:
        content = json.loads(path.read_bytes().decode("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no readable JSON ({error})") from error
    try:
        if isinstance(content, dict) and "views" in content:
            return _from_lean3r(content, str(path))
        if isinstance(content, dict) and "frames" in content:
            return _from_nerfstudio(content, str(path))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{path} holds cameras in a form that lean3r does not read ({what})") from error
    raise InputError(f"{path} has neither `views` (lean3r) nor `frames` (nerfstudio); expected {FORMATS}")


def _from_lean3r(content: Mapping[str, Any], origin: str) -> GivenCameras:
    if content.get("axes", "opencv") != "opencv":
        raise InputError(f"{origin} states the axes {content['axes']!r}; expected opencv")
    found = []
    for view in content["views"]:
        pose, intrinsics = view.get("cam_from_world"), view.get("K")
        size = (int(view["width"]), int(view["height"])) if intrinsics is not None else (None, None)
        found.append(GivenCamera(str(view["name"]), *size, _matrix(intrinsics), _matrix(pose)))
    return _given(found, origin, (), content.get("scale") == "metric")


def _from_nerfstudio(content: Mapping[str, Any], origin: str) -> GivenCameras:
    found, off = [], []
    for frame in content["frames"]:
        values = {**content, **frame}
        name = printable(str(PurePosixPath(str(frame["file_path"]).replace("\\", "/"))))
        matrix = _matrix(frame.get("transform_matrix"))
        pose = None
        if matrix is not None:
            matrix = np.vstack([matrix, [0.0, 0.0, 0.0, 1.0]]) if matrix.shape == (3, 4) else matrix
            _check_pose(matrix, name)
            pose = np.linalg.inv(matrix @ OPENCV_FROM_OPENGL)
        intrinsics, off_px = _nerfstudio_lens(values, name)
        off.append(off_px)
        width, height = (int(values[key]) if key in values else None for key in ("w", "h"))
        found.append(GivenCamera(name, width, height, intrinsics, pose))
    return _given(found, origin, off)


def _nerfstudio_lens(values: Mapping[str, Any], name: str) -> tuple[np.ndarray | None, float]:
    """Intrinsics of one frame, None where the file states no focal length or no picture size (w, h), and how many
    pixels distortion moves a corner."""
    from lean3r.colmap_library import pycolmap

    if not {"w", "h"} <= values.keys() or not {"fl_x", "camera_angle_x"} & values.keys():
        return None, 0.0
    width, height = int(values["w"]), int(values["h"])
    kind = str(values.get("camera_model", "OPENCV")).upper()
    if not kind.endswith(("OPENCV", "PINHOLE", "RADIAL")):
        raise _no_pinhole(name, kind)
    focal_x = float(values["fl_x"]) if "fl_x" in values else width / 2 / math.tan(float(values["camera_angle_x"]) / 2)
    focal = [focal_x, float(values.get("fl_y", focal_x))]
    centre = [float(values.get("cx", width / 2)), float(values.get("cy", height / 2))]
    lens = [float(values.get(key, 0.0)) for key in ("k1", "k2", "p1", "p2", "k3")]
    params = [*focal, *centre, *lens, 0.0, 0.0, 0.0]
    return _pinhole(pycolmap.Camera(model="FULL_OPENCV", width=width, height=height, params=params), name)


def _pinhole(camera: pycolmap.Camera, name: str) -> tuple[np.ndarray, float]:
    """The pinhole part [3, 3] of a camera, and how many pixels its distortion moves a corner of the picture."""
    kind = camera.model.name
    if "FISHEYE" in kind or not kind.endswith(("PINHOLE", "RADIAL", "OPENCV", "DIVISION")):
        raise _no_pinhole(name, kind)
    matrix = camera.calibration_matrix()
    if camera.is_undistorted():
        return matrix, 0.0
    corners = np.array([[x, y, 1.0] for x in (0, camera.width) for y in (0, camera.height)])
    seen = camera.img_from_cam(corners @ np.linalg.inv(matrix).T)
    return matrix, float(np.linalg.norm(np.asarray(seen) - corners[:, :2], axis=1).max())


def _no_pinhole(name: str, kind: str) -> InputError:
    return InputError(
        f"the camera of {name} is of the kind {kind}, no pinhole. "
        "Undistort the pictures first (`colmap image_undistorter`), and give those and their cameras"
    )


def _given(found: Iterable[GivenCamera], origin: str, off_px: Iterable[float], is_metric: bool = False) -> GivenCameras:
    cameras = tuple(found)
    if not cameras:
        raise InputError(f"{origin} holds no camera with a pose")
    bent = [off for off in off_px if off > 0.5]
    if bent:
        logger.warning(
            "lenses of %s bend corners by up to %.0f pixels; only the pinhole part is used. Where that matters, "
            "undistort the pictures first (colmap image_undistorter)",
            origin,
            max(bent),
        )
    return GivenCameras(cameras, origin, is_metric)


def _matrix(rows: Any) -> np.ndarray | None:
    return None if rows is None else np.array(rows, dtype=np.float64)


def _check_intrinsics(matrix: np.ndarray, name: str) -> None:
    zeros = matrix[[0, 1, 2, 2], [1, 0, 0, 1]] if matrix.shape == (3, 3) else np.ones(1)
    sound = not zeros.any() and bool(np.isfinite(matrix).all()) and matrix[2, 2] == 1
    if not sound or matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
        raise InputError(
            f"the intrinsics of {name} are no pinhole camera's; expected [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in "
            "pixels, fx and fy positive"
        )


def _check_pose(matrix: np.ndarray, name: str) -> None:
    if matrix.shape == (4, 4) and bool(np.isfinite(matrix).all()) and np.allclose(matrix[3], [0, 0, 0, 1]):
        rotation = matrix[:3, :3]
        if np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3) and np.linalg.det(rotation) > 0:
            return
    raise InputError(f"the pose of {name} is no rotation with a translation; expected a rigid 4 x 4 matrix")


def _end_alike(a: PurePosixPath, b: PurePosixPath) -> bool:
    return all(x == y for x, y in zip(reversed(a.parts), reversed(b.parts), strict=False))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more
