"""ScanNet++: rooms by a wide fisheye camera and by a phone, in the frame of a laser scan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from lean3r.data.sets.formats.files import image_size, read_depth_png
from lean3r.data.sets.formats.lens import LensFrame, LensSet
from lean3r.data.sets.formats.transforms import PosedPicture, read_model, read_transforms
from lean3r.data.sets.scenes import folders
from lean3r.errors import InputError, UsageError

MILLIMETRES = 1000.0
DEVICES = ("dslr", "iphone")


class Kind(NamedTuple):
    """One way in which a device's pictures lie there: cameras, folder of pictures, folders of depth (the first)."""

    cameras: str
    pictures: str
    depth: tuple[str, ...]


# Depth has the lens of its pictures; what comes first is taken where there is depth.
_UNDISTORTED, _LENSES, _MODEL = "nerfstudio/transforms_undistorted.json", "nerfstudio/transforms.json", "colmap"
KINDS = {
    "dslr": (
        Kind(_UNDISTORTED, "resized_undistorted_images", ("undistorted_depths",)),
        Kind(_UNDISTORTED, "undistorted_images", ("undistorted_depths",)),
        Kind(_LENSES, "resized_images", ("render_depth",)),
        Kind(_MODEL, "resized_images", ("render_depth",)),
    ),
    "iphone": (Kind(_LENSES, "rgb", ("render_depth", "depth")), Kind(_MODEL, "rgb", ("render_depth", "depth"))),
}


class ScanNetpp(LensSet[LensFrame]):
    """One scene a room and device ("data/0a5c013435/dslr"): the DSLR's still pictures or the phone's video.

    Fisheye pictures (resized_images) are undistorted as they are read, with their rendered depth; those that are
    undistorted already are taken if their depth is there, or no others are. Depth is what the set's toolkit renders
    (millimetres; for the phone also what its LiDAR saw); without it there is none. Frames marked bad are left out.
    """

    name = "scannetpp"
    title = "ScanNet++"
    licence = "ScanNet++ terms of use: non-commercial research and education; see the set's page: ScanNet++, TU Munich"
    source = (
        "ScanNet++, by application; depth by common.render, phone pictures by iphone.prepare_iphone_data of its toolkit"
    )
    layout = (
        "data/<scene>/dslr/ with nerfstudio/transforms.json or colmap/, and resized_images/ (and render_depth/); or "
        "with nerfstudio/transforms_undistorted.json and resized_undistorted_images/ or undistorted_images/ (and "
        "undistorted_depths/). data/<scene>/iphone/ with nerfstudio/transforms.json or colmap/, and rgb/ (and "
        "render_depth/ or depth/)"
    )
    is_metric = True

    def __init__(self, root: str | Path, device: str = "dslr", scenes: Sequence[str] | None = None) -> None:
        if device not in DEVICES:
            raise UsageError(f"device is {device!r}; ScanNet++ has {' and '.join(DEVICES)}")
        own = scenes
        if own is None and Path(root).is_dir():
            own = [scene for scene in self.find_scenes(Path(root)) if scene.endswith(f"/{device}")]
        super().__init__(root, own)

    @classmethod
    def places(cls, root: Path) -> list[Path]:
        """Folders of devices. The phone's counts once its pictures are taken out of the video."""
        rooms = [room for base in (root, root / "data") for room in folders(base)]
        stills = [room / "dslr" for room in rooms if (room / "dslr").is_dir()]
        return stills + [room / "iphone" for room in rooms if (room / "iphone" / "rgb").is_dir()]

    @classmethod
    def missing(cls, place: Path) -> list[str]:
        """Pictures, or their cameras."""
        if _kinds(place):
            return []
        pictures = [kind.pictures for kind in KINDS[place.name] if (place / kind.pictures).is_dir()]
        if not pictures:
            return [f"{place} has no folder of pictures ({' or '.join(kind.pictures for kind in KINDS[place.name])})"]
        wanted = [place / kind.cameras for kind in KINDS[place.name] if kind.pictures in pictures]
        return [f"{wanted[0]} is missing"]

    @classmethod
    def incomplete(cls, place: Path) -> list[str]:
        """Cameras without their picture, and pictures without depth."""
        kind, depth = _kind(place)
        try:
            rows = _rows(place / kind.cameras)
        except InputError as error:
            return [str(error)]
        wanted = {PurePosixPath(row.path).name for row in rows if not row.is_bad}
        there = wanted & {path.name for path in (place / kind.pictures).iterdir()}
        if len(there) < 2:
            return [f"{place / kind.pictures} has {len(there)} posed pictures; at least two views make a scene"]
        found = []
        if wanted - there:
            gone = sorted(wanted - there)
            found.append(
                f"{len(gone)} of {len(wanted)} pictures of {place / kind.pictures} are missing, {gone[0]} first"
            )
        maps = {path.stem for path in depth.glob("*.png")} if depth else set()
        without = sorted(name for name in there if PurePosixPath(name).stem not in maps)
        if without:
            folder = depth or place / kind.depth[0]
            found.append(f"{len(without)} of {len(there)} maps of {folder} are missing, that of {without[0]} first")
        return found

    def frames(self, scene: str) -> Sequence[LensFrame]:
        """The posed pictures that are there and not marked bad, by name."""
        place = self.root / scene
        kind, depth = _kind(place)
        rows = sorted(_rows(place / kind.cameras), key=lambda row: row.path)
        files = [(row, place / kind.pictures / PurePosixPath(row.path).name) for row in rows if not row.is_bad]
        there = [(row, file) for row, file in files if file.is_file()]
        if not there:
            raise InputError(f"no posed picture of {place} is in {place / kind.pictures}; expected {self.layout}")
        size = image_size(there[0][1])
        maps = {path.stem: path for path in depth.glob("*.png")} if depth else {}
        return [row.frame(file, size, maps.get(file.stem)) for row, file in there]

    def read_depth(self, frame: LensFrame) -> np.ndarray:
        """Metres from millimetres."""
        assert frame.depth is not None
        return read_depth_png(frame.depth, MILLIMETRES)


def _kinds(place: Path) -> list[Kind]:
    return [kind for kind in KINDS[place.name] if (place / kind.cameras).exists() and (place / kind.pictures).is_dir()]


def _kind(place: Path) -> tuple[Kind, Path | None]:
    """The kind of pictures to read, and its folder of depth: the first that has depth, or else the first."""
    kinds = _kinds(place)
    if not kinds:
        raise InputError("; ".join(ScanNetpp.missing(place)))
    for kind in kinds:
        for name in kind.depth:
            if (place / name).is_dir():
                return kind, place / name
    return kinds[0], None


def _rows(cameras: Path) -> list[PosedPicture]:
    return read_model(cameras) if cameras.is_dir() else read_transforms(cameras)
