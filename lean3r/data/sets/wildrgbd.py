"""WildRGB-D: turns around objects, filmed with a phone's colour and depth cameras.

K is written column by column, poses are world_from_cam in OpenCV's axes, depth is in millimetres (README and
wildrgbd_generate_point_cloud.py of wildrgbd/wildrgbd). Principal points are ARKit's, which count from the corner.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lean3r.data.sets.formats.files import read_depth_png, read_text
from lean3r.data.sets.scenes import Camera, FolderSet, Frame, folders, inverted, nearest, pinhole
from lean3r.errors import InputError
from lean3r.json_text import parse_json

MILLIMETRES = 1000.0
_PARTS = ("rgb", "depth", "metadata", "cam_poses.txt")


class WildRgbd(FolderSet):
    """One scene a video ("apple/scenes/scene_000"). `foreground` keeps the depth of the object alone, by its masks."""

    name = "wildrgbd"
    title = "WildRGB-D"
    licence = "MIT (the set's repository wildrgbd/wildrgbd)"
    source = "WildRGB-D: download.py of the repository wildrgbd/wildrgbd"
    layout = "<category>/scenes/scene_000/ with rgb/, depth/, masks/, metadata and cam_poses.txt"
    is_metric = True
    is_ordered = True

    def __init__(self, root: str | Path, foreground: bool = False, scenes: Sequence[str] | None = None) -> None:
        self.foreground = foreground
        super().__init__(root, scenes)

    @staticmethod
    def looks_like(root: Path) -> bool:
        """Whether a folder in the root has a folder `scenes` with one that has rgb/, metadata or cam_poses.txt."""
        return bool(_videos(root))

    @staticmethod
    def find_scenes(root: Path) -> list[str]:
        """Videos that are whole."""
        return [folder.relative_to(root).as_posix() for folder in _videos(root) if not _missing(folder)]

    @staticmethod
    def problems(root: Path) -> list[str]:
        """Videos without pictures, depth or cameras."""
        videos = _videos(root)
        if not videos:
            return [f"{root} holds no WildRGB-D video"]
        return [what for folder in videos for what in _missing(folder) or _incomplete(folder)]

    def frames(self, scene: str) -> Sequence[Frame]:
        """The frames that have a pose, in order of time."""
        folder = self.root / scene
        try:
            content = parse_json(read_text(folder / "metadata"))
            # K is stored column by column, and counts from the picture's corner, as ARKit does.
            k = np.array(content["K"], dtype=np.float64).reshape(3, 3).T
            width, height = int(content["w"]), int(content["h"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folder / 'metadata'} is no JSON with w, h and K ({error})") from error
        found = []
        for line in read_text(folder / "cam_poses.txt").splitlines():
            numbers = [float(word) for word in line.split()]
            if len(numbers) != 17:
                raise InputError(f"{folder / 'cam_poses.txt'} has a line of {len(numbers)} numbers; expected 17")
            # Lines are world_from_cam with OpenCV's axes, in metres.
            pose = inverted(np.array(numbers[1:]).reshape(4, 4))
            name = f"{int(numbers[0]):05}.png"
            camera = Camera(pinhole(k[0, 0], k[1, 1], k[0, 2], k[1, 2]), pose, width, height)
            found.append(Frame(folder / "rgb" / name, camera, folder / "depth" / name, folder / "masks" / name))
        return found

    def read_depth(self, frame: Frame) -> np.ndarray:
        """Metres from millimetres, with `foreground` 0 outside the mask."""
        assert frame.depth is not None
        depth = read_depth_png(frame.depth, MILLIMETRES)
        if self.foreground:
            depth = np.where(nearest(read_depth_png(frame.extra, 1), *depth.shape) > 0, depth, np.float32(0))
        return depth


def _videos(root: Path) -> list[Path]:
    scenes = [scene for category in folders(root) for scene in folders(category / "scenes")]
    return [scene for scene in scenes if any((scene / part).exists() for part in _PARTS)]


def _missing(folder: Path) -> list[str]:
    absent = [folder / part for part in _PARTS if not (folder / part).exists()]
    return [f"{path} is missing" for path in absent]


def _incomplete(folder: Path) -> list[str]:
    pictures, depth = ({path.name for path in (folder / part).glob("*.png")} for part in ("rgb", "depth"))
    if len(pictures) < 2:
        return [f"{folder} has {len(pictures)} pictures; at least two views make a scene"]
    without = sorted(pictures - depth)
    return (
        [f"{len(without)} of {len(pictures)} pictures of {folder} have no depth, {without[0]} first"] if without else []
    )
