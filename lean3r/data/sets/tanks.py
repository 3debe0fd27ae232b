"""Tanks and Temples: large objects, buildings and rooms in video frames, with laser scans of the training scenes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lean3r.data.sets.formats.files import image_size, naming, read_matrix, read_text
from lean3r.data.sets.formats.lens import LensFrame, LensSet
from lean3r.data.sets.formats.ply import read_ply
from lean3r.data.sets.formats.transforms import PosedPicture, read_model
from lean3r.data.sets.scenes import folders, invert
from lean3r.errors import InputError, MissingExtraError
from lean3r.inputs.cameras import COLMAP_FOLDERS
from lean3r.json_text import parse_json

if TYPE_CHECKING:
    from lean3r.colmap_library import pycolmap

SCENES = {
    *("Barn", "Caterpillar", "Church", "Courthouse", "Ignatius", "Meetingroom", "Truck"),
    *("Family", "Francis", "Horse", "Lighthouse", "M60", "Panther", "Playground", "Train"),
    *("Auditorium", "Ballroom", "Courtroom", "Museum", "Palace", "Temple"),
}
FOCAL = 0.605  # in widths: Truck has 0.606 and Train 0.604 in the public calibrations of 3D Gaussian Splatting
LOG, ALIGNMENT = "_COLMAP_SfM.log", "_trans.txt"
_PICTURES = {".jpg", ".jpeg", ".png"}
_AXES = {"X": (1, 2, 0), "Y": (0, 2, 1), "Z": (0, 1, 2)}  # two of the polygon's plane, and the one across


class Pose(NamedTuple):
    """A pose of a log: the picture's number, from 0, and world_from_cam [4, 4]; None if it could not be posed."""

    number: int
    world_from_cam: np.ndarray | None


class Tanks(LensSet[LensFrame]):
    """One scene per folder ("Barn"), of 150 to 1100 frames of a video. No depth.

    Poses are those of SCENE_COLMAP_SfM.log. With SCENE_trans.txt the world is that of the laser scan, in metres;
    without, COLMAP's. Logs have no intrinsics: those of a COLMAP model in the scene's folder are used, and its pictures
    are undistorted when read. Without a model the focal length is `focal` times the width, without distortion, which
    fits the cameras of the set within some percent: scores of poses are not affected. A folder that has the name of a
    scene and a COLMAP model but no log has the poses of the model.
    """

    name = "tanks"
    title = "Tanks and Temples"
    licence = "see https://www.tanksandtemples.org/license/"
    source = "https://www.tanksandtemples.org/download: image sets, and the evaluation data of the training scenes"
    layout = (
        "SCENE/ with *.jpg or images/*.jpg and SCENE_COLMAP_SfM.log (and SCENE_trans.txt, SCENE.ply, SCENE.json, "
        "sparse/0/); or with images/ and sparse/0/"
    )
    parts = ()
    has_depth = False
    is_ordered = True

    def __init__(self, root: str | Path, focal: float = FOCAL, scenes: Sequence[str] | None = None) -> None:
        self.focal = focal
        super().__init__(root, scenes)
        self.is_metric = all(_file(self.root / scene, ALIGNMENT).is_file() for scene in self.ids)

    @classmethod
    def places(cls, root: Path) -> Iterable[Path]:
        """Folders with a log or an alignment; and those with a scene's name and a COLMAP model, or with pictures whose
        log is in another folder of this name."""
        names = {name.lower() for name in SCENES}
        for folder in folders(root):
            has_files = any(any(folder.glob(f"[!.]*{end}")) for end in (LOG, ALIGNMENT))
            is_named = folder.name.lower() in names
            if has_files or (is_named and (_model_folder(folder) or (_pictures(folder) and _twin(folder, _has_log)))):
                yield folder

    @classmethod
    def missing(cls, place: Path) -> list[str]:
        """Sentences for missing poses or pictures."""
        problems = []
        if not _has_log(place) and _model_folder(place) is None:
            twin = _twin(place, _has_log)
            hint = f": copy the files of {twin} to {place}" if twin else ""
            problems.append(f"{_file(place, LOG)} is missing{hint}")
        if not _pictures(place):
            twin = _twin(place, _pictures)
            hint = f": copy those of {_pictures(twin)[0].parent} to {place / 'images'}" if twin else ""
            problems.append(f"{place} has no pictures, nor has its images/{hint}")
        return problems

    @classmethod
    def incomplete(cls, place: Path) -> list[str]:
        """Sentences for poses without pictures, and for a scan whose place in the world of the cameras is missing."""
        try:
            posed = len(read_log(_file(place, LOG))) if _file(place, LOG).is_file() else None
        except InputError as error:
            return [str(error)]
        problems = []
        if posed is not None and posed != len(_pictures(place)):
            problems.append(f"{place} has {len(_pictures(place))} pictures, but {_file(place, LOG)} has {posed} poses")
        if _file(place, ".ply").is_file() and not _file(place, ALIGNMENT).is_file():
            problems.append(f"{_file(place, ALIGNMENT)} is missing: {_file(place, '.ply').name} cannot be aligned")
        return problems

    def frames(self, scene: str) -> Sequence[LensFrame]:
        """The posed pictures, by name."""
        place = self.root / scene
        pictures, folder = _pictures(place), _model_folder(place)
        model = {PurePosixPath(row.path).name: row for row in read_model(folder)} if folder is not None else {}
        if _file(place, LOG).is_file():
            world_from_log = _alignment(place)
            poses = {
                picture: invert(moved(world_from_log, pose.world_from_cam))
                for picture, pose in _matched(pictures, read_log(_file(place, LOG)), place)
                if pose.world_from_cam is not None
            }
        else:
            poses = {picture: model[picture.name].cam_from_world for picture in pictures if picture.name in model}
        if not poses:
            raise InputError(f"{place} has no posed picture; expected {self.layout}")
        size = image_size(pictures[0])
        shared = next(iter(model.values())).lens if model else _pinhole(size, self.focal)
        lenses = {name: row.lens for name, row in model.items()}
        return [
            PosedPicture(picture.name, lenses.get(picture.name, shared), pose, False).frame(picture, size)
            for picture, pose in poses.items()
        ]

    def cloud(self, scene: int) -> np.ndarray | None:
        """Points of the scan within the volume that the benchmark scores; None without an alignment of the cameras."""
        place = self.root / self.ids[scene]
        path = _file(place, ".ply")
        if not (path.is_file() and _file(place, ALIGNMENT).is_file() and _file(place, LOG).is_file()):
            return None
        points = read_ply(path)[0]
        return points[self.in_volume(scene, points)]

    def in_volume(self, scene: int, xyz: np.ndarray) -> np.ndarray:
        """Which points [N, 3] are in the volume of SCENE.json [N] bool, in the scan's world; all without that file.

        MissingExtraError without matplotlib.
        """
        path = _file(self.root / self.ids[scene], ".json")
        return inside_volume(path, xyz) if path.is_file() else np.ones(len(xyz), bool)


def read_log(path: Path) -> list[Pose]:
    """Read the poses of a log: for each picture a line with its number twice (-1: not posed) and 0, and 4 x 4 numbers.

    InputError if it is missing or damaged.
    """
    with naming(path):
        rows = [line.split() for line in read_text(path).splitlines() if line.strip()]
        poses = []
        for start in range(0, len(rows), 5):
            number, used = int(rows[start][0]), int(rows[start][1])
            matrix = np.array(rows[start + 1 : start + 5], np.float64).reshape(4, 4)
            poses.append(Pose(number, matrix if used >= 0 and np.isfinite(matrix).all() else None))
    return poses


def inside_volume(path: Path, xyz: np.ndarray) -> np.ndarray:
    """Which points [N, 3] are in a volume as Open3D stores it: a polygon, and a range of the axis across. [N] bool."""
    try:
        from matplotlib.path import Path as Polygon
    except ImportError as error:
        raise MissingExtraError.of("cropping clouds of Tanks and Temples", "eval") from error
    with naming(path):
        volume = parse_json(read_text(path))
        first, second, across = _AXES[str(volume["orthogonal_axis"]).upper()]
        corners = np.array(volume["bounding_polygon"], np.float64)[:, [first, second]]
        low, high = float(volume["axis_min"]), float(volume["axis_max"])
    kept = (xyz[:, across] >= low) & (xyz[:, across] <= high)
    kept[kept] = Polygon(corners).contains_points(xyz[kept][:, [first, second]])
    return kept


def moved(similarity: np.ndarray, world_from_cam: np.ndarray) -> np.ndarray:
    """The pose [4, 4] of a camera in a world to which a similarity [4, 4] leads."""
    pose = similarity @ world_from_cam
    pose[:3, :3] /= np.cbrt(np.linalg.det(similarity[:3, :3]))
    return pose


def _alignment(place: Path) -> np.ndarray:
    """scan_from_log [4, 4], a similarity; the identity without the file."""
    path = _file(place, ALIGNMENT)
    if not path.is_file():
        return np.eye(4)
    matrix = read_matrix(path, 4, 4)
    if not np.isfinite(matrix).all() or np.linalg.det(matrix[:3, :3]) <= 0:
        raise InputError(f"{path} is not a similarity; expected a 4 x 4 matrix of rotation, scale and translation")
    return matrix


def _matched(pictures: Sequence[Path], poses: Sequence[Pose], place: Path) -> list[tuple[Path, Pose]]:
    """Pictures with their poses: in their order if all are there, otherwise by the numbers of their names, from 1."""
    if len(pictures) == len(poses):
        return list(zip(pictures, poses, strict=True))
    if not all(picture.stem.isdigit() for picture in pictures):
        raise InputError(
            f"{place} has {len(pictures)} pictures and {len(poses)} poses, and the pictures' names are not numbers; "
            "expected the pictures as published (000001.jpg...)"
        )
    by_number = {pose.number: pose for pose in poses}
    first = 0 if any(int(picture.stem) == 0 for picture in pictures) else 1
    numbers = [(picture, int(picture.stem) - first) for picture in pictures]
    return [(picture, by_number[number]) for picture, number in numbers if number in by_number]


def _pinhole(size: tuple[int, int], focal: float) -> pycolmap.Camera:
    from lean3r.colmap_library import pycolmap

    width, height = size
    params = [focal * width, focal * width, width / 2, height / 2]
    return pycolmap.Camera(model="PINHOLE", width=width, height=height, params=params)


def _file(place: Path, end: str) -> Path:
    """SCENE_trans.txt and the like: the name is that of the log, or else of the folder."""
    log = next(iter(sorted(place.glob(f"[!.]*{LOG}"))), None)
    return place / f"{place.name if log is None else log.name.removesuffix(LOG)}{end}"


def _pictures(place: Path) -> list[Path]:
    """Pictures by name, in images/ or the scene's folder itself."""
    for folder in (place / "images", place):
        files = sorted(p for p in folder.glob("*") if p.suffix.lower() in _PICTURES and p.name[0] != ".")
        if files:
            return files
    return []


def _has_log(place: Path) -> bool:
    return _file(place, LOG).is_file()


def _twin(place: Path, has: Callable[[Path], object]) -> Path | None:
    """The folder of the same scene beside or above, such as in trainingdata/, that has what this one lacks."""
    root = place.resolve().parent
    twins = (folder / place.name for folder in (root.parent, *folders(root), *folders(root.parent)))
    return next((twin for twin in twins if twin != place.resolve() and has(twin)), None)


def _model_folder(place: Path) -> Path | None:
    candidates = (place / name for name in COLMAP_FOLDERS)
    return next((f for f in candidates if any((f / f"cameras{end}").is_file() for end in (".bin", ".txt"))), None)
