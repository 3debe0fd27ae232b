"""ScanNet-1500: the 1,500 pairs of views of ScanNet's test scenes on which SuperGlue, LoFTR and others score poses.

The list is LoFTR's test.npz (pairs and their relative poses) with intrinsics.npz, or SuperGlue's
scannet_test_pairs_with_gt.txt, of the same pairs. Intrinsics in intrinsics.npz are for pictures resized to 640 x 480;
the coordinates of pixels, with the first centre at (0, 0), were scaled with the pictures.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lean3r.data.sets.formats.files import image_size, naming, read_matrix, read_npz, read_text
from lean3r.data.sets.scannet import SENSOR, ScanNet, SensorFrame
from lean3r.data.sets.scenes import Camera, from_integer_centres, rescale
from lean3r.errors import InputError

_RESIZED = (640, 480)
_WALKS = (".", "scans_test", "scannet_test_1500")


@dataclass(frozen=True, eq=False)
class Pair:
    """Frames `numbers` of the walk `walk` (scene0707_00): intrinsics [2, 3, 3] in pixels of 1296 x 968, and
    second_from_first [4, 4], which takes points from the first camera to the second."""

    walk: str
    numbers: tuple[int, int]
    intrinsics: np.ndarray
    second_from_first: np.ndarray

    @property
    def id(self) -> str:
        """Unique in the list."""
        return f"{self.walk}/{self.numbers[0]}-{self.numbers[1]}"


class ScanNet1500(ScanNet):
    """One scene per pair of the list ("scene0707_00/15-585"), in its order, of two views.

    Poses are those of the list: the first camera is the world. Views have depth where depth/N.png is there, as in
    ScanNet itself. Pairs without both pictures are left out.
    """

    name = "scannet1500"
    title = "ScanNet-1500"
    source = (
        "scannet_test_1500 of the repository zju3dv/LoFTR (its README), with test.npz and intrinsics.npz of its "
        "assets/scannet_test_1500; or ScanNet's test scenes with the list of magicleap/SuperGluePretrainedNetwork"
    )
    layout = (
        "test.npz and intrinsics.npz, or scannet_test_pairs_with_gt.txt; [scans_test/]sceneXXXX_XX/ with color/N.jpg, "
        "perhaps depth/N.png and intrinsic/intrinsic_depth.txt"
    )
    is_ordered = False

    def __init__(self, root: str | Path, scenes: Sequence[str] | None = None) -> None:
        super().__init__(root, scenes)
        self.pairs = {pair.id: pair for pair in read_pairs(self.root)}

    @classmethod
    def looks_like(cls, root: Path) -> bool:
        """Whether there is a list of pairs."""
        return _text(root) is not None or _npz(root).is_file()

    @classmethod
    def find_scenes(cls, root: Path) -> list[str]:
        """The pairs with both pictures, in the order of the list."""
        return [pair.id for pair in read_pairs(root) if all(image.is_file() for image in _images(root, pair))]

    @classmethod
    def problems(cls, root: Path) -> list[str]:
        """Sentences for a missing or damaged list, for pairs without pictures, and for missing depth maps."""
        if not cls.looks_like(root):
            return [f"{root} has no list of pairs, test.npz or scannet_test_pairs_with_gt.txt"]
        try:
            pairs = read_pairs(root)
        except InputError as error:
            return [str(error)]
        images = {pair.id: _images(root, pair) for pair in pairs}
        absent = [path for both in images.values() for path in both if not path.is_file()]
        cut = sum(not all(path.is_file() for path in both) for both in images.values())
        problems = [f"{cut} of {len(pairs)} pairs lack pictures, e.g. {absent[0]}"] if cut else []
        walks = {path.parent.parent for both in images.values() for path in both}
        for walk in sorted(walk for walk in walks if (walk / "depth").is_dir()):
            maps = {_map(path) for both in images.values() for path in both if path.is_relative_to(walk)}
            lost = sorted(path for path in maps if not path.is_file())
            if lost:
                problems.append(f"{len(lost)} of {len(maps)} depth maps are missing, e.g. {lost[0]}")
            if not _lens(walk).is_file():
                problems.append(f"{_lens(walk)} is missing, so the maps of its walk are not read")
        return problems

    @classmethod
    def incomplete(cls, place: Path) -> list[str]:
        """Nothing: a pair has no folder of its own, and `problems` looks for the files of all pairs."""
        return []

    def frames(self, scene: str) -> Sequence[SensorFrame]:
        """The two views of a pair."""
        pair, frames = self.pairs[scene], []
        poses = np.eye(4), pair.second_from_first
        for image, own, pose in zip(_images(self.root, pair), pair.intrinsics, poses, strict=True):
            width, height = image_size(image)
            camera = Camera(rescale(own, width / SENSOR[0], height / SENSOR[1]), pose, width, height)
            lens, depth, sensor = _lens(image.parent.parent), _map(image), np.eye(3)
            if lens.is_file() and depth.is_file():
                sensor = from_integer_centres(read_matrix(lens, 4, 4)[:3, :3])
            else:
                depth = None
            frames.append(SensorFrame(image, camera, depth, sensor=sensor))
        return frames


def read_pairs(root: Path) -> list[Pair]:
    """The list of a root, empty if there is none; InputError if it cannot be read."""
    text = _text(root)
    if _npz(root).is_file():
        return _read_npz(_npz(root), root / "intrinsics.npz")
    return [] if text is None else _read_text(text)


def _read_npz(path: Path, lenses: Path) -> list[Pair]:
    """LoFTR's list: rows scene, scan, first, second; second_from_first as [3, 4]."""
    arrays, own = read_npz(path), read_npz(lenses)
    with naming(path):
        names, poses = arrays["name"].reshape(-1, 4).astype(int), arrays["rel_pose"].reshape(-1, 3, 4).astype(float)
        walks = [f"scene{scene:04}_{scan:02}" for scene, scan in names[:, :2]]
        unknown = sorted(set(walks) - set(own))
        if unknown:
            raise InputError(f"{lenses} has no intrinsics of {unknown[0]}; expected all scenes of {path.name}")
        scale = SENSOR[0] / _RESIZED[0], SENSOR[1] / _RESIZED[1]
        k = {walk: from_integer_centres(rescale(own[walk].reshape(3, 3), *scale)) for walk in set(walks)}
        return [
            Pair(walk, (int(a), int(b)), np.stack([k[walk]] * 2), np.vstack([pose, [0.0, 0.0, 0.0, 1.0]]))
            for walk, (a, b), pose in zip(walks, names[:, 2:], poses, strict=True)
        ]


def _read_text(path: Path) -> list[Pair]:
    """SuperGlue's list: lines of two names, their quarter turns, K of both [3, 3] and second_from_first [4, 4]."""
    pairs = []
    for line in read_text(path).splitlines():
        if words := line.split():
            with naming(path):
                if len(words) != 38 or {words[2], words[3]} != {"0"}:
                    raise ValueError(f"expected two names, 0 0 and 34 numbers, got {len(words)} words")
                walk, first = _frame(words[0])
                values = np.array([float(word) for word in words[4:]])
                k = np.stack([from_integer_centres(own) for own in values[:18].reshape(2, 3, 3)])
                pairs.append(Pair(walk, (first, _frame(words[1])[1]), k, values[18:].reshape(4, 4)))
    return pairs


def _frame(name: str) -> tuple[str, int]:
    """Walk and number of a name like scene0711_00_frame-001680.jpg."""
    match = re.fullmatch(r"(scene\d+_\d+)_frame-(\d+)\.jpg", name)
    if match is None:
        raise ValueError(f"{name} is not a name like scene0711_00_frame-001680.jpg")
    return match[1], int(match[2])


def _npz(root: Path) -> Path:
    return root / "test.npz"


def _text(root: Path) -> Path | None:
    return next(iter(sorted(root.glob("[!.]*pairs_with_gt.txt"))), None)


def _images(root: Path, pair: Pair) -> list[Path]:
    """The two pictures of a pair, there or not."""
    places = [root / above / pair.walk for above in _WALKS]
    walk = next((place for place in places if place.is_dir()), places[0])
    return [walk / "color" / f"{number}.jpg" for number in pair.numbers]


def _map(image: Path) -> Path:
    return image.parent.parent / "depth" / f"{image.stem}.png"


def _lens(walk: Path) -> Path:
    """Intrinsics of the depth sensor."""
    return walk / "intrinsic" / "intrinsic_depth.txt"
