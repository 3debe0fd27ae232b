"""ETH3D, the high-resolution multi-view scenes: stills of rooms and places, with laser scans."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple
from xml.etree import ElementTree

import numpy as np

from lean3r.data.sets.formats.files import inside, naming
from lean3r.data.sets.formats.lens import LensFrame, LensSet, depth_of_pinhole
from lean3r.data.sets.formats.ply import read_ply, read_surface
from lean3r.data.sets.formats.transforms import PosedPicture, read_model
from lean3r.data.sets.scenes import first_few, folders
from lean3r.errors import InputError

if TYPE_CHECKING:
    from lean3r.colmap_library import pycolmap


class Kind(NamedTuple):
    """A form of the pictures: the folder of their cameras, and their own below images/."""

    cameras: str
    pictures: str


UNDISTORTED = Kind("dslr_calibration_undistorted", "dslr_images_undistorted")
ORIGINAL = Kind("dslr_calibration_jpg", "dslr_images")
KINDS = (UNDISTORTED, ORIGINAL)  # the first that is complete is read
DEPTH = "ground_truth_depth/dslr_images"
SCANS, ALIGNMENT = "dslr_scan_eval", "scan_alignment.mlp"
MESH = "combined_mesh.ply"


@dataclass(frozen=True, eq=False, kw_only=True)
class ScannedFrame(LensFrame):
    """A view with the lens of its depth map, which is that of the original picture."""

    depth_lens: pycolmap.Camera | None


class Eth3d(LensSet[ScannedFrame]):
    """One scene per place ("courtyard"), of 14 to 110 pictures of 24 megapixels by name, in metres.

    Undistorted pictures are used if they are there; the original ones are undistorted when read. Depth is rendered from
    the laser scans for the original pictures: undistorted ones have it only if dslr_calibration_jpg/ is there, too. It
    is sparse where the scans are. Scenes of the test split have neither depth nor scans.
    """

    name = "eth3d"
    title = "ETH3D"
    licence = "CC BY-NC-SA 4.0; see the set's page"
    source = (
        "https://www.eth3d.net/datasets, high-res multi-view: dslr_undistorted or dslr_jpg, dslr_depth, dslr_scan_eval"
    )
    layout = (
        "SCENE/ with dslr_calibration_undistorted/ and images/dslr_images_undistorted/, or with dslr_calibration_jpg/ "
        "and images/dslr_images/; and ground_truth_depth/dslr_images/ with dslr_calibration_jpg/, dslr_scan_eval/"
    )
    parts = tuple(part for kind in KINDS for part in (kind.cameras, f"images/{kind.pictures}"))
    is_metric = True

    @classmethod
    def places(cls, root: Path) -> Iterable[Path]:
        """Folders with cameras or pictures of the DSLR."""
        return cls.with_any_part(folders(root))

    @classmethod
    def missing(cls, place: Path) -> list[str]:
        """Sentences for the files that the form of pictures lacks of which most is there."""
        absent = [_missing(place, kind) for kind in KINDS]
        return min(absent, key=len)

    @classmethod
    def incomplete(cls, place: Path) -> list[str]:
        """Sentences for cameras without pictures, pictures without depth, and scans without alignment."""
        kind = _kind(place)
        try:
            wanted = {PurePosixPath(row.path).name for row in read_model(place / kind.cameras)}
        except InputError as error:
            return [str(error)]
        folders_of_files = (place / "images" / kind.pictures, place / DEPTH)
        problems = []
        for folder in folders_of_files:
            gone = sorted(wanted - {path.name for path in folder.glob("*")})
            if gone:
                problems.append(f"{len(gone)} of {len(wanted)} files of {folder} are missing, e.g. {first_few(gone)}")
        if kind is UNDISTORTED and (place / DEPTH).is_dir() and _missing(place, ORIGINAL, pictures=False):
            problems.append(
                f"{place / ORIGINAL.cameras} is missing: depth is for the original pictures, so the views have none"
            )
        if (place / SCANS).is_dir():
            try:
                scans = [path for path, _ in read_alignment(place / SCANS / ALIGNMENT)]
                problems += [f"{path} is missing" for path in scans if not path.is_file()]
            except InputError as error:
                problems.append(str(error))
        return problems

    def frames(self, scene: str) -> Sequence[ScannedFrame]:
        """The posed pictures whose files exist, by name."""
        place = self.root / scene
        kind = _kind(place)
        rows = sorted(read_model(place / kind.cameras), key=lambda row: row.path)
        lenses = _lenses(place, kind, rows)
        frames = []
        for row in rows:
            image = inside(place / "images", row.path)
            if image.is_file():
                lens, depth = lenses.get(image.name), place / DEPTH / image.name
                frame = row.frame(image, (row.lens.width, row.lens.height))
                has_depth = lens is not None and depth.is_file()
                frames.append(
                    ScannedFrame(image, frame.camera, depth if has_depth else None, lens=frame.lens, depth_lens=lens)
                )
        if not frames:
            raise InputError(f"{place / 'images' / kind.pictures} has no posed picture; expected {self.layout}")
        return frames

    def read_depth(self, frame: ScannedFrame) -> np.ndarray:
        """Depth in metres, 0 where the scans have none (infinity in the files)."""
        assert frame.depth is not None and frame.depth_lens is not None
        shape = frame.depth_lens.height, frame.depth_lens.width
        with naming(frame.depth):
            depth = np.fromfile(frame.depth, "<f4").reshape(shape)
        depth = np.where(np.isfinite(depth), depth, np.float32(0))
        return depth_of_pinhole(depth, frame.depth_lens, frame.lens) if frame.lens.is_undistorted() else depth

    def cloud(self, scene: int) -> np.ndarray | None:
        """Points of all scans; without them, of Depth Anything 3's combined_mesh.ply if it is there."""
        place = self.root / self.ids[scene]
        if (place / SCANS).is_dir():
            return np.concatenate(
                [
                    read_ply(path)[0] @ pose[:3, :3].T + pose[:3, 3]
                    for path, pose in read_alignment(place / SCANS / ALIGNMENT)
                ]
            )
        return read_surface(place / MESH) if (place / MESH).is_file() else None


def read_alignment(path: Path) -> list[tuple[Path, np.ndarray]]:
    """(scan, world_from_scan [4, 4]) of each scan of a MeshLab project; InputError if it is damaged or has none."""
    with naming(path, ElementTree.ParseError):
        scans = []
        for mesh in ElementTree.parse(path).iter("MLMesh"):
            words = (mesh.findtext("MLMatrix44") or "").split()
            scans.append((inside(path.parent, mesh.attrib["filename"]), np.array(words, np.float64).reshape(4, 4)))
        if not scans:
            raise ValueError("it names no scan")
    return scans


def _missing(place: Path, kind: Kind, pictures: bool = True) -> list[str]:
    files = [place / kind.cameras / f"{name}.txt" for name in ("cameras", "images", "points3D")]
    wanted = files + ([place / "images" / kind.pictures] if pictures else [])
    return [f"{path} is missing" for path in wanted if not path.exists()]


def _kind(place: Path) -> Kind:
    return next((kind for kind in KINDS if not _missing(place, kind)), ORIGINAL)


def _lenses(place: Path, kind: Kind, rows: Sequence[PosedPicture]) -> dict[str, pycolmap.Camera]:
    """{name of a picture: lens of its depth map}; empty if there is no depth, or its cameras are not there."""
    if not (place / DEPTH).is_dir():
        return {}
    if kind is not ORIGINAL:
        rows = [] if _missing(place, ORIGINAL, pictures=False) else read_model(place / ORIGINAL.cameras)
    return {PurePosixPath(row.path).name: copy.copy(row.lens) for row in rows}
