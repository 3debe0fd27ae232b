"""CO3Dv2: videos around objects of fifty categories, with cameras and depth from COLMAP."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NotRequired, TypedDict

import numpy as np

from lean3r.data.sets.formats.files import inside, naming, read_depth_png, read_gzip
from lean3r.data.sets.formats.maps import nearest
from lean3r.data.sets.scenes import Camera, FolderSet, Frame, folders, pinhole
from lean3r.errors import InputError
from lean3r.json_text import parse_json

FRAMES, SEQUENCES = "frame_annotations.jgz", "sequence_annotations.jgz"
_NO_SEQUENCES = ("set_lists", "eval_batches")


class ImageFile(TypedDict):
    """A picture: path relative to the root, and size [height, width]."""

    path: str
    size: list[int]


class DepthFile(TypedDict):
    """A depth map, the factor of its values, and the mask of known values."""

    path: str
    scale_adjustment: NotRequired[float | None]
    mask_path: NotRequired[str | None]


class MaskFile(TypedDict):
    """The mask of the object."""

    path: str


class Viewpoint(TypedDict):
    """A camera as annotated; see `pose_of` and `intrinsics_of`."""

    R: list[list[float]]
    T: list[float]
    focal_length: list[float]
    principal_point: list[float]
    intrinsics_format: NotRequired[str]


class Annotation(TypedDict):
    """The keys that are read: all of a frame, or the name and score of a sequence."""

    sequence_name: str
    frame_number: int
    image: ImageFile
    depth: DepthFile
    mask: NotRequired[MaskFile | None]
    viewpoint: Viewpoint
    viewpoint_quality_score: NotRequired[float | None]


@dataclass(frozen=True, eq=False, kw_only=True)
class MaskedFrame(Frame):
    """A view with the factor of its depth, and the masks of known depth and of the object (None without)."""

    scale: float
    masks: tuple[Path | None, Path | None]


class Co3dv2(FolderSet[MaskedFrame]):
    """One scene per sequence ("apple/110_13051_23361"). The scale is COLMAP's and differs between sequences.

    min_quality: sequences with a lower viewpoint_quality_score are skipped; foreground: only the object has depth, by
    its masks. The annotations of a category are read with its first frame and cached in memory, compressed to some
    200 bytes per frame.
    """

    name = "co3dv2"
    title = "CO3Dv2"
    licence = "CC BY-NC 4.0 as far as known; see the set's page: the repository facebookresearch/co3d"
    source = "CO3Dv2: download_dataset.py of the repository facebookresearch/co3d (the single-sequence subset too)"
    layout = (
        "<category>/frame_annotations.jgz, <category>/sequence_annotations.jgz and "
        "<category>/<sequence>/ with images/, depths/, depth_masks/, masks/"
    )
    is_ordered = True

    def __init__(
        self,
        root: str | Path,
        min_quality: float = 0.5,
        foreground: bool = False,
        scenes: Sequence[str] | None = None,
    ) -> None:
        self.min_quality, self.foreground = min_quality, foreground
        self._categories: dict[str, dict[str, bytes]] = {}
        super().__init__(root, scenes)
        if scenes is None:
            self.ids = self._select_good(self.ids)

    @classmethod
    def looks_like(cls, root: Path) -> bool:
        """Whether a folder in the root has annotations, or sequences with images/ and depths/."""
        return bool(_categories(root))

    @classmethod
    def find_scenes(cls, root: Path) -> list[str]:
        """Sequences with pictures and depth, in categories with annotations."""
        categories = [folder for folder in _categories(root) if (folder / FRAMES).is_file()]
        names = [sequence for category in categories for sequence in _sequences(category)]
        return [sequence.relative_to(root).as_posix() for sequence in names if not _missing(sequence)]

    @classmethod
    def problems(cls, root: Path) -> list[str]:
        """Sentences for missing annotations, sequences, pictures and depth."""
        categories = _categories(root)
        if not categories:
            return [f"{root} has no CO3Dv2 category"]
        problems = []
        for category in categories:
            absent = [category / name for name in (FRAMES, SEQUENCES) if not (category / name).is_file()]
            problems += [f"{path} is missing" for path in absent]
            problems += [what for sequence in _sequences(category) for what in _missing(sequence)]
            problems += _incomplete(category) if category / FRAMES not in absent else []
        return problems

    def frames(self, scene: str) -> Sequence[MaskedFrame]:
        """The frames with a camera and depth, by frame number."""
        category, _, sequence = scene.partition("/")
        if category not in self._categories:
            rows = _by_sequence(self.root / category / FRAMES)
            self._categories[category] = {
                name: zlib.compress(json.dumps(own).encode(), 1) for name, own in rows.items()
            }
        packed = self._categories[category].get(sequence)
        if packed is None:
            raise InputError(f"{self.root / category / FRAMES} has no frame of {sequence} with a camera and depth")
        try:
            return [self._frame(row) for row in json.loads(zlib.decompress(packed))]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise InputError(f"a frame of {scene} does not have the annotations of CO3Dv2 ({error!r})") from error

    def read_depth(self, frame: MaskedFrame) -> np.ndarray:
        """Depth from half floats in a 16-bit PNG, times the frame's factor; 0 outside masks and where not finite."""
        assert frame.depth is not None
        depth = read_half_floats(frame.depth) * np.float32(frame.scale)
        known = np.isfinite(depth) & (depth > 0)
        for mask, threshold in zip(frame.masks, (0, 127), strict=True):
            if mask is not None:
                known &= nearest(read_depth_png(mask, 1), *depth.shape) > threshold
        return np.where(known, depth, np.float32(0))

    def _frame(self, row: Annotation) -> MaskedFrame:
        height, width = row["image"]["size"]
        depth, mask = row["depth"], row.get("mask") if self.foreground else None
        known, own = (
            None if part is None else inside(self.root, part)
            for part in (depth.get("mask_path"), (mask or {}).get("path"))
        )
        camera = Camera(intrinsics_of(row["viewpoint"], width, height), pose_of(row["viewpoint"]), width, height)
        picture, depth_map = (inside(self.root, part["path"]) for part in (row["image"], depth))
        scale = float(depth.get("scale_adjustment") or 1.0)
        return MaskedFrame(picture, camera, depth_map, scale=scale, masks=(known, own))

    def _select_good(self, scenes: Sequence[str]) -> list[str]:
        scores: dict[str, float] = {}
        for category in {scene.partition("/")[0] for scene in scenes}:
            path = self.root / category / SEQUENCES
            with naming(path):
                for row in _annotations(path) if path.is_file() else []:
                    score = row.get("viewpoint_quality_score")
                    scores[f"{category}/{row.get('sequence_name')}"] = np.inf if score is None else float(score)
        good = [scene for scene in scenes if scores.get(scene, np.inf) >= self.min_quality]
        if not good:
            raise InputError(
                f"none of the {len(scenes)} sequences in {self.root} has a viewpoint_quality_score of at least "
                f"{self.min_quality}; give a lower min_quality"
            )
        return good


def intrinsics_of(viewpoint: Viewpoint, width: int, height: int) -> np.ndarray:
    """Intrinsics [3, 3] in pixels from PyTorch3D's normalised device coordinates.

    There x points left and y up from the centre of the picture. +-1 are the edges of both sides in the format
    "ndc_norm_image_bounds", of the shorter side in "ndc_isotropic", the format of CO3Dv2. Pixel centres are at 0.5, as
    here. Raises InputError for another format.
    """
    half = np.array([width, height]) / 2
    kind = viewpoint.get("intrinsics_format") or "ndc_norm_image_bounds"
    if kind.lower() not in ("ndc_isotropic", "ndc_norm_image_bounds"):
        raise InputError(f"unknown camera format {kind}; expected ndc_isotropic or ndc_norm_image_bounds")
    scale = np.full(2, half.min()) if kind.lower() == "ndc_isotropic" else half
    focal = np.broadcast_to(np.asarray(viewpoint["focal_length"], np.float64), 2) * scale
    centre = half - np.asarray(viewpoint["principal_point"], np.float64) * scale
    return pinhole(*focal, *centre)


def pose_of(viewpoint: Viewpoint) -> np.ndarray:
    """cam_from_world [4, 4] from PyTorch3D's R, T: row vectors (x R + T), camera x left, y up, z forward."""
    pose = np.eye(4)
    pose[:3, :3] = np.asarray(viewpoint["R"], np.float64).T
    pose[:3, 3] = np.asarray(viewpoint["T"], np.float64)
    pose[:2] *= -1
    return pose


def read_half_floats(path: Path) -> np.ndarray:
    """Values [H, W] float32 of a PNG whose 16-bit integers are the bits of half floats."""
    bits = read_depth_png(path, 1)  # below 2 ** 24, so exact in float32
    return bits.astype(np.uint16).view(np.float16).astype(np.float32)


def _categories(root: Path) -> list[Path]:
    return [folder for folder in folders(root) if _is_category(folder)]


def _is_category(folder: Path) -> bool:
    if any((folder / name).is_file() for name in (FRAMES, SEQUENCES)):
        return True
    return any((sequence / "images").is_dir() and (sequence / "depths").is_dir() for sequence in _sequences(folder)[:3])


def _sequences(category: Path) -> list[Path]:
    return [folder for folder in folders(category) if folder.name not in _NO_SEQUENCES]


def _missing(sequence: Path) -> list[str]:
    return [f"{sequence / part} is missing" for part in ("images", "depths") if not (sequence / part).is_dir()]


def _incomplete(category: Path) -> list[str]:
    try:
        rows = _by_sequence(category / FRAMES)
    except InputError as error:
        return [str(error)]
    there = {folder.name for folder in _sequences(category)}
    absent = sorted(rows.keys() - there)
    problems = [f"{len(absent)} of {len(rows)} sequences of {category} are missing, e.g. {absent[0]}"] if absent else []
    for name in sorted(there & rows.keys()):
        pictures = {path.name for path in (category / name / "images").glob("*")}
        wanted = {PurePosixPath(str(row["image"]["path"])).name for row in rows[name]}
        if len(wanted & pictures) < 2:
            problems.append(f"{category / name} has {len(wanted & pictures)} pictures; a scene needs two")
        elif wanted - pictures:
            gone = sorted(wanted - pictures)
            problems.append(f"{len(gone)} of {len(wanted)} pictures of {category / name} are missing, e.g. {gone[0]}")
    return problems


def _annotations(path: Path) -> list[Annotation]:
    with naming(path):
        rows = parse_json(read_gzip(path))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path} is not a list of annotations of CO3Dv2")
    return rows


def _by_sequence(path: Path) -> dict[str, list[Annotation]]:
    """Rows of each sequence by frame number, if they have picture, camera and depth (hidden frames do not)."""
    sequences: dict[str, list[Annotation]] = {}
    try:
        for row in _annotations(path):
            if row.get("viewpoint") and (row.get("depth") or {}).get("path") and row["image"].get("path"):
                sequences.setdefault(row["sequence_name"], []).append(row)
        return {name: sorted(rows, key=lambda row: row["frame_number"]) for name, rows in sequences.items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path} does not have the annotations of CO3Dv2 ({error!r})") from error
