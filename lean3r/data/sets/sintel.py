"""MPI Sintel: scenes of an animated film, each in two renderings, with exact cameras and depth.

A .cam file has M [3, 3] and N [3, 4] = cam_from_world in OpenCV's axes, a .dpt file z-depth (sdk/python/sintel_io.py of
the depth archive). M's principal point is the middle between the centres of the outermost pixels, which count from 0.
The unit is that of the film's scene files.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lean3r.data.sets.formats.files import image_size, naming
from lean3r.data.sets.scenes import Camera, FolderSet, Frame, folders, from_integer_centres
from lean3r.errors import InputError

RENDERINGS = ("final", "clean")
TAG = 202021.25  # of all files of the set, float32


class Sintel(FolderSet[Frame]):
    """One scene per shot and rendering ("training/final/alley_2"); papers score `final`. Figures move, so only static
    parts agree across views."""

    name = "sintel"
    title = "MPI Sintel"
    licence = "see the set's page: MPI Sintel, Max Planck Institute for Intelligent Systems"
    source = "http://sintel.is.tue.mpg.de: MPI-Sintel-training_images.zip, MPI-Sintel-depth-training-20150305.zip"
    layout = "training/{final,clean}/SHOT/*.png, training/camdata_left/SHOT/*.cam, training/depth/SHOT/*.dpt"
    is_ordered = True

    @classmethod
    def places(cls, root: Path) -> list[Path]:
        """All shots of the renderings that are there; of `final` if there are only cameras or depth."""
        training = root / "training"
        known = {folder.name for kind in ("camdata_left", "depth") for folder in folders(training / kind)}
        there = [training / rendering for rendering in RENDERINGS if (training / rendering).is_dir()]
        return [
            rendering / shot
            for rendering in there or [training / "final"]
            for shot in sorted(known | {folder.name for folder in folders(rendering)})
        ]

    @classmethod
    def missing(cls, place: Path) -> list[str]:
        """Sentences for missing pictures, cameras or depth of a shot."""
        return [f"{folder} is missing" for folder in _folders(place) if not folder.is_dir()]

    @classmethod
    def incomplete(cls, place: Path) -> list[str]:
        """Sentences for pictures, cameras and depth that are missing, and for fewer than two views."""
        stems = {folder: _stems(folder) for folder in _folders(place)}
        wanted, both = set.union(*stems.values()), set.intersection(*stems.values())
        problems = [] if len(both) > 1 else [f"{place} has {len(both)} views with camera and depth; a scene needs two"]
        for folder, own in stems.items():
            absent = sorted(wanted - own)
            if absent:
                problems.append(f"{len(absent)} of {len(wanted)} files of {folder} are missing, e.g. {absent[0]}")
        return problems

    def frames(self, scene: str) -> Sequence[Frame]:
        """The pictures with camera and depth, in order; poses that are not finite are left out."""
        images, cameras, depth = _folders(self.root / scene)
        frames, size = [], None
        for stem in sorted(_stems(images) & _stems(cameras) & _stems(depth)):
            image = images / f"{stem}.png"
            m, n = read_cam(cameras / f"{stem}.cam")
            if np.isfinite(n).all():
                size = size or image_size(image)
                pose = np.vstack([n, [0.0, 0.0, 0.0, 1.0]])
                frames.append(Frame(image, Camera(from_integer_centres(m), pose, *size), depth / f"{stem}.dpt"))
        if not frames:
            raise InputError(f"{images} has no picture with camera and depth; expected {self.layout}")
        return frames

    def read_depth(self, frame: Frame) -> np.ndarray:
        """[H, W] float32, in the unit of the poses."""
        assert frame.depth is not None
        return read_dpt(frame.depth)


def read_cam(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """M [3, 3] and N [3, 4] float64 of a .cam file."""
    with naming(path):
        values = np.frombuffer(_content(path), "<f8")
        return values[:9].reshape(3, 3), values[9:21].reshape(3, 4)


def read_dpt(path: Path) -> np.ndarray:
    """Depth [H, W] float32 of a .dpt file."""
    with naming(path):
        content = _content(path)
        width, height = struct.unpack("<ii", content[:8])
        if min(width, height) < 1:
            raise ValueError(f"it states {width} x {height} pixels")
        return np.frombuffer(content[8:], "<f4").reshape(height, width).astype(np.float32)


def _content(path: Path) -> bytes:
    """What follows the tag; ValueError without it."""
    content = path.read_bytes()
    if content[:4] != struct.pack("<f", TAG):
        raise ValueError(f"it does not begin with the tag {TAG}")
    return content[4:]


def _folders(place: Path) -> tuple[Path, Path, Path]:
    """Folders of the pictures, cameras and depth of a shot."""
    training = place.parent.parent
    return place, training / "camdata_left" / place.name, training / "depth" / place.name


def _stems(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("frame_*.*")}
