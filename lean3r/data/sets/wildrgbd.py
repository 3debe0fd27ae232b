"""WildRGB-D: videos around objects, filmed with the colour and depth cameras of a phone.

K is stored column by column, poses are world_from_cam in OpenCV's axes, depth is in millimetres (README and
wildrgbd_generate_point_cloud.py of wildrgbd/wildrgbd). Principal points are relative to the corner, as in ARKit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lean3r.data.sets.formats.files import read_depth_png, read_text
from lean3r.data.sets.formats.maps import nearest
from lean3r.data.sets.scenes import Camera, FolderSet, Frame, folders, invert, pinhole
from lean3r.errors import InputError
from lean3r.json_text import parse_json

MILLIMETRES = 1000.0


@dataclass(frozen=True, eq=False, kw_only=True)
class ObjectFrame(Frame):
    """A view with the mask of its object."""

    mask: Path


class WildRgbd(FolderSet[ObjectFrame]):
    """One scene per video ("apple/scenes/scene_000"). With `foreground`, only the object has depth, by its masks."""

    name = "wildrgbd"
    title = "WildRGB-D"
    licence = "MIT (the set's repository wildrgbd/wildrgbd)"
    source = "WildRGB-D: download.py of the repository wildrgbd/wildrgbd"
    layout = "<category>/scenes/scene_000/ with rgb/, depth/, masks/, metadata and cam_poses.txt"
    parts = ("rgb", "depth", "metadata", "cam_poses.txt")
    is_metric = True
    is_ordered = True

    def __init__(self, root: str | Path, foreground: bool = False, scenes: Sequence[str] | None = None) -> None:
        self.foreground = foreground
        super().__init__(root, scenes)

    @classmethod
    def places(cls, root: Path) -> list[Path]:
        """Videos below scenes/ of each category, with at least one part."""
        return cls.with_any_part(video for category in folders(root) for video in folders(category / "scenes"))

    @classmethod
    def incomplete(cls, place: Path) -> list[str]:
        """A sentence if there are fewer than two pictures, or pictures without depth."""
        pictures, depth = ({path.name for path in (place / part).glob("*.png")} for part in cls.parts[:2])
        if len(pictures) < 2:
            return [f"{place} has {len(pictures)} pictures; a scene needs two"]
        without = sorted(pictures - depth)
        count = f"{len(without)} of {len(pictures)} pictures"
        return [f"{count} of {place} have no depth, e.g. {without[0]}"] if without else []

    def frames(self, scene: str) -> Sequence[ObjectFrame]:
        """The frames with a pose, in time order."""
        folder = self.root / scene
        try:
            content = parse_json(read_text(folder / "metadata"))
            # K is stored column by column; the principal point is relative to the corner, as in ARKit.
            k = np.array(content["K"], dtype=np.float64).reshape(3, 3).T
            width, height = int(content["w"]), int(content["h"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folder / 'metadata'} is not JSON with w, h and K ({error})") from error
        frames = []
        for line in read_text(folder / "cam_poses.txt").splitlines():
            numbers = [float(word) for word in line.split()]
            if len(numbers) != 17:
                raise InputError(f"{folder / 'cam_poses.txt'} has a line with {len(numbers)} numbers; expected 17")
            # Lines are world_from_cam in OpenCV's axes, in metres.
            pose = invert(np.array(numbers[1:]).reshape(4, 4))
            name = f"{int(numbers[0]):05}.png"
            camera = Camera(pinhole(k[0, 0], k[1, 1], k[0, 2], k[1, 2]), pose, width, height)
            frames.append(
                ObjectFrame(folder / "rgb" / name, camera, folder / "depth" / name, mask=folder / "masks" / name)
            )
        return frames

    def read_depth(self, frame: ObjectFrame) -> np.ndarray:
        """Depth in metres, 0 outside the mask if `foreground`; files have millimetres."""
        assert frame.depth is not None
        depth = read_depth_png(frame.depth, MILLIMETRES)
        if self.foreground:
            depth = np.where(nearest(read_depth_png(frame.mask, 1), *depth.shape) > 0, depth, np.float32(0))
        return depth
