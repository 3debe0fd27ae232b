"""ScanNet as exported from its .sens files: indoor walks with a depth sensor."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lean3r.data.sets.formats.files import image_size, read_depth_png, read_matrix
from lean3r.data.sets.scenes import (
    Camera,
    FolderSet,
    Frame,
    first_few,
    folders,
    from_integer_centres,
    invert,
    is_rotation,
)
from lean3r.errors import InputError

_SPLITS = ("", "scans", "scans_test", "scans_train")
MILLIMETRES = 1000.0
SENSOR = (1296, 968)  # pixels of the pictures in .sens files
_WALK = re.compile(r"scene\d+_\d+")


@dataclass(frozen=True, eq=False, kw_only=True)
class SensorFrame(Frame):
    """A view with the intrinsics [3, 3] of the depth sensor, in pixels of its maps."""

    sensor: np.ndarray


class ScanNet(FolderSet[SensorFrame]):
    """Walks of hundreds of frames, in metres. Frames where tracking was lost (poses of -inf) are skipped.

    Depth is sampled at each pixel of the picture by the intrinsics of both cameras. In the files, the centre of the
    top-left pixel is at (0, 0).
    """

    name = "scannet"
    title = "ScanNet"
    licence = "ScanNet terms of use (non-commercial); see its page"
    source = "http://www.scan-net.org, .sens files exported by its SensReader"
    layout = "[scans/]sceneXXXX_XX/ with color/N.jpg, depth/N.png, pose/N.txt, intrinsic/intrinsic_{color,depth}.txt"
    parts = ("color", "depth", "pose", "intrinsic")
    is_metric = True
    is_ordered = True

    @classmethod
    def places(cls, root: Path) -> list[Path]:
        """Folders with names like scene0000_00."""
        inside = [f for split in _SPLITS for f in folders(root / split)]
        return [f for f in inside if _WALK.match(f.name)]

    @classmethod
    def looks_like(cls, root: Path) -> bool:
        """Whether a folder of `places` has parts of this layout or a .sens file."""
        walks = cls.places(root)[:50]
        return any(any((s / part).is_dir() for part in cls.parts[:3]) or any(s.glob("*.sens")) for s in walks)

    @classmethod
    def missing(cls, place: Path) -> list[str]:
        """Sentences for missing parts, or for a .sens file that was not exported."""
        absent = super().missing(place)
        if absent and any(place.glob("*.sens")):
            return [f"{place} has a .sens file that was not exported: run ScanNet's SensReader on it"]
        return absent

    @classmethod
    def incomplete(cls, place: Path) -> list[str]:
        """Sentences for frames without picture, depth or pose, and for missing intrinsics."""
        numbers = _numbers(place)
        wanted = set.union(*numbers)
        problems = [
            f"{place / part}: {len(wanted - own)} of {len(wanted)} frames are missing"
            for part, own in zip(cls.parts, numbers, strict=False)
            if wanted - own
        ]
        files = [place / "intrinsic" / f"intrinsic_{kind}.txt" for kind in ("color", "depth")]
        problems += [f"{file} is missing" for file in files if not file.is_file()]
        return problems if wanted else [f"{place} has no frames: {first_few(cls.parts)} are empty"]

    def frames(self, scene: str) -> Sequence[SensorFrame]:
        """Frames with picture, depth and a pose, by number."""
        folder, frames = self.root / scene, []
        color = from_integer_centres(read_matrix(folder / "intrinsic" / "intrinsic_color.txt", 4, 4)[:3, :3])
        depth = from_integer_centres(read_matrix(folder / "intrinsic" / "intrinsic_depth.txt", 4, 4)[:3, :3])
        size = None
        for number in sorted(set.intersection(*_numbers(folder))):
            pose = read_matrix(folder / "pose" / f"{number}.txt", 4, 4)
            if not np.isfinite(pose).all():
                continue
            size = size or _intended_size(color, image_size(folder / "color" / f"{number}.jpg"))
            cam_from_world = (
                invert(pose) if is_rotation(pose[:3, :3]) else pose
            )  # an invalid pose is an error when it is used
            camera = Camera(color, cam_from_world, *size)
            files = folder / "color" / f"{number}.jpg", folder / "depth" / f"{number}.png"
            frames.append(SensorFrame(files[0], camera, files[1], sensor=depth))
        if not frames:
            raise InputError(f"{folder} has no frame with picture, depth and pose; expected {self.layout}")
        return frames

    def read_depth(self, frame: SensorFrame) -> np.ndarray:
        """Depth in metres at the pixels of the picture, 0 where the sensor has none."""
        assert frame.depth is not None
        depth = read_depth_png(frame.depth, MILLIMETRES)
        camera = frame.camera
        return sample_depth(depth, frame.sensor, camera.intrinsics, camera.height, camera.width)


def sample_depth(depth: np.ndarray, own: np.ndarray, other: np.ndarray, height: int, width: int) -> np.ndarray:
    """Sample depth [h, w] with intrinsics `own` at the pixels [height, width] of a camera with the same pose and
    intrinsics `other`: the nearest pixel, 0 outside the map."""
    columns = (np.arange(width) + 0.5 - other[0, 2]) / other[0, 0] * own[0, 0] + own[0, 2]
    rows = (np.arange(height) + 0.5 - other[1, 2]) / other[1, 1] * own[1, 1] + own[1, 2]
    x, y = np.floor(columns).astype(np.int64), np.floor(rows).astype(np.int64)
    inside = ((y >= 0) & (y < depth.shape[0]))[:, None] & ((x >= 0) & (x < depth.shape[1]))
    values = depth[np.clip(y, 0, depth.shape[0] - 1)[:, None], np.clip(x, 0, depth.shape[1] - 1)]
    return np.where(inside, values, np.float32(0))


def _intended_size(color: np.ndarray, size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) that the intrinsics are for: the picture's, or the sensor's if the picture was scaled down."""
    # The files do not say which, but the principal point is near the middle of the size that is meant.
    return min(size, SENSOR, key=lambda meant: abs(2 * color[0, 2] / meant[0] - 1))


def _numbers(walk: Path) -> tuple[set[int], set[int], set[int]]:
    kinds = (("color", ".jpg"), ("depth", ".png"), ("pose", ".txt"))
    a, b, c = ({int(p.stem) for p in (walk / part).glob(f"*{end}") if p.stem.isdigit()} for part, end in kinds)
    return a, b, c
