"""COLMAP models with their pictures: any folder of posed photos; and cameras without pictures."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lean3r.data.sets.formats.colmap_checks import FEWEST, contradictions
from lean3r.data.sets.formats.files import inside, read_depth_png, read_npy
from lean3r.data.sets.formats.lens import LensFrame, LensSet, pinhole_of
from lean3r.data.sets.scenes import Camera, RawView, folders
from lean3r.errors import InputError, UsageError
from lean3r.inputs.cameras import COLMAP_FOLDERS, open_colmap

if TYPE_CHECKING:
    from lean3r.colmap_library import pycolmap

_PICTURES = ("images", ".", "rgb", "color")
OTHER_UNIT = 1.5  # times the depth of the points: no error of either is so large in the median
_MODEL_FILES = ("cameras", "images", "points3D")


@dataclass(frozen=True, eq=False, kw_only=True)
class TrackedFrame(LensFrame):
    """A view with the points that it observed: xyz [P, 3] in the world, and their ids in the model."""

    xyz: np.ndarray
    points: Sequence[int]


class ColmapFolder(LensSet[TrackedFrame]):
    """Scenes with pictures and a COLMAP model: the root itself, or folders below it.

    Pictures are undistorted when read, to a pinhole camera without empty corners. Depth is that of the points that
    COLMAP observed in each picture, 0 elsewhere. If `depth` is the name of a folder next to that of the pictures, it
    is read from depth maps with the pictures' names: .npy, or .png of integers with `units_per_metre` in one unit of
    the model; in the shape of the distorted picture. `is_metric`: whether the model's unit is the metre, which its
    files do not state.
    """

    name = "colmap"
    title = "COLMAP"
    licence = "that of the pictures"
    source = "any pictures, mapped with COLMAP (https://colmap.github.io)"
    layout = "images/ and sparse/0/ (cameras, images, points3D as .bin or .txt), or folders with these"

    def __init__(
        self,
        root: str | Path,
        depth: str | None = None,
        units_per_metre: float = 1000.0,
        is_metric: bool = False,
        scenes: Sequence[str] | None = None,
    ) -> None:
        if not 0 < units_per_metre < math.inf:
            raise UsageError(
                f"units_per_metre is {units_per_metre}; expected a finite number above 0: 1000 for maps in thousandths "
                "of the model's unit"
            )
        self.depth, self.units_per_metre, self.is_metric = depth, units_per_metre, is_metric
        super().__init__(root, scenes)

    @classmethod
    def looks_like(cls, root: Path) -> bool:
        """Whether the root or a folder in it has a cameras.bin or cameras.txt where COLMAP writes it."""
        return any(_model_folder(folder) is not None for folder in (root, *folders(root)[:20]))

    @classmethod
    def places(cls, root: Path) -> list[Path]:
        """Folders with a model, complete or not: the root itself, or those in it."""
        candidates = [root] if _model_folder(root) is not None else folders(root)
        return [folder for folder in candidates if _model_folder(folder) is not None]

    @classmethod
    def missing(cls, place: Path) -> list[str]:
        """Sentences for missing files of the model."""
        model = _model_folder(place)
        if model is None:
            return [f"{place} has no COLMAP model"]
        suffix = ".bin" if (model / "cameras.bin").is_file() else ".txt"
        return [f"{path} is missing" for name in _MODEL_FILES if not (path := model / f"{name}{suffix}").is_file()]

    @classmethod
    def incomplete(cls, place: Path) -> list[str]:
        """Sentences for missing pictures, a model that cannot be read, or one that contradicts itself."""
        model_folder = _model_folder(place)
        assert model_folder is not None
        try:
            model = open_colmap(model_folder)
        except InputError as error:
            return [str(error)]
        return _absent_pictures(place, model) + contradictions(model, str(model_folder))

    def frames(self, scene: str) -> Sequence[TrackedFrame]:
        """Posed pictures whose files exist, by name."""
        folder = self.root / scene
        model_folder = _model_folder(folder)
        if model_folder is None:
            raise InputError(f"{folder} has no COLMAP model; expected {self.layout}")
        model = open_colmap(model_folder)
        files = _picture_files(folder, [image.name for image in model.images.values()])
        frames = []
        for image in sorted(model.images.values(), key=lambda image: image.name):
            if image.has_pose and image.name in files:
                lens = copy.copy(model.cameras[image.camera_id])
                camera, seen = pinhole_of(lens), _points_of(image, model)
                xyz = np.array([model.points3D[point].xyz for point in seen]).reshape(-1, 3)
                pose = np.vstack([image.cam_from_world().matrix(), [0.0, 0.0, 0.0, 1.0]])
                plain = Camera(camera.calibration_matrix(), pose, camera.width, camera.height)
                depth = self._map_of(folder, image.name)
                frames.append(TrackedFrame(files[image.name], plain, depth, lens=lens, xyz=xyz, points=seen))
        if not frames:
            raise InputError(f"no posed picture of {model_folder} is in {folder}; expected {self.layout}")
        if self.depth is not None and not any(frame.depth is not None and frame.depth.is_file() for frame in frames):
            raise InputError(
                f"no picture of {folder} has a depth map in {folder / self.depth}; expected NAME.npy or NAME.png there "
                f"for each picture, e.g. {frames[0].depth}"
            )
        return frames

    def view(self, scene: int, view: int) -> RawView:
        """Read one view and undistort it; without a depth map, depth is that of its points."""
        seen, frame = super().view(scene, view), self._frames_of(scene)[view]
        if frame.depth is not None:
            return seen
        return replace(seen, depth=sparse_depth(frame.xyz, seen.intrinsics, seen.cam_from_world, *seen.image.shape[:2]))

    def read_depth(self, frame: TrackedFrame) -> np.ndarray:
        """Depth [h, w] from a depth map, in units of the model."""
        assert frame.depth is not None
        return (
            read_npy(frame.depth) if frame.depth.suffix == ".npy" else read_depth_png(frame.depth, self.units_per_metre)
        )

    def doubt(self, scene: int, view: int, read: RawView) -> str:
        """A depth map in another unit than the model's points."""
        frame = self._frames_of(scene)[view]
        if frame.depth is None:
            return ""
        points = sparse_depth(frame.xyz, read.intrinsics, read.cam_from_world, *read.image.shape[:2])
        both = (points > 0) & (read.depth > 0) & np.isfinite(read.depth)
        times = float(np.median(read.depth[both] / points[both])) if both.sum() >= FEWEST else 1.0
        if 1 / OTHER_UNIT < times < OTHER_UNIT:
            return ""
        return (
            f"{frame.depth}: depth is {times:.3g} times that of the model's points; maps and model must have one unit "
            f"(units_per_metre is {self.units_per_metre:g})"
        )

    def covisibility(self, scene: int) -> np.ndarray | None:
        """Number of points [V, V] that two views share."""
        ids = [frame.points for frame in self._frames_of(scene)]
        points = {point: i for i, point in enumerate(sorted({p for own in ids for p in own}))}
        if not points:
            return None
        seen = np.zeros((len(ids), len(points)), np.float32)
        for row, own in zip(seen, ids, strict=True):
            row[[points[p] for p in own]] = 1
        return seen @ seen.T

    def _map_of(self, folder: Path, name: str) -> Path | None:
        """The depth map of a picture, there or not: a view without its map is left out, not the whole scene."""
        if self.depth is None:
            return None
        npy, png = ((folder / self.depth / name).with_suffix(suffix) for suffix in (".npy", ".png"))
        return png if png.is_file() and not npy.is_file() else npy


def sparse_depth(xyz: np.ndarray, intrinsics: np.ndarray, pose: np.ndarray, height: int, width: int) -> np.ndarray:
    """z-depth [H, W] float32 at the pixels of world points [P, 3], of the nearest point in each pixel; 0 elsewhere."""
    there = xyz @ pose[:3, :3].T + pose[:3, 3]
    there = there[there[:, 2] > 0]
    pixels = np.floor((there / there[:, 2:]) @ intrinsics[:2].T).astype(np.int64)
    inside = ((pixels >= 0) & (pixels < (width, height))).all(1)
    depth = np.full((height, width), np.inf, np.float32)
    np.minimum.at(depth, (pixels[inside, 1], pixels[inside, 0]), there[inside, 2].astype(np.float32))
    return np.where(np.isfinite(depth), depth, 0).astype(np.float32)


def _model_folder(folder: Path) -> Path | None:
    """The folder of a scene's model: one of COLMAP's usual places, or a folder directly below the scene."""
    for candidate in (*(folder / name for name in COLMAP_FOLDERS), *folders(folder)):
        if any((candidate / f"cameras{suffix}").is_file() for suffix in (".bin", ".txt")):
            return candidate
    return None


def _absent_pictures(folder: Path, model: pycolmap.Reconstruction) -> list[str]:
    images = [image.name for image in model.images.values() if image.has_pose]
    files = _picture_files(folder, images)
    absent = sorted(set(images) - files.keys())
    if not images:
        return [f"the COLMAP model of {folder} has no posed picture"]
    return [f"{len(absent)} of {len(images)} pictures of {folder} are missing, e.g. {absent[0]}"] if absent else []


def _picture_files(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """{name in the model: file}, from the first folder with any of them."""
    names = list(names)
    for sub in _PICTURES:
        places = {name: inside(folder / sub, name) for name in names}
        files = {name: path for name, path in places.items() if path.is_file()}
        if files:
            return files
    return {}


def _points_of(image: pycolmap.Image, model: pycolmap.Reconstruction) -> list[int]:
    """Ids of the points of the model that an image observes."""
    return [p.point3D_id for p in image.points2D if p.has_point3D() and model.exists_point3D(p.point3D_id)]


@dataclass(frozen=True)
class ColmapCameras:
    """Posed pictures in the order of the file: names; cam_from_world [S, 4, 4]; intrinsics [S, 3, 3] in pixels of
    `size` (the pinhole part, without distortion); size [S, 2] (width, height); mean_depth, the mean z-depth of all
    observed points in world units (NaN without points)."""

    names: tuple[str, ...]
    cam_from_world: np.ndarray
    intrinsics: np.ndarray
    size: np.ndarray
    mean_depth: float


def read_cameras(folder: str | Path) -> ColmapCameras:
    """Read a folder with cameras, images and points3D files; InputError if there is no readable model or no pose."""
    model = open_colmap(folder)
    names, poses, intrinsics, sizes, depths = [], [], [], [], []
    for image_id in sorted(model.images):
        image = model.images[image_id]
        if not image.has_pose:
            continue
        camera = model.cameras[image.camera_id]
        pose = np.eye(4)
        pose[:3] = image.cam_from_world().matrix()
        names.append(image.name)
        poses.append(pose)
        intrinsics.append(camera.calibration_matrix())
        sizes.append((camera.width, camera.height))
        points = [model.points3D[point].xyz for point in _points_of(image, model)]
        if points:
            depths.append(np.stack(points) @ pose[2, :3] + pose[2, 3])
    if not names:
        raise InputError(f"{folder} has no posed picture")
    mean = float(np.concatenate(depths).mean()) if depths else float("nan")
    return ColmapCameras(tuple(names), np.stack(poses), np.stack(intrinsics), np.array(sizes), mean)
