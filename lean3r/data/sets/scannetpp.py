"""ScanNet++: rooms photographed with a wide fisheye camera and with a phone, in the frame of a laser scan."""

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
    """A possible layout of a device's pictures: cameras, folder of pictures, possible folders of depth (first wins)."""

    cameras: str
    pictures: str
    depth: tuple[str, ...]


# Depth has the lens of its pictures; the first kind with depth is used.
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
    """One scene per room and device ("data/0a5c013435/dslr"): stills of the DSLR or the video of the phone.

    Fisheye pictures (resized_images) are undistorted when read, with their rendered depth. Pictures that are already
    undistorted are used if they have depth or if there are no others. Depth is rendered by the set's toolkit, in
    millimetres (for the phone it may be from its LiDAR), and optional. Frames marked as bad are skipped.
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
        """Folders of devices; the phone's only if its pictures were extracted from the video."""
        rooms = [room for base in (root, root / "data") for room in folders(base)]
        stills = [room / "dslr" for room in rooms if (room / "dslr").is_dir()]
        return stills + [room / "iphone" for room in rooms if (room / "iphone" / "rgb").is_dir()]

    @classmethod
    def missing(cls, place: Path) -> list[str]:
        """A sentence if the pictures or their cameras are missing."""
        if _kinds(place):
            return []
        pictures = [kind.pictures for kind in KINDS[place.name] if (place / kind.pictures).is_dir()]
        if not pictures:
            return [f"{place} has no folder of pictures ({' or '.join(kind.pictures for kind in KINDS[place.name])})"]
        wanted = [place / kind.cameras for kind in KINDS[place.name] if kind.pictures in pictures]
        return [f"{wanted[0]} is missing"]

    @classmethod
    def incomplete(cls, place: Path) -> list[str]:
        """Sentences for cameras without pictures, and pictures without depth."""
        kind, depth = _kind(place)
        try:
            rows = _rows(place / kind.cameras)
        except InputError as error:
            return [str(error)]
        wanted = {PurePosixPath(row.path).name for row in rows if not row.is_bad}
        there = wanted & {path.name for path in (place / kind.pictures).iterdir()}
        if len(there) < 2:
            return [f"{place / kind.pictures} has {len(there)} posed pictures; a scene needs two"]
        problems = []
        if wanted - there:
            gone = sorted(wanted - there)
            problems.append(
                f"{len(gone)} of {len(wanted)} pictures of {place / kind.pictures} are missing, e.g. {gone[0]}"
            )
        maps = {path.stem for path in depth.glob("*.png")} if depth else set()
        without = sorted(name for name in there if PurePosixPath(name).stem not in maps)
        if without:
            folder = depth or place / kind.depth[0]
            problems.append(f"{len(without)} of {len(there)} maps of {folder} are missing, e.g. that of {without[0]}")
        return problems

    def frames(self, scene: str) -> Sequence[LensFrame]:
        """The posed pictures whose files exist and that are not marked as bad, by name."""
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
        """Depth in metres; files have millimetres."""
        assert frame.depth is not None
        return read_depth_png(frame.depth, MILLIMETRES)


def _kinds(place: Path) -> list[Kind]:
    return [kind for kind in KINDS[place.name] if (place / kind.cameras).exists() and (place / kind.pictures).is_dir()]


def _kind(place: Path) -> tuple[Kind, Path | None]:
    """The kind of pictures to read, and its folder of depth: the first kind with depth, otherwise the first."""
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
