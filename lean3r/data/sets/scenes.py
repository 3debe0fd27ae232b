"""Data sets on disk: scenes of posed pictures, read one view at a time.

Conventions of all sets: OpenCV axes, `cam_from_world`, z-depth with 0 where it is unknown, intrinsics in pixels
with the centre of the top-left pixel at (0.5, 0.5).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import numpy as np

from lean3r.data.sets.formats.files import naming, read_image
from lean3r.errors import InputError

CACHED_SCENES = 64
CACHED_CAMERAS = 8192
SIZE_TOLERANCE = 0.02
ROTATION_TOLERANCE = 1e-2
_SHOWN = 3


@dataclass(frozen=True)
class SceneInfo:
    """Information about a scene that needs no pictures: `id`, unique in the set, and how many views it has."""

    id: str
    views: int


@dataclass(frozen=True, eq=False)
class Camera:
    """intrinsics [3, 3] float64 in pixels of a picture of width x height, cam_from_world [4, 4] float64."""

    intrinsics: np.ndarray
    cam_from_world: np.ndarray
    width: int
    height: int


@dataclass(frozen=True, eq=False)
class RawView:
    """One view as a set has it: image [H, W, 3] uint8, depth [H, W] float32 z-depth (0 unknown; what is not finite
    counts as unknown), intrinsics [3, 3] and cam_from_world [4, 4] float64, normals [H, W, 3] float32 unit in camera
    axes, towards the camera, 0 where unknown (None: the set has none)."""

    image: np.ndarray
    depth: np.ndarray
    intrinsics: np.ndarray
    cam_from_world: np.ndarray
    normals: np.ndarray | None = None


class SceneSet(ABC):
    """A data set: a sequence of scenes, each a sequence of views.

    name: its row in DATASETS; title: as people call it; licence and source: under which terms and where to get it,
    for `lean3r data list`; layout: what a root holds, in one line; is_metric: whether lengths are metres; is_ordered:
    whether views follow one another, as in a video. A set is built from its root folder, `Kind(root, ...)`, holds what
    it needs to find files and nothing heavy, and can be pickled. It keeps to the scenes that are complete; InputError
    when there is none.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    licence: str
    source: ClassVar[str]
    layout: ClassVar[str]
    is_metric: bool = False
    has_depth: bool = True
    has_normals: bool = False
    is_ordered: bool = False

    @abstractmethod
    def __len__(self) -> int:
        """How many scenes."""

    @abstractmethod
    def scene(self, index: int) -> SceneInfo:
        """Name and number of views of a scene; InputError when its files cannot be read."""

    @abstractmethod
    def camera(self, scene: int, view: int) -> Camera:
        """The camera of a view, without reading its picture; InputError when it is none."""

    @abstractmethod
    def view(self, scene: int, view: int) -> RawView:
        """Read one view; InputError when a file is missing or damaged."""

    def covisibility(self, scene: int) -> np.ndarray | None:
        """[V, V] scores of how much two views see in common, larger is more, where the set's files say so."""
        return None

    def candidates(self, views: int, height: int, width: int) -> np.ndarray | None:
        """Numbers of the scenes that suit a batch of this shape; None where the set keeps no such list."""
        return None

    @classmethod
    @abstractmethod
    def looks_like(cls, root: Path) -> bool:
        """Whether a folder has the marks of this layout, be it complete or not; cheap, and never raises."""

    @classmethod
    def problems(cls, root: Path) -> list[str]:
        """What is missing or wrong below `root`, a sentence each; empty when all is there. Never raises on its files.

        `lean3r data check` adds what it sees itself: views that cannot be read, cameras that are none. Written where
        more is known of a layout; by default only whether there is anything of it.
        """
        return [] if cls.looks_like(root) else [f"{root} holds no {cls.title}"]


@dataclass(frozen=True, eq=False)
class Frame:
    """Where the files of one view are, and its camera. A set that needs to know more of a view adds fields."""

    image: Path
    camera: Camera
    depth: Path | None = None


F = TypeVar("F", bound=Frame)


class FolderSet(SceneSet, Generic[F]):
    """A set of picture files in folders: a subclass says where its scenes are and what a scene's frames are.

    `parts`: the files and folders of a complete scene, the one that tells it from other sets first. `places(root)`:
    folders that may be one, by default those in the root that have the first part; `missing(place)`: what keeps one
    from being a scene, by default parts that are absent; `incomplete(place)`: what is wrong with a scene all the same,
    by default nothing. `looks_like`, `find_scenes` and `problems` follow from these; a set whose scenes are no folders
    writes the three itself.

    `frames(id)` reads the cameras of a scene; `read_depth(frame)` reads depth [h, w], 0 unknown (resized by nearest to
    the picture where it is smaller or larger).
    """

    parts: ClassVar[tuple[str, ...]]

    def __init__(self, root: str | Path, scenes: Sequence[str] | None = None) -> None:
        self.root = Path(root)
        self.ids = list(self.find_scenes(self.root) if scenes is None else scenes)
        if not self.ids:
            found = self.problems(self.root) if self.root.is_dir() else [f"{self.root} is no folder"]
            raise InputError(f"no {self.title} scene in {self.root}: {some(found)}. Expected: {self.layout}")
        self._frames: OrderedDict[int, Sequence[F]] = OrderedDict()

    @classmethod
    def places(cls, root: Path) -> Iterable[Path]:
        """Folders below a root that may be scenes, complete or not, in a fixed order; cheap."""
        return (folder for folder in folders(root) if (folder / cls.parts[0]).exists())

    @classmethod
    def begun(cls, places: Iterable[Path]) -> list[Path]:
        """Of these folders those that have any part."""
        return [place for place in places if any((place / part).exists() for part in cls.parts)]

    @classmethod
    def missing(cls, place: Path) -> list[str]:
        """What is not there of a scene, a sentence each; none for a complete one. Cheap."""
        return [f"{place / part} is missing" for part in cls.parts if not (place / part).exists()]

    @classmethod
    def incomplete(cls, place: Path) -> list[str]:
        """What is missing or wrong within a complete scene, a sentence each."""
        return []

    @classmethod
    def looks_like(cls, root: Path) -> bool:
        """Whether there is a folder that may be a scene."""
        return any(True for _ in cls.places(root))

    @classmethod
    def find_scenes(cls, root: Path) -> Iterable[str]:
        """Names of the complete scenes below a root, in a fixed order; cheap."""
        return [place.relative_to(root).as_posix() for place in cls.places(root) if not cls.missing(place)]

    @classmethod
    def problems(cls, root: Path) -> list[str]:
        """What is missing or wrong in each folder that may be a scene, or that there is none."""
        places = list(cls.places(root))
        if not places:
            return [f"{root} holds no {cls.title} scene"]
        return [what for place in places for what in cls.missing(place) or cls.incomplete(place)]

    @abstractmethod
    def frames(self, scene: str) -> Sequence[F]:
        """The frames of one scene, in order; InputError when its files cannot be read."""

    def read_depth(self, frame: F) -> np.ndarray:
        """Depth [h, w] float32 of a frame whose `depth` is not None."""
        raise InputError(f"{self.title} has no depth, yet {frame.image.name} names some")

    def __len__(self) -> int:
        return len(self.ids)

    def scene(self, index: int) -> SceneInfo:
        """Name and number of views of a scene."""
        return SceneInfo(self.ids[index], len(self._cached(index)))

    def camera(self, scene: int, view: int) -> Camera:
        """The camera of a view; InputError when its pose is no rotation."""
        frame = self._cached(scene)[view]
        return check_camera(frame.camera, f"{self.ids[scene]}, {frame.image.name}")

    def view(self, scene: int, view: int) -> RawView:
        """Read one view. A picture of another size than its camera's takes the camera along, if its shape is kept."""
        frame, camera = self._cached(scene)[view], self.camera(scene, view)
        image = read_image(frame.image)
        height, width = image.shape[:2]
        intrinsics = fit_intrinsics(camera, width, height, frame.image)
        has_depth = frame.depth is not None
        depth = nearest(self.read_depth(frame), height, width) if has_depth else no_depth(height, width)
        return RawView(image, depth, intrinsics, camera.cam_from_world)

    def _cached(self, index: int) -> Sequence[F]:
        frames = self._frames.get(index)  # read once: another thread may push it out at any time
        if frames is None:
            with naming(self.root / self.ids[index]):
                frames = self._frames[index] = self.frames(self.ids[index])
            while len(self._frames) > CACHED_SCENES:
                self._frames.popitem(last=False)
        return frames

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_frames": OrderedDict()}


def some(what: Sequence[object]) -> str:
    """The first few of a list, and how many more there are."""
    more = f", and {len(what) - _SHOWN:,} more" if len(what) > _SHOWN else ""
    return "; ".join(str(x) for x in what[:_SHOWN]) + more


def folders(root: Path) -> list[Path]:
    """Sorted folders directly below `root`; none when there is no such folder. Hidden ones are left out."""
    return sorted(p for p in root.iterdir() if p.is_dir() and p.name[0] != ".") if root.is_dir() else []


def pinhole(fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    """[3, 3] float64, for a principal point that counts from the corner of the picture (pixel centres at 0.5)."""
    return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def from_integer_centres(intrinsics: np.ndarray) -> np.ndarray:
    """The same intrinsics [3, 3] where a set puts the centre of the top-left pixel at (0, 0): half a pixel more."""
    moved = np.array(intrinsics, dtype=np.float64)
    moved[:2, 2] += 0.5
    return moved


def rescale(intrinsics: np.ndarray, scale_x: float, scale_y: float) -> np.ndarray:
    """Intrinsics [3, 3] of the same picture, scale_x as wide and scale_y as high."""
    return np.diag([scale_x, scale_y, 1.0]) @ intrinsics


def invert(pose: np.ndarray) -> np.ndarray:
    """The inverse [4, 4] of a rigid pose, by transposition."""
    out = np.eye(4)
    out[:3, :3] = pose[:3, :3].T
    out[:3, 3] = -pose[:3, :3].T @ pose[:3, 3]
    return out


def is_rotation(rotation: np.ndarray) -> bool:
    """Whether [3, 3] is a rotation, but for rounding in a file (1e-2)."""
    if not np.isfinite(rotation).all():
        return False
    return bool(np.abs(rotation @ rotation.T - np.eye(3)).max() < ROTATION_TOLERANCE and np.linalg.det(rotation) > 0)


@lru_cache(maxsize=CACHED_CAMERAS)
def check_camera(camera: Camera, what: str) -> Camera:
    """The camera with its rotation made exact; InputError naming `what` when pose or intrinsics are none."""
    pose, k = np.asarray(camera.cam_from_world, np.float64), np.asarray(camera.intrinsics, np.float64)
    if pose.shape != (4, 4) or not np.isfinite(pose).all() or not is_rotation(pose[:3, :3]):
        raise InputError(
            f"the pose of {what} is no rotation with translation; expected a rigid 4 x 4 cam_from_world matrix"
        )
    if k.shape != (3, 3) or not np.isfinite(k).all() or min(k[0, 0], k[1, 1]) <= 0:
        raise InputError(
            f"the intrinsics of {what} do not describe a pinhole camera; expected positive focal lengths in pixels"
        )
    u, _, vt = np.linalg.svd(pose[:3, :3])
    exact = np.eye(4)
    exact[:3, :3], exact[:3, 3] = u @ vt, pose[:3, 3]
    return Camera(k, exact, camera.width, camera.height)


def fit_intrinsics(camera: Camera, width: int, height: int, path: Path) -> np.ndarray:
    """Intrinsics [3, 3] in pixels of the picture as it is; InputError where its shape is not the camera's."""
    if (width, height) == (camera.width, camera.height):
        return camera.intrinsics
    if abs(width * camera.height / (height * camera.width) - 1) > SIZE_TOLERANCE:
        raise InputError(
            f"{path} has {width} x {height} pixels, but its camera is for {camera.width} x {camera.height}; "
            "expected the pictures that the cameras belong to"
        )
    return rescale(camera.intrinsics, width / camera.width, height / camera.height)


def nearest(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """An array [h, w, ...] at another size, the value of the nearest pixel centre: nothing is mixed across edges."""
    if values.shape[:2] == (height, width):
        return values
    rows = ((np.arange(height) + 0.5) * values.shape[0] / height).astype(np.int64)
    columns = ((np.arange(width) + 0.5) * values.shape[1] / width).astype(np.int64)
    return values[rows[:, None], columns]


def no_depth(height: int, width: int) -> np.ndarray:
    """Depth [height, width] that is nowhere known: one zero in memory (strides 0), read-only."""
    return np.broadcast_to(np.float32(0), (height, width))


def without_unknown(depth: np.ndarray) -> tuple[np.ndarray, int]:
    """Depth with 0 wherever it is not finite or negative, and at how many pixels it was not finite."""
    known = np.isfinite(depth)
    count = depth.size - int(known.sum())
    if count or bool((depth < 0).any()):
        depth = np.where(known & (depth > 0), depth, 0).astype(np.float32)
    return depth, count
