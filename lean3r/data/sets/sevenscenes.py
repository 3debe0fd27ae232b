"""7-Scenes: rooms walked through with a Kinect, whose poses are those of its depth camera."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from lean3r.data.sets.formats.files import read_depth_png, read_matrix, read_text
from lean3r.data.sets.formats.ply import read_surface
from lean3r.data.sets.scenes import Camera, FolderSet, Frame, folders, from_integer_centres, invert, pinhole
from lean3r.errors import InputError, UsageError

MILLIMETRES = 1000.0
FARTHEST = 10.0  # metres, beyond which a Kinect does not measure: what Spann3R, CUT3R and Pi3 count as depth
SIZE = (640, 480)
DEPTH_CAMERA = pinhole(585.0, 585.0, 320.0, 240.0)
COLOUR_CAMERA = from_integer_centres(pinhole(525.0, 525.0, 320.0, 240.0))
# A Kinect's calibration (https://projet.liris.cnrs.fr/voir/activities-dataset/kinect-calibration.html), which DSAC* and
# SimpleRecon use for this set: the set has none.
COLOUR_FROM_DEPTH = np.array(
    [
        [9.9996518012567637e-01, 2.6765126468950343e-03, -7.9041012313000904e-03, -2.5558943178152542e-02],
        [-2.7409311281316700e-03, 9.9996302803027592e-01, -8.1504520778013286e-03, 1.0109636268061706e-04],
        [7.8819942130445332e-03, 8.1718328771890631e-03, 9.9993554558014031e-01, 2.0318321729487039e-03],
    ]
)
SPLITS = {"all": (), "train": ("TrainSplit.txt",), "test": ("TestSplit.txt",)}
_SEQUENCE, _FRAME = re.compile(r"seq-\d+"), re.compile(r"frame-(\d+)")
_KINDS = ("color.png", "depth.png", "pose.txt")


class SevenScenes(FolderSet[Frame]):
    """One scene per sequence ("chess/seq-01"), of 500 or 1000 frames of 640 x 480, in metres.

    The set's pictures and depth are not registered. `depth` "projected" is the practice of SimpleRecon, Spann3R, CUT3R
    and Pi3: depth seen from the colour camera, whose focal length is 525 pixels, from frame-*.depth.proj.png if
    SimpleRecon has written it and otherwise projected when read. "raw" is that of Depth Anything 3's benchmark:
    depth as stored, and 585 pixels, the depth camera's, for both. The poses are used as stored in both.
    `split`: all, train or test, by TrainSplit.txt and TestSplit.txt. Frames without a finite pose are skipped.
    """

    name = "sevenscenes"
    title = "7-Scenes"
    licence = "Microsoft Research licence: non-commercial; see its page"
    source = "https://www.microsoft.com/en-us/research/project/rgb-d-dataset-7-scenes/ (the archives contain archives)"
    layout = "SCENE/seq-XX/frame-XXXXXX.{color.png,depth.png,pose.txt}, SCENE/{TrainSplit,TestSplit}.txt"
    parts = ()
    is_metric = True
    is_ordered = True

    def __init__(
        self, root: str | Path, depth: str = "projected", split: str = "all", scenes: Sequence[str] | None = None
    ) -> None:
        if depth not in ("projected", "raw") or split not in SPLITS:
            raise UsageError(f"got depth {depth!r}, split {split!r}; expected projected or raw, {', '.join(SPLITS)}")
        self.depth = depth
        if scenes is None and split != "all" and Path(root).is_dir():
            wanted = {name for room in folders(Path(root)) for name in split_of(room, SPLITS[split])}
            scenes = [scene for scene in self.find_scenes(Path(root)) if scene in wanted]
        super().__init__(root, scenes)

    @classmethod
    def places(cls, root: Path) -> Iterable[Path]:
        """Folders of sequences, and those that their archives would unpack to."""
        for room in folders(root):
            found = {path.with_suffix("") for path in room.glob("seq-*")}
            yield from sorted(path for path in found if _SEQUENCE.fullmatch(path.name))

    @classmethod
    def missing(cls, place: Path) -> list[str]:
        """A sentence for an archive that is still packed, or for each kind of file that is not there at all."""
        if not place.is_dir():
            return [f"{place}.zip is not unpacked"]
        return [f"{place} has no frame-*.{kind}" for kind in _KINDS if not any(place.glob(f"frame-*.{kind}"))]

    @classmethod
    def incomplete(cls, place: Path) -> list[str]:
        """Sentences for frames without picture, depth or pose."""
        own = {kind: set(_numbered(place, kind)) for kind in _KINDS}
        wanted = set.union(*own.values())
        return [
            f"{place}: {len(wanted - have)} of {len(wanted)} frames have no {kind}"
            for kind, have in own.items()
            if wanted - have
        ]

    @classmethod
    def problems(cls, root: Path) -> list[str]:
        """Sentences for sequences that are incomplete, or that the lists of a room name but that are not there."""
        problems = super().problems(root)
        there = {place.relative_to(root).as_posix() for place in cls.places(root)}
        for room in sorted({(root / name).parent for name in there}):
            try:
                listed = split_of(room, ("TrainSplit.txt", "TestSplit.txt"))
            except InputError as error:
                problems.append(str(error))
                continue
            problems += [f"{root / name} is missing" for name in listed if name not in there]
        return problems

    def frames(self, scene: str) -> Sequence[Frame]:
        """Frames with picture and pose, by number."""
        place, frames = self.root / scene, []
        pictures, maps, poses = (_numbered(place, kind) for kind in _KINDS)
        projected = _numbered(place, "depth.proj.png") if self.depth == "projected" else {}
        k = COLOUR_CAMERA if self.depth == "projected" else DEPTH_CAMERA
        for number in sorted(pictures.keys() & poses.keys()):
            pose = read_matrix(poses[number], 4, 4)
            if np.isfinite(pose).all():
                depth = projected.get(number) or maps.get(number)
                frames.append(Frame(pictures[number], Camera(k, invert(pose), *SIZE), depth))
        if not frames:
            raise InputError(f"{place} has no frame with picture and pose; expected {self.layout}")
        return frames

    def read_depth(self, frame: Frame) -> np.ndarray:
        """Depth in metres, 0 where the sensor has none and beyond 10 metres; files have millimetres."""
        assert frame.depth is not None
        depth = read_depth_png(frame.depth, MILLIMETRES)
        depth = np.where(depth <= FARTHEST, depth, np.float32(0))
        is_projected = frame.depth.name.endswith(".proj.png")
        return depth if self.depth == "raw" or is_projected else seen_from_colour(depth)

    def cloud(self, scene: int) -> np.ndarray | None:
        """Points of the room's mesh, meshes/ROOM.ply of Depth Anything 3's benchmark."""
        path = self.root / "meshes" / f"{self.ids[scene].partition('/')[0]}.ply"
        return read_surface(path) if path.is_file() else None


def split_of(room: Path, files: Iterable[str]) -> list[str]:
    """Scenes ("chess/seq-01") that the lists of a room name, as "sequence1"; lists that are missing name none."""
    lines = [line for name in files if (room / name).is_file() for line in read_text(room / name).splitlines()]
    numbers = [re.sub(r"\D", "", line) for line in lines]
    return sorted(f"{room.name}/seq-{int(number):02}" for number in numbers if number)


def seen_from_colour(depth: np.ndarray) -> np.ndarray:
    """Depth [480, 640] of the depth camera at the pixels of the colour camera: the nearest point in each pixel, 0 where
    none falls."""
    rows, columns = np.nonzero(depth)
    z = depth[rows, columns].astype(np.float64)
    rays = np.linalg.inv(DEPTH_CAMERA) @ np.stack([columns + 0.5, rows + 0.5, np.ones(len(z))])
    there = COLOUR_FROM_DEPTH @ np.vstack([rays * z, np.ones(len(z))])
    x, y = np.floor((COLOUR_CAMERA @ (there / there[2]))[:2]).astype(np.int64)
    width, height = SIZE
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    seen = np.full((height, width), np.inf)
    np.minimum.at(seen, (y[inside], x[inside]), there[2, inside])
    return np.where(np.isfinite(seen), seen, 0).astype(np.float32)


def _numbered(place: Path, kind: str) -> dict[int, Path]:
    """{number: file} of the files like frame-000012.color.png."""
    matches = ((_FRAME.fullmatch(path.name.removesuffix(f".{kind}")), path) for path in place.glob(f"frame-*.{kind}"))
    return {int(match[1]): path for match, path in matches if match}
