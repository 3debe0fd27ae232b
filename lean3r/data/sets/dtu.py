"""DTU as prepared by MVSNet: objects on a table, photographed by a robot arm, with depth from structured light."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lean3r.data.sets.formats.files import image_size, read_pfm
from lean3r.data.sets.formats.mvsnet import MvsnetSet, NumberedFrame, read_camera
from lean3r.data.sets.formats.ply import read_ply
from lean3r.data.sets.scenes import Camera, folders, from_integer_centres, rescale
from lean3r.errors import InputError

FULL, SMALL = (1600, 1200), (640, 512)
_CROP = (80, 44)  # MVSNet crops pictures of half size, 800 x 600, to SMALL
METRES = 1e-3


class DTU(MvsnetSet):
    """Scans of 49 views of 640 x 512 pixels (or 1600 x 1200), in metres; files have millimetres.

    `light` (0 to 6) is the illumination. Depth is read from Depths_raw/ (full size) if it exists, otherwise from
    Depths/, whose maps have every fourth pixel of a 640 x 512 picture; depth of the other pixels is then unknown.
    """

    name = "dtu"
    title = "DTU"
    licence = "see its page"
    source = "http://roboimagedata.compute.dtu.dk (prepared by https://github.com/YoYo000/MVSNet)"
    layout = "Cameras/*_cam.txt with pair.txt, Rectified/SCAN_train/rect_*.png, Depths/SCAN_train/*.pfm or Depths_raw/"
    is_metric = True

    def __init__(self, root: str | Path, light: int = 3, scenes: Sequence[str] | None = None) -> None:
        self.light = light
        super().__init__(root, scenes)

    @classmethod
    def looks_like(cls, root: Path) -> bool:
        """Whether there is a Rectified/, or a Cameras/ with files of MVSNet but no pictures of DTU64."""
        cameras = any((root / "Cameras").glob("*_cam.txt")) and not any(root.glob("scan*/image"))
        return cameras or (root / "Rectified").is_dir()

    @classmethod
    def find_scenes(cls, root: Path) -> list[str]:
        """Scans with pictures and depth; none if there are no cameras."""
        if not _camera_folders(root):
            return []
        return [f.name for f in folders(root / "Rectified") if _depth_folder(root, f.name) is not None]

    @classmethod
    def problems(cls, root: Path) -> list[str]:
        """Sentences for missing cameras, pairs, pictures and depth."""
        problems = [] if _camera_folders(root) else [f"{root / 'Cameras'} has no *_cam.txt"]
        problems += [] if (root / "Cameras" / "pair.txt").is_file() else [f"{root / 'Cameras' / 'pair.txt'} is missing"]
        scans = folders(root / "Rectified")
        problems += [] if scans else [f"{root / 'Rectified'} has no scan"]
        for scan in scans:
            depth = _depth_folder(root, scan.name)
            if depth is None:
                problems.append(f"{scan.name} has no depth in Depths/ or Depths_raw/")
                continue
            pictures = {p.name.split("_")[1] for p in scan.glob("rect_*_r5000.png")}
            maps = {f"{int(p.stem.split('_')[-1]) + 1:03}" for p in depth.glob("depth_map_*.pfm")}
            if pictures != maps or not pictures:
                problems.append(f"{scan} has pictures of {len(pictures)} views, but {depth} has depth of {len(maps)}")
                continue
            numbers = [int(n) for n in pictures if n.isdigit()]
            absent = set(range(min(numbers), max(numbers) + 1)) - set(numbers) if numbers else set()
            problems += [f"{len(absent)} views of {scan} have no pictures, e.g. view {min(absent)}"] if absent else []
            lost = [n for n in numbers if not any((f / f"{n - 1:08}_cam.txt").is_file() for f in _camera_folders(root))]
            problems += [f"{len(lost)} of {len(numbers)} views of {scan} have no camera"] if lost else []
        return problems

    def frames(self, scene: str) -> Sequence[NumberedFrame]:
        """Views with a picture in this light, a camera and depth, by number."""
        depth = _depth_folder(self.root, scene)
        assert depth is not None
        frames, size = [], None
        for image in sorted((self.root / "Rectified" / scene).glob(f"rect_*_{self.light}_r5000.png")):
            number = int(image.name.split("_")[1]) - 1  # picture numbers start at 1, those of cameras and depth at 0
            path = depth / f"depth_map_{number:04}.pfm"
            if path.is_file():
                size = size or image_size(image)
                frames.append(NumberedFrame(image, self._camera(number, size), path, number=number))
        if not frames:
            raise InputError(f"{scene} has no view in light {self.light} with depth; expected {self.layout}")
        return frames

    def _camera(self, number: int, size: tuple[int, int]) -> Camera:
        name = f"{number:08}_cam.txt"
        full, small = self.root / "Cameras" / name, self.root / "Cameras" / "train" / name
        if size not in (FULL, SMALL):
            raise InputError(f"pictures have {size[0]} x {size[1]} pixels; DTU has {FULL} or {SMALL}")
        if size == SMALL and small.is_file():
            # Its intrinsics are for pictures of every fourth pixel.
            k, pose = read_camera(small)
            k = from_integer_centres(rescale(_to_integer_centres(k), 4, 4))
        else:
            k, pose = read_camera(full)
            if size == SMALL:
                k = rescale(_to_integer_centres(k), 0.5, 0.5)
                k[:2, 2] -= _CROP
                k = from_integer_centres(k)
        pose = pose.copy()
        pose[:3, 3] *= METRES
        return Camera(k, pose, *size)

    def read_depth(self, frame: NumberedFrame) -> np.ndarray:
        """Depth in metres at the size of the picture, 0 where the scan has none."""
        assert frame.depth is not None
        depth, size = read_pfm(frame.depth) * np.float32(METRES), (frame.camera.width, frame.camera.height)
        if depth.shape[::-1] == size:
            return depth
        if size == SMALL and depth.shape[::-1] == FULL:
            x, y = _CROP
            return depth[::2, ::2][y : y + SMALL[1], x : x + SMALL[0]]
        if size == SMALL and depth.shape[::-1] == (SMALL[0] // 4, SMALL[1] // 4):
            spread = np.zeros(SMALL[::-1], np.float32)
            spread[::4, ::4] = depth
            return spread
        raise InputError(
            f"{frame.depth} has {depth.shape[1]} x {depth.shape[0]} pixels, which do not match pictures of {size}"
        )

    def cloud(self, scene: int) -> np.ndarray | None:
        """The structured-light scan."""
        return read_scan(self.root, self.ids[scene])

    def pairs(self, scene: str) -> Path:
        """The pair.txt of all scans."""
        return self.root / "Cameras" / "pair.txt"


def read_scan(root: Path, scan: str) -> np.ndarray | None:
    """Points [N, 3] in metres of Points/stl/stlXXX_total.ply, for a scan named scanX or scanX_train; None without."""
    number = scan.removeprefix("scan").partition("_")[0]
    path = root / "Points" / "stl" / f"stl{number:0>3}_total.ply"
    return METRES * read_ply(path)[0] if path.is_file() else None


def _to_integer_centres(intrinsics: np.ndarray) -> np.ndarray:
    """Intrinsics for integer pixel centres, as in the files: keeping every other pixel halves all values."""
    moved = intrinsics.copy()
    moved[:2, 2] -= 0.5
    return moved


def _camera_folders(root: Path) -> list[Path]:
    return [f for f in (root / "Cameras", root / "Cameras" / "train") if any(f.glob("*_cam.txt"))]


def _depth_folder(root: Path, scan: str) -> Path | None:
    bare = scan.removesuffix("_train")
    places = [root / kind / name for kind in ("Depths_raw", "Depths") for name in (scan, bare, f"{bare}_train")]
    return next((p for p in places if any(p.glob("depth_map_*.pfm"))), None)
