"""NRGBD, the synthetic rooms of Neural RGB-D Surface Reconstruction: rendered walks with exact depth and meshes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from lean3r.data.sets.formats.files import image_size, naming, read_depth_png, read_text
from lean3r.data.sets.formats.ply import read_surface
from lean3r.data.sets.scenes import Camera, FolderSet, Frame, folders, invert, pinhole
from lean3r.errors import InputError, UsageError
from lean3r.inputs.cameras import OPENCV_FROM_OPENGL

MILLIMETRES = 1000.0
FARTHEST = 10.0  # metres: what Spann3R, CUT3R and Pi3 count as depth
DEPTHS = ("depth", "depth_filtered", "depth_with_noise")
MESHES = ("gt_mesh_culled.ply", "gt_mesh.ply")  # the first is made for evaluations: only what the views see


class Nrgbd(FolderSet[Frame]):
    """Walks of some thousand frames of 640 x 480, in metres. Frames without a pose (NaN) are skipped.

    `depth` is the folder to read: depth (exact; not beyond 10 metres, as in the field's evaluations),
    depth_with_noise, or depth_filtered, the latter smoothed. The principal point is the middle of the picture.
    """

    name = "nrgbd"
    title = "NRGBD"
    licence = "CC BY or CC0, by scene; see the set's page"
    source = "neural_rgbd_data.zip and meshes.zip of https://github.com/dazinovic/neural-rgbd-surface-reconstruction"
    layout = "SCENE/ with focal.txt, poses.txt, images/img*.png, depth/depth*.png (and gt_mesh.ply)"
    parts = ("focal.txt", "poses.txt", "images")
    is_metric = True
    is_ordered = True

    def __init__(self, root: str | Path, depth: str = "depth", scenes: Sequence[str] | None = None) -> None:
        if depth not in DEPTHS:
            raise UsageError(f"depth is {depth!r}; NRGBD has {', '.join(DEPTHS)}")
        self.depth = depth
        super().__init__(root, scenes)

    @classmethod
    def places(cls, root: Path) -> Iterable[Path]:
        """Folders with a focal length or poses."""
        return (folder for folder in folders(root) if any((folder / part).is_file() for part in cls.parts[:2]))

    @classmethod
    def missing(cls, place: Path) -> list[str]:
        """Sentences for missing parts; any folder of depth will do."""
        has_depth = any((place / name).is_dir() for name in DEPTHS)
        return super().missing(place) + ([] if has_depth else [f"{place / DEPTHS[0]} is missing"])

    @classmethod
    def incomplete(cls, place: Path) -> list[str]:
        """Sentences for poses without pictures or depth, and for pictures without poses."""
        try:
            poses = set(range(len(read_poses(place / "poses.txt"))))
        except InputError as error:
            return [str(error)]
        pictures = set(_numbered(place / "images", "img"))
        there = [name for name in DEPTHS if (place / name).is_dir()]
        files = [
            (place / "images", pictures),
            *((place / name, set(_numbered(place / name, "depth"))) for name in there),
        ]
        problems = [f"{len(poses - own)} of {len(poses)} files of {f} are missing" for f, own in files if poses - own]
        more = len(pictures - poses)
        return problems + ([f"{more} pictures of {place} have no pose in poses.txt"] if more else [])

    def frames(self, scene: str) -> Sequence[Frame]:
        """Frames with picture, depth and a pose, by number."""
        place = self.root / scene
        poses, pictures = read_poses(place / "poses.txt"), _numbered(place / "images", "img")
        maps = _numbered(place / self.depth, "depth")
        known = [n for n in sorted(pictures.keys() & maps.keys()) if n < len(poses) and np.isfinite(poses[n]).all()]
        if not known:
            raise InputError(f"{place} has no frame with picture, {self.depth} and pose; expected {self.layout}")
        width, height = image_size(maps[known[0]])  # the focal length is for the depth
        with naming(place / "focal.txt"):
            focal = float(read_text(place / "focal.txt").split()[0])
        k = pinhole(focal, focal, width / 2, height / 2)
        return [
            Frame(pictures[n], Camera(k, invert(poses[n] @ OPENCV_FROM_OPENGL), width, height), maps[n]) for n in known
        ]

    def read_depth(self, frame: Frame) -> np.ndarray:
        """Depth in metres, 0 beyond 10 metres; files have millimetres."""
        assert frame.depth is not None
        depth = read_depth_png(frame.depth, MILLIMETRES)
        return np.where(depth <= FARTHEST, depth, np.float32(0))

    def cloud(self, scene: int) -> np.ndarray | None:
        """Points of the mesh that the pictures are rendered from; without what no view sees, if that file is there."""
        paths = [self.root / self.ids[scene] / name for name in MESHES]
        return next((read_surface(path) for path in paths if path.is_file()), None)


def read_poses(path: Path) -> np.ndarray:
    """world_from_cam [N, 4, 4] in OpenGL's camera axes from 4 N lines of 4 numbers; NaN where tracking was lost."""
    with naming(path):
        return np.array([float(word) for word in read_text(path).split()]).reshape(-1, 4, 4)


def _numbered(folder: Path, prefix: str) -> dict[int, Path]:
    """{number: file} of the files like img12.png in a folder."""
    matches = ((re.fullmatch(rf"{prefix}(\d+)", path.stem), path) for path in folder.glob(f"{prefix}*.png"))
    return {int(match[1]): path for match, path in matches if match}
