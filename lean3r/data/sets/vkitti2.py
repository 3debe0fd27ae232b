"""Virtual KITTI 2: drives through rendered towns, ten renderings of each, with exact cameras and depth.

Rows of extrinsic.txt are cam_from_world in OpenCV's axes and depth is in centimetres: VGGT's training code
(facebookresearch/vggt, training/data/datasets/vkitti.py) uses both in this way. Depth is z-depth, and the sky is at the
far plane of 655.35 m, the largest value of 16 bits (README of the depth of Virtual KITTI 1.3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lean3r.data.sets.formats.files import image_size, read_depth_png, read_text
from lean3r.data.sets.scenes import Camera, FolderSet, Frame, folders, from_integer_centres, pinhole
from lean3r.errors import InputError

CENTIMETRES = 100.0
SKY = 655.35  # the largest value of 16 bits, in metres


class VirtualKitti2(FolderSet[Frame]):
    """One scene per drive, rendering and camera ("Scene01/clone/Camera_0"). Cars move, so only static parts agree
    across views. Depth is unknown at the largest value of the format (sky)."""

    name = "vkitti2"
    title = "Virtual KITTI 2"
    licence = "CC BY-NC-SA 3.0 as far as known; see the set's page: Virtual KITTI 2, Naver Labs Europe"
    source = "Virtual KITTI 2, Naver Labs Europe: the archives rgb, depth and textgt of version 2.0.3"
    layout = (
        "Scene01/clone/frames/{rgb,depth}/Camera_0/ and Scene01/clone/{intrinsic,extrinsic}.txt: the archives rgb, "
        "depth and textgt unpacked into one folder, or each into its own (vkitti_2.0.3_rgb/, ...)"
    )
    is_metric = True
    is_ordered = True

    @classmethod
    def looks_like(cls, root: Path) -> bool:
        """Whether there is a folder like Scene01 with pictures or cameras of a rendering."""
        return bool(_drives(root))

    @classmethod
    def find_scenes(cls, root: Path) -> list[str]:
        """Cameras of renderings with pictures, depth and both text files."""
        return [s for drive in _drives(root) for s in _cameras(root, drive) if not _missing(root, s)]

    @classmethod
    def problems(cls, root: Path) -> list[str]:
        """Sentences for missing parts of the archives, for pictures without depth, and depth without pictures."""
        drives = _drives(root)
        if not drives:
            return [f"{root} has no Virtual KITTI 2 drive"]
        problems = []
        for drive in drives:
            cameras = _cameras(root, drive)
            problems += (
                [] if cameras else [f"{_part(root, 'rgb', drive) / 'frames/rgb'} is missing: unpack the archive rgb"]
            )
            problems += [what for scene in cameras for what in _missing(root, scene) or _incomplete(root, scene)]
        return problems

    def frames(self, scene: str) -> Sequence[Frame]:
        """The frames of one camera, in time order."""
        rgb, depth, text, camera = _parts(self.root, scene)
        lenses, poses = _rows(text / "intrinsic.txt", camera, 4), _rows(text / "extrinsic.txt", camera, 16)
        pictures = sorted(rgb.glob("rgb_*.jpg"))
        if not pictures:
            raise InputError(f"{rgb} has no picture rgb_*.jpg; unpack the archive rgb there")
        width, height = image_size(pictures[0])
        frames = []
        for picture in pictures:
            number = picture.stem.removeprefix("rgb_")
            if int(number) not in lenses or int(number) not in poses:
                raise InputError(f"{text} has no camera for {picture.name}; expected one row in both text files")
            # fx, fy, cx, cy with the centre of the first pixel at (0, 0): cx is 620.5 for 1242 pixels. Poses are
            # cam_from_world in OpenCV's axes, in metres.
            intrinsics = from_integer_centres(pinhole(*lenses[int(number)]))
            posed = Camera(intrinsics, poses[int(number)].reshape(4, 4), width, height)
            frames.append(Frame(picture, posed, depth / f"depth_{number}.png"))
        return frames

    def read_depth(self, frame: Frame) -> np.ndarray:
        """Depth in metres, 0 in the sky; files have centimetres."""
        assert frame.depth is not None
        depth = read_depth_png(frame.depth, CENTIMETRES)
        return np.where(depth < np.float32(SKY), depth, np.float32(0))


def _part(root: Path, archive: str, inner: str) -> Path:
    """A folder of an archive that was unpacked into the root or into a folder with the archive's name."""
    own = root / f"vkitti_2.0.3_{archive}"
    return (own if own.is_dir() else root) / inner


def _parts(root: Path, scene: str) -> tuple[Path, Path, Path, int]:
    """Folders of pictures, depth and text files, and the number of the camera."""
    drive, _, camera = scene.rpartition("/")
    rgb, depth = (_part(root, kind, drive) / "frames" / kind / camera for kind in ("rgb", "depth"))
    return rgb, depth, _part(root, "textgt", drive), int(camera.rsplit("_", 1)[1])


def _drives(root: Path) -> list[str]:
    """Names of drives, like Scene01/clone."""
    names = set()
    for base in {_part(root, archive, ".") for archive in ("rgb", "depth", "textgt")}:
        scenes = [folder for folder in folders(base) if folder.name.startswith("Scene")]
        drives = [drive for scene in scenes for drive in folders(scene)]
        parts = ("frames", "intrinsic.txt", "extrinsic.txt")
        names |= {f"{d.parent.name}/{d.name}" for d in drives if any((d / part).exists() for part in parts)}
    return sorted(names)


def _cameras(root: Path, drive: str) -> list[str]:
    cameras = folders(_part(root, "rgb", drive) / "frames" / "rgb")
    return [f"{drive}/{folder.name}" for folder in cameras if folder.name.startswith("Camera_")]


def _missing(root: Path, scene: str) -> list[str]:
    _, depth, text, _ = _parts(root, scene)
    absent = [text / name for name in ("intrinsic.txt", "extrinsic.txt") if not (text / name).is_file()]
    return [f"{path} is missing" for path in (*absent, *([] if depth.is_dir() else [depth]))]


def _incomplete(root: Path, scene: str) -> list[str]:
    rgb, depth, _, _ = _parts(root, scene)
    pictures = {path.stem.removeprefix("rgb_") for path in rgb.glob("rgb_*.jpg")}
    maps = {path.stem.removeprefix("depth_") for path in depth.glob("depth_*.png")}
    if len(pictures) < 2:
        return [f"{rgb} has {len(pictures)} pictures; a scene needs two"]
    numbers = pictures | maps
    return [
        f"{len(numbers - own)} of {len(numbers)} {what} of {folder} are missing, e.g. {min(numbers - own)}"
        for what, folder, own in (("pictures", rgb, pictures), ("maps", depth, maps))
        if numbers - own
    ]


def _rows(path: Path, camera: int, count: int) -> dict[int, np.ndarray]:
    """{frame: numbers} of one camera; rows are frame, camera, numbers, below a header line."""
    rows = {}
    for line in read_text(path).splitlines()[1:]:
        words = line.split()
        try:
            if words and int(words[1]) == camera:
                rows[int(words[0])] = np.array([float(word) for word in words[2 : 2 + count]]).reshape(count)
        except (ValueError, IndexError) as error:
            raise InputError(
                f"{path} has an invalid line: {line!r}; expected frame, camera and {count} numbers"
            ) from error
    return rows
