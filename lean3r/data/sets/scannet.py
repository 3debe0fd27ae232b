"""ScanNet as its exporter of .sens files leaves it: indoor walks with a depth sensor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lean3r.data.sets.formats.files import image_size, read_depth_png, read_matrix
from lean3r.data.sets.scenes import Camera, FolderSet, Frame, folders, from_integer_centres, inverted, is_rotation, some
from lean3r.errors import InputError

_PARTS = ("color", "depth", "pose", "intrinsic")
_SPLITS = ("", "scans", "scans_test", "scans_train")
MILLIMETRES = 1000.0
_SENSOR = (1296, 968)


class ScanNet(FolderSet):
    """Walks of hundreds of frames, in metres. Frames whose tracking was lost (poses of -inf) are left out.

    Depth is looked up for every pixel of the picture by the two cameras' intrinsics. The files put the centre of the
    top-left pixel at (0, 0).
    """

    name = "scannet"
    title = "ScanNet"
    licence = "ScanNet terms of use (non-commercial); see its page"
    source = "http://www.scan-net.org, .sens files exported by its SensReader"
    layout = "[scans/]sceneXXXX_XX/ with color/N.jpg, depth/N.png, pose/N.txt, intrinsic/intrinsic_{color,depth}.txt"
    is_metric = True
    is_ordered = True

    @staticmethod
    def looks_like(root: Path) -> bool:
        """Whether there are folders called scene0000_00 (or of another number) with parts of this layout, or .sens."""
        return any(any((s / part).is_dir() for part in _PARTS[:3]) or any(s.glob("*.sens")) for s in _walks(root)[:50])

    @staticmethod
    def find_scenes(root: Path) -> list[str]:
        """Walks with all four parts."""
        return [s.relative_to(root).as_posix() for s in _walks(root) if all((s / part).is_dir() for part in _PARTS)]

    @staticmethod
    def problems(root: Path) -> list[str]:
        """Parts of walks that are missing, and frames without one of them."""
        found = []
        for walk in _walks(root):
            missing = [part for part in _PARTS if not (walk / part).is_dir()]
            if missing and any(walk.glob("*.sens")):
                found.append(f"{walk} holds a .sens file that was not exported: run ScanNet's SensReader on it")
            elif missing:
                found += [f"{walk / part} is missing" for part in missing]
            else:
                found += _incomplete(walk)
        return found or ([] if _walks(root) else [f"{root} holds no folder called sceneXXXX_XX"])

    def frames(self, scene: str) -> Sequence[Frame]:
        """Frames with picture, depth and a pose, by number."""
        folder, found = self.root / scene, []
        color = from_integer_centres(read_matrix(folder / "intrinsic" / "intrinsic_color.txt", 4, 4)[:3, :3])
        depth = from_integer_centres(read_matrix(folder / "intrinsic" / "intrinsic_depth.txt", 4, 4)[:3, :3])
        size = None
        for number in sorted(set.intersection(*_numbers(folder))):
            pose = read_matrix(folder / "pose" / f"{number}.txt", 4, 4)
            if not np.isfinite(pose).all():
                continue
            size = size or _nominal(color, image_size(folder / "color" / f"{number}.jpg"))
            cam_from_world = inverted(pose) if is_rotation(pose[:3, :3]) else pose  # the latter is refused when used
            camera = Camera(color, cam_from_world, *size)
            found.append(Frame(folder / "color" / f"{number}.jpg", camera, folder / "depth" / f"{number}.png", depth))
        if not found:
            raise InputError(f"{folder} has no frame with picture, depth and pose; expected {self.layout}")
        return found

    def read_depth(self, frame: Frame) -> np.ndarray:
        """Depth at the pixels of the picture, 0 where the sensor has none."""
        assert frame.depth is not None
        depth = read_depth_png(frame.depth, MILLIMETRES)
        camera = frame.camera
        return seen_through(depth, frame.extra, camera.intrinsics, camera.height, camera.width)


def seen_through(depth: np.ndarray, own: np.ndarray, other: np.ndarray, height: int, width: int) -> np.ndarray:
    """Depth [h, w] under intrinsics `own`, looked up at the pixels [height, width] of a camera with the same pose and
    intrinsics `other`: the nearest pixel, 0 beyond the map."""
    columns = (np.arange(width) + 0.5 - other[0, 2]) / other[0, 0] * own[0, 0] + own[0, 2]
    rows = (np.arange(height) + 0.5 - other[1, 2]) / other[1, 1] * own[1, 1] + own[1, 2]
    x, y = np.floor(columns).astype(np.int64), np.floor(rows).astype(np.int64)
    inside = ((y >= 0) & (y < depth.shape[0]))[:, None] & ((x >= 0) & (x < depth.shape[1]))
    found = depth[np.clip(y, 0, depth.shape[0] - 1)[:, None], np.clip(x, 0, depth.shape[1] - 1)]
    return np.where(inside, found, np.float32(0))


def _nominal(color: np.ndarray, size: tuple[int, int]) -> tuple[int, int]:
    """The size that the intrinsics are for: that of the picture, unless it was exported smaller than the sensor's."""
    return _SENSOR if 2 * color[0, 2] / size[0] > 1.5 else size


def _walks(root: Path) -> list[Path]:
    inside = [f for split in _SPLITS for f in folders(root / split)]
    return [f for f in inside if f.name.startswith("scene") and "_" in f.name]


def _numbers(walk: Path) -> tuple[set[int], set[int], set[int]]:
    kinds = (("color", ".jpg"), ("depth", ".png"), ("pose", ".txt"))
    a, b, c = ({int(p.stem) for p in (walk / part).glob(f"*{end}") if p.stem.isdigit()} for part, end in kinds)
    return a, b, c


def _incomplete(walk: Path) -> list[str]:
    numbers = _numbers(walk)
    wanted = set.union(*numbers)
    found = [
        f"{walk / part}: {len(wanted - own)} of {len(wanted)} frames are missing"
        for part, own in zip(_PARTS, numbers, strict=False)
        if wanted - own
    ]
    files = [walk / "intrinsic" / f"intrinsic_{kind}.txt" for kind in ("color", "depth")]
    found += [f"{file} is missing" for file in files if not file.is_file()]
    return found if wanted else [f"{walk} holds no frames: {some(_PARTS)} are empty"]
