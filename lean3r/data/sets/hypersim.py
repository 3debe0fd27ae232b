"""Hypersim: rendered rooms with exact geometry, in HDF5 files."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lean3r.data.sets.formats.files import read_text
from lean3r.data.sets.scenes import Camera, FolderSet, Frame, folders, invert, rescale
from lean3r.errors import InputError, MissingExtraError
from lean3r.inputs.cameras import OPENCV_FROM_OPENGL

PARAMETERS = "metadata_camera_parameters.csv"
MAX_VALUES = 2**26  # limit of an array's size; pictures have 2 ** 22
SKEW_TOLERANCE = 1e-4
_METRES = "meters_per_asset_unit"
_PICTURE, _DISTANCE = ".tonemap.jpg", ".depth_meters.hdf5"


class Hypersim(FolderSet[Frame]):
    """One scene per camera path ("ai_001_001/cam_00"), with tone-mapped previews; needs h5py (extra "train").

    Each scene has its own projection, some with a tilted lens; it is read from the table of the toolkit. A tilted lens
    is a rotated pinhole camera, so its rotation is part of the pose, and z-depth is along its axis.
    """

    name = "hypersim"
    title = "Hypersim"
    licence = "CC BY-SA 3.0 (the repository apple/ml-hypersim)"
    source = (
        "Hypersim: dataset_download_images.py of the repository apple/ml-hypersim, and its table "
        "contrib/mikeroberts3000/metadata_camera_parameters.csv"
    )
    layout = (
        "ai_001_001/ with _detail/ (metadata_scene.csv, cam_00/) and images/ (scene_cam_00_final_preview/, "
        "scene_cam_00_geometry_hdf5/), perhaps below scenes/, and metadata_camera_parameters.csv in the root"
    )
    is_metric = True

    @classmethod
    def looks_like(cls, root: Path) -> bool:
        """Whether there are folders like ai_001_001 with _detail/ or images/."""
        return bool(_places(root))

    @classmethod
    def find_scenes(cls, root: Path) -> list[str]:
        """Camera paths with pictures, distances and poses; none if the table of projections is missing."""
        if not _table(root):
            return []
        return [
            f"{place.relative_to(root).as_posix()}/{camera}"
            for place in _places(root)
            for camera in _paths(place)
            if not _missing(place, camera)
        ]

    @classmethod
    def problems(cls, root: Path) -> list[str]:
        """Sentences for a missing table, missing parts of scenes, and pictures without distances."""
        places = _places(root)
        if not places:
            return [f"{root} has no Hypersim scene"]
        problems = []
        if not _table(root):
            problems.append(
                f"{root / PARAMETERS} is missing; it is needed to read any scene: copy it from "
                "contrib/mikeroberts3000 of the repository apple/ml-hypersim"
            )
        for place in places:
            paths = _paths(place)
            problems += (
                [] if paths else [f"{place} has no camera path: expected _detail/cam_00 and images/scene_cam_00_*"]
            )
            problems += [what for camera in paths for what in _missing(place, camera) or _incomplete(place, camera)]
        return problems

    def frames(self, scene: str) -> Sequence[Frame]:
        """The published frames of one camera path, in order."""
        place, camera = (self.root / scene).parent, (self.root / scene).name
        table = _table(self.root)
        if table is None:
            raise InputError(f"{self.root / PARAMETERS} is missing; expected {self.layout}")
        intrinsics, pinhole_from_cam, size = projection(_row(table, place.name), place.name)
        metres = _metres_per_unit(place / "_detail" / "metadata_scene.csv")
        rotations = read_hdf5(place / "_detail" / camera / "camera_keyframe_orientations.hdf5", 3)
        positions = read_hdf5(place / "_detail" / camera / "camera_keyframe_positions.hdf5", 2)
        pictures, geometry = _folders(place, camera)
        frames = []
        for picture in sorted(pictures.glob(f"frame.*{_PICTURE}")):
            stem = picture.name.removesuffix(_PICTURE)
            index = int(stem.removeprefix("frame."))
            if index >= min(len(rotations), len(positions)):
                raise InputError(f"{place / '_detail' / camera} has no pose for {picture.name}")
            # world_from_cam in OpenGL's axes (x right, y up, z backwards).
            world_from_cam = np.eye(4)
            world_from_cam[:3, :3], world_from_cam[:3, 3] = rotations[index], positions[index] * metres
            pose = pinhole_from_cam @ invert(world_from_cam @ OPENCV_FROM_OPENGL)
            frames.append(Frame(picture, Camera(intrinsics, pose, *size), geometry / f"{stem}{_DISTANCE}"))
        return frames

    def read_depth(self, frame: Frame) -> np.ndarray:
        """z-depth in metres from the distance to the optical centre; 0 where a ray has no hit (NaN in the file)."""
        assert frame.depth is not None
        distance = read_hdf5(frame.depth, 2)
        height, width = distance.shape
        scaled = rescale(frame.camera.intrinsics, width / frame.camera.width, height / frame.camera.height)
        x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
        slope_x, slope_y = (x - scaled[0, 2]) / scaled[0, 0], (y - scaled[1, 2]) / scaled[1, 1]
        depth = distance / np.sqrt(slope_x**2 + slope_y**2 + 1)
        return np.where(np.isfinite(depth), depth, 0).astype(np.float32)


def projection(row: Mapping[str, str], scene: str) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """The projection in a scene's row of the table: intrinsics [3, 3]; pinhole_from_cam [4, 4], a rotation (the
    identity if the lens is not tilted); picture (width, height). InputError if its axes are not at right angles."""
    try:
        width, height = (int(float(row[f"settings_output_img_{side}"])) for side in ("width", "height"))
        cam_from_uv = np.array([[float(row[f"M_cam_from_uv_{i}{j}"]) for j in range(3)] for i in range(3)])
        # u and v are in [-1, 1], v upwards; rays are in OpenGL's axes. In ours, their QR decomposition is R^T K^-1.
        uv_from_pixel = np.array([[2 / width, 0, -1], [0, -2 / height, 1], [0, 0, 1]])
        cam_from_pixel = OPENCV_FROM_OPENGL[:3, :3] @ cam_from_uv @ uv_from_pixel
        turn, upper = np.linalg.qr(cam_from_pixel)
        sign = np.sign(np.diag(upper))
        intrinsics = np.linalg.inv(sign[:, None] * upper)
    except (KeyError, ValueError, np.linalg.LinAlgError, ZeroDivisionError) as error:
        raise InputError(f"{PARAMETERS} has no projection of {scene} ({error!r})") from error
    intrinsics /= intrinsics[2, 2]
    rotation = (turn * sign).T
    skew = abs(intrinsics[0, 1] / intrinsics[0, 0])
    if not skew < SKEW_TOLERANCE or np.linalg.det(rotation) < 0:
        raise InputError(f"the lens of {scene} is tilted sideways (skew {skew:.2g}); such scenes are not supported")
    intrinsics[0, 1] = 0.0
    pinhole_from_cam = np.eye(4)
    pinhole_from_cam[:3, :3] = rotation
    return intrinsics, pinhole_from_cam, (width, height)


def read_hdf5(path: Path, dimensions: int) -> np.ndarray:
    """The float64 array of a file's only data set, called "dataset".

    Raises MissingExtraError without h5py, InputError for a missing or damaged file or another number of dimensions."""
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError.of("reading Hypersim (HDF5, by h5py)", "train") from error
    if not path.is_file():
        raise InputError(f"{path} is missing")
    try:
        with h5py.File(path, "r") as file:
            dataset: Any = file["dataset"]
            is_own = isinstance(file.get("dataset", getlink=True), h5py.HardLink) and isinstance(dataset, h5py.Dataset)
            if not is_own or dataset.external or dataset.is_virtual or (dataset.size or 0) > MAX_VALUES:
                raise ValueError("the array is too large, or in another file")
            values = np.asarray(dataset[()], dtype=np.float64)
    except Exception as error:  # h5py raises many kinds of errors for damaged files
        raise InputError(f"{path} is damaged or has no HDF5 array called dataset ({error})") from error
    if values.ndim != dimensions:
        raise InputError(f"{path} has an array with {values.ndim} dimensions; expected {dimensions}")
    return values


def _places(root: Path) -> list[Path]:
    places = [folder for base in (root, root / "scenes") for folder in folders(base) if folder.name.startswith("ai_")]
    return [folder for folder in places if (folder / "_detail").is_dir() or (folder / "images").is_dir()]


def _paths(place: Path) -> list[str]:
    """Names of camera paths like cam_00, from poses and pictures."""
    posed = {folder.name for folder in folders(place / "_detail") if folder.name.startswith("cam_")}
    pictured = {folder.name.removeprefix("scene_")[: len("cam_00")] for folder in folders(place / "images")}
    return sorted(posed | {name for name in pictured if name.startswith("cam_")})


def _folders(place: Path, camera: str) -> tuple[Path, Path]:
    images = place / "images"
    return images / f"scene_{camera}_final_preview", images / f"scene_{camera}_geometry_hdf5"


def _missing(place: Path, camera: str) -> list[str]:
    detail = place / "_detail"
    files = [detail / "metadata_scene.csv"]
    files += [detail / camera / f"camera_keyframe_{what}.hdf5" for what in ("orientations", "positions")]
    absent = [path for path in files if not path.is_file()]
    return [
        f"{path} is missing" for path in (*absent, *(path for path in _folders(place, camera) if not path.is_dir()))
    ]


def _incomplete(place: Path, camera: str) -> list[str]:
    pictures, geometry = _folders(place, camera)
    names = {path.name.removesuffix(_PICTURE) for path in pictures.glob(f"frame.*{_PICTURE}")}
    if len(names) < 2:
        return [f"{pictures} has {len(names)} pictures frame.*{_PICTURE}; a scene needs two"]
    without = sorted(names - {path.name.removesuffix(_DISTANCE) for path in geometry.glob(f"frame.*{_DISTANCE}")})
    return [f"{len(without)} of {len(names)} maps of {geometry} are missing, e.g. {without[0]}"] if without else []


def _table(root: Path) -> Path | None:
    return next((path for path in (root / PARAMETERS, root / "scenes" / PARAMETERS) if path.is_file()), None)


def _row(table: Path, scene: str) -> dict[str, str]:
    """The row of one scene; the other rows are not parsed."""
    header, *lines = read_text(table).splitlines()
    line = next((line for line in lines if line.startswith(f"{scene},")), None)
    if line is None:
        raise InputError(f"{table} has no row for {scene}; expected the table of the whole set")
    return next(csv.DictReader(io.StringIO(f"{header}\n{line}\n")))


def _metres_per_unit(path: Path) -> float:
    rows = dict(line.split(",")[:2] for line in read_text(path).splitlines() if "," in line)
    try:
        return float(rows[_METRES])
    except (KeyError, ValueError) as error:
        raise InputError(f"{path} does not state {_METRES}") from error
