"""DTU64: DTU's pictures in the layout of radiance field papers, with MVSNet's cameras and without depth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from lean3r.data.sets.dtu import METRES, read_scan
from lean3r.data.sets.formats.files import image_size
from lean3r.data.sets.formats.mvsnet import NumberedFrame, read_camera
from lean3r.data.sets.scenes import Camera, FolderSet, folders
from lean3r.errors import InputError


class Dtu64(FolderSet[NumberedFrame]):
    """Scans of 49 or 64 views of 1600 x 1200 pixels, in metres; files have millimetres."""

    name = "dtu64"
    title = "DTU64"
    licence = "see its page"
    source = "http://roboimagedata.compute.dtu.dk (with MVSNet's Cameras/)"
    layout = "Cameras/*_cam.txt, scan*/image/*.png"
    parts = ("image",)
    is_metric = True
    has_depth = False

    @classmethod
    def places(cls, root: Path) -> Iterable[Path]:
        """Folders named scan... with pictures."""
        return (folder for folder in folders(root) if folder.name.startswith("scan") and (folder / "image").is_dir())

    @classmethod
    def incomplete(cls, place: Path) -> list[str]:
        """Sentences for pictures without a camera."""
        lost = [n for n in _numbers(place) if not _camera(place.parent, n).is_file()]
        return [f"{len(lost)} views of {place} have no camera, e.g. view {lost[0]}"] if lost else []

    def frames(self, scene: str) -> Sequence[NumberedFrame]:
        """Views with picture and camera, by number."""
        folder, frames, size = self.root / scene, [], None
        for number in _numbers(folder):
            if not _camera(self.root, number).is_file():
                continue
            image = folder / "image" / f"{number:06}.png"
            size = size or image_size(image)
            k, pose = read_camera(_camera(self.root, number))
            pose = np.array(pose)
            pose[:3, 3] *= METRES
            frames.append(NumberedFrame(image, Camera(k, pose, *size), number=number))
        if not frames:
            raise InputError(f"{folder} has no view with picture and camera; expected {self.layout}")
        return frames

    def cloud(self, scene: int) -> np.ndarray | None:
        """The structured-light scan."""
        return read_scan(self.root, self.ids[scene])


def _numbers(scan: Path) -> list[int]:
    return sorted(int(p.stem) for p in (scan / "image").glob("*.png") if p.stem.isdigit() and len(p.stem) == 6)


def _camera(root: Path, number: int) -> Path:
    return root / "Cameras" / f"{number:08}_cam.txt"
