"""Data sets on disk: scenes of posed pictures, read one view at a time.

Conventions of all sets: OpenCV axes, `cam_from_world`, z-depth with 0 where unknown, intrinsics in pixels
with the centre of the top-left pixel at (0.5, 0.5).
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import numpy as np

from lean3r.data.sets.formats.files import naming, present, read_image
from lean3r.data.sets.formats.maps import nearest, no_depth
from lean3r.errors import InputError

CACHED_SCENES = 64
CACHED_CAMERAS = 8192
SIZE_TOLERANCE = 0.02
MAP_TOLERANCE = 0.05  # maps of networks have sides that are multiples of a patch
ROTATION_TOLERANCE = 1e-2
_SHOWN = 3


@dataclass(frozen=True)
class SceneInfo:
    """Information about a scene without its pictures: `id`, unique in the set, and the number of its views."""

    id: str
    views: int


@dataclass(frozen=True, eq=False)
class Camera:
    """intrinsics [3, 3] float64 in pixels of a width x height picture, cam_from_world [4, 4] float64."""

    intrinsics: np.ndarray
    cam_from_world: np.ndarray
    width: int
    height: int


@dataclass(frozen=True, eq=False)
class RawView:
    """One view as stored in a set: image [H, W, 3] uint8, depth [H, W] float32 z-depth (unknown where it is 0 or not
    finite), intrinsics [3, 3] and cam_from_world [4, 4] float64, normals [H, W, 3] float32 unit in camera
    axes, towards the camera, 0 where unknown (None: the set has none)."""

    image: np.ndarray
    depth: np.ndarray
    intrinsics: np.ndarray
    cam_from_world: np.ndarray
    normals: np.ndarray | None = None


class SceneSet(ABC):
    """A data set: a sequence of scenes, each a sequence of views.

    name: its name in DATASETS; title: its usual name; licence and source: its terms and where to get it, for
    `lean3r data list`; layout: the files in a root, in one line; is_metric: whether lengths are metres; has_depth,
    has_normals: whether views have them; has_poses: whether their poses are known (where not, they are the identity,
    and the set is for scoring depth alone); is_ordered: whether views are consecutive, as in a video. A set is made
    from its root folder, `Kind(root, ...)`; it holds paths but no large data, and can be pickled. It has only complete
    scenes; InputError if there is none.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    licence: str
    source: str
    layout: ClassVar[str]
    is_metric: bool = False
    has_depth: bool = True
    has_normals: bool = False
    has_poses: bool = True
    is_ordered: bool = False

    @property
    def label(self) -> str:
        """The name of a set that samples bear, for logs and losses: that of the original set if this is a copy."""
        return self.name

    @abstractmethod
    def __len__(self) -> int:
        """Number of scenes."""

    @abstractmethod
    def scene(self, index: int) -> SceneInfo:
        """Name and number of views of a scene; InputError if its files cannot be read."""

    @abstractmethod
    def camera(self, scene: int, view: int) -> Camera:
        """The camera of a view, without reading its picture; InputError if it is invalid."""

    @abstractmethod
    def view(self, scene: int, view: int) -> RawView:
        """Read one view; InputError if a file is missing or damaged."""

    def scene_id(self, index: int) -> str:
        """Name of a scene, also of one whose files cannot be read."""
        return self.scene(index).id

    def covisibility(self, scene: int) -> np.ndarray | None:
        """Scores [V, V] of the overlap of two views, larger is more; None if the set's files have no such scores."""
        return None

    def depth_range(self, scene: int, view: int, as_released: bool) -> tuple[float, float] | None:
        """(nearest, farthest) depth of a view as its camera file states it, or as Lite3R's release reads that file;
        None if the set's files have no such range."""
        return None

    def view_name(self, scene: int, view: int) -> str:
        """Name of a view, unique in its scene and the same in every run; without a suffix, perhaps with folders (/)."""
        return f"{view:06d}"

    def cloud(self, scene: int) -> np.ndarray | None:
        """Ground-truth points [N, 3] float64 of the scene's surface in the world of its cameras; None if the set's
        files have none. InputError if the file cannot be read, MissingExtraError without trimesh."""
        return None

    def time_s(self, scene: int, view: int) -> float | None:
        """Time of a view in seconds, by the clock of the set's files; None if they have no times."""
        return None

    def gaps(self, scene: int) -> list[str]:
        """Sentences for what the files of a scene lack, such as pictures that its cameras name; by default none."""
        return []

    def doubt(self, scene: int, view: int, read: RawView) -> str:
        """Why a view that was read contradicts other files of the set; by default, and if it does not, empty."""
        return ""

    def candidates(self, views: int, height: int, width: int) -> np.ndarray | None:
        """Indices of the scenes that suit a batch of this shape; None if the set has no such list."""
        return None

    @classmethod
    @abstractmethod
    def looks_like(cls, root: Path) -> bool:
        """Whether a folder looks like this layout, complete or not; cheap, and never raises."""

    @classmethod
    def problems(cls, root: Path) -> list[str]:
        """Sentences for what is missing or wrong below `root`; empty if nothing is. Never raises because of its files.

        `lean3r data check` adds views that cannot be read and invalid cameras. By default, only whether there is
        anything of this layout; override it to report more.
        """
        return [] if cls.looks_like(root) else [f"{root} has no {cls.title}"]


@dataclass(frozen=True, eq=False)
class Frame:
    """The files of one view, its camera, and its time. A set that needs more about a view adds fields in a subclass."""

    image: Path
    camera: Camera
    depth: Path | None = None
    time_s: float | None = None


F = TypeVar("F", bound=Frame)


class FolderSet(SceneSet, Generic[F]):
    """A set of picture files in folders; a subclass defines its scenes and their frames.

    `parts`: the files and folders of a complete scene, first the one that distinguishes it from other sets.
    `places(root)`: folders that may be scenes, by default those in the root with the first part. `missing(place)`: why
    a folder is not a scene, by default its missing parts. `incomplete(place)`: what is wrong with an otherwise complete
    scene, by default nothing. `looks_like`, `find_scenes` and `problems` use these; a set whose scenes are not folders
    overrides all three.

    `frames(id)` reads the cameras of a scene; frames whose picture or map is not there are left out.
    `read_depth(frame)` reads depth [h, w], 0 where unknown. Depth of another size than the picture is resized to it, by
    the nearest pixel.
    """

    parts: ClassVar[tuple[str, ...]] = ()

    def __init__(self, root: str | Path, scenes: Sequence[str] | None = None) -> None:
        self.root = Path(root)
        self.ids = list(self.find_scenes(self.root) if scenes is None else scenes)
        if not self.ids:
            problems = self.problems(self.root) if self.root.is_dir() else [f"{self.root} is not a folder"]
            raise InputError(
                f"no {self.title} scene in {self.root}: {first_few(problems)}. Expected: {self.layout}. "
                f"Where to get it: {self.source}"
            )
        self._frames: OrderedDict[int, Sequence[F]] = OrderedDict()
        self._left_out: dict[int, int] = {}  # of each scene that was read: views without their files

    @classmethod
    def places(cls, root: Path) -> Iterable[Path]:
        """Folders below a root that may be scenes, complete or not, in a fixed order; cheap."""
        return (folder for folder in folders(root) if cls.parts and (folder / cls.parts[0]).exists())

    @classmethod
    def with_any_part(cls, places: Iterable[Path]) -> list[Path]:
        """The folders of `places` with at least one part of a scene."""
        return [place for place in places if any((place / part).exists() for part in cls.parts)]

    @classmethod
    def missing(cls, place: Path) -> list[str]:
        """Sentences for missing parts of a scene; empty for a complete one. Cheap."""
        return [f"{place / part} is missing" for part in cls.parts if not (place / part).exists()]

    @classmethod
    def incomplete(cls, place: Path) -> list[str]:
        """Sentences for what is missing or wrong within an otherwise complete scene."""
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
        """Sentences for what is missing or wrong in each folder that may be a scene, or for their absence."""
        places = list(cls.places(root))
        if not places:
            return [f"{root} has no {cls.title} scene"]
        return [what for place in places for what in cls.missing(place) or cls.incomplete(place)]

    @abstractmethod
    def frames(self, scene: str) -> Sequence[F]:
        """The frames of one scene, in order; InputError if its files cannot be read."""

    def read_depth(self, frame: F) -> np.ndarray:
        """Depth [h, w] float32 of a frame whose `depth` is not None."""
        raise InputError(f"{self.title} has no depth, but the frame {frame.image.name} has a depth file")

    def __len__(self) -> int:
        return len(self.ids)

    def scene_id(self, index: int) -> str:
        """The scene's folder, relative to the root."""
        return self.ids[index]

    def scene(self, index: int) -> SceneInfo:
        """Name and number of views of a scene."""
        return SceneInfo(self.ids[index], len(self._frames_of(index)))

    def camera(self, scene: int, view: int) -> Camera:
        """The camera of a view; InputError if its pose or intrinsics are invalid."""
        frame = self._frames_of(scene)[view]
        return check_camera(frame.camera, f"{self.ids[scene]}, {frame.image.name}")

    def gaps(self, scene: int) -> list[str]:
        """See SceneSet, `incomplete`, and the views that are left out."""
        place, left = self.root / self.ids[scene], self.scene(scene).views
        gone = self._left_out[scene]
        lost = [f"{gone} of {gone + left} views of {place} lack their picture or map"] if gone else []
        return self.incomplete(place) + lost

    def view_name(self, scene: int, view: int) -> str:
        """The picture's file name without its suffix, with the folders that distinguish it where names repeat."""
        return picture_names(tuple(frame.image for frame in self._frames_of(scene)))[view]

    def time_s(self, scene: int, view: int) -> float | None:
        """Time of a view in seconds, if its frame has one."""
        return self._frames_of(scene)[view].time_s

    def view(self, scene: int, view: int) -> RawView:
        """Read one view. The camera is scaled to the size of the picture; InputError for another aspect ratio."""
        frame, camera = self._frames_of(scene)[view], self.camera(scene, view)
        image = read_image(frame.image)
        height, width = image.shape[:2]
        intrinsics = fit_intrinsics(camera, width, height, frame.image)
        return RawView(image, self.depth_of(frame, height, width), intrinsics, camera.cam_from_world)

    def depth_of(self, frame: F, height: int, width: int) -> np.ndarray:
        """Depth [height, width] of a frame, unknown without a file; InputError for a map of another aspect ratio."""
        if frame.depth is None:
            return no_depth(height, width)
        depth = self.read_depth(frame)
        if not _same_aspect(depth.shape[1], depth.shape[0], width, height, MAP_TOLERANCE):
            raise InputError(
                f"{frame.depth} has {depth.shape[1]} x {depth.shape[0]} pixels for a picture of {width} x {height}; "
                "expected a map of the whole picture, held in the same way"
            )
        return nearest(depth, height, width)

    def _frames_of(self, index: int) -> Sequence[F]:
        frames = self._frames.get(index)  # read once: another thread may evict it at any time
        if frames is None:
            with naming(self.root / self.ids[index]):
                named = self.frames(self.ids[index])
                frames = _complete(named)
                self._left_out[index] = len(named) - len(frames)
                self._frames[index] = frames
            while len(self._frames) > CACHED_SCENES:
                self._frames.popitem(last=False)
        return frames

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_frames": OrderedDict()}


def _complete(frames: Sequence[F]) -> list[F]:
    """The frames whose files are there; InputError if that is none of them."""
    wanted = [path for frame in frames for path in (frame.image, frame.depth) if path is not None]
    there = present(wanted)
    found = [frame for frame in frames if frame.image in there and (frame.depth is None or frame.depth in there)]
    if not found:
        absent = [path for path in wanted if path not in there]
        raise InputError(f"none of {len(frames)} views has its files; missing: {first_few(absent)}")
    return found


def first_few(items: Sequence[object]) -> str:
    """The first few items of a list as text, and the number of the others."""
    more = f", and {len(items) - _SHOWN:,} more" if len(items) > _SHOWN else ""
    return "; ".join(str(x) for x in items[:_SHOWN]) + more


def folders(root: Path) -> list[Path]:
    """Sorted folders directly below `root`, without hidden ones; empty if `root` does not exist."""
    return sorted(p for p in root.iterdir() if p.is_dir() and p.name[0] != ".") if root.is_dir() else []


@lru_cache(maxsize=CACHED_SCENES)
def picture_names(paths: tuple[Path, ...]) -> tuple[str, ...]:
    """Names of pictures: stems if they differ, otherwise paths below the common folder, with suffixes if need be."""
    stems = tuple(path.stem for path in paths)
    if len(set(stems)) == len(paths):
        return stems
    common = Path(os.path.commonpath([path.parent for path in paths]))
    below = [path.relative_to(common) for path in paths]
    names = tuple(path.with_suffix("").as_posix() for path in below)
    return names if len(set(names)) == len(paths) else tuple(path.as_posix() for path in below)


def pinhole(fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    """Intrinsics [3, 3] float64; the principal point is relative to the picture's corner (pixel centres at 0.5)."""
    return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def from_integer_centres(intrinsics: np.ndarray) -> np.ndarray:
    """Convert intrinsics [3, 3] of a set with the centre of the top-left pixel at (0, 0): adds half a pixel."""
    moved = np.array(intrinsics, dtype=np.float64)
    moved[:2, 2] += 0.5
    return moved


def rescale(intrinsics: np.ndarray, scale_x: float, scale_y: float) -> np.ndarray:
    """Intrinsics [3, 3] of the picture scaled by scale_x in width and scale_y in height."""
    return np.diag([scale_x, scale_y, 1.0]) @ intrinsics


def invert(pose: np.ndarray) -> np.ndarray:
    """Inverse [4, 4] of a rigid pose, by transposition."""
    out = np.eye(4)
    out[:3, :3] = pose[:3, :3].T
    out[:3, 3] = -pose[:3, :3].T @ pose[:3, 3]
    return out


def is_rotation(rotation: np.ndarray) -> bool:
    """Whether [3, 3] is a rotation, up to rounding in a file (1e-2)."""
    if not np.isfinite(rotation).all():
        return False
    return bool(np.abs(rotation @ rotation.T - np.eye(3)).max() < ROTATION_TOLERANCE and np.linalg.det(rotation) > 0)


@lru_cache(maxsize=CACHED_CAMERAS)
def check_camera(camera: Camera, what: str) -> Camera:
    """The camera with an exact rotation; InputError with `what` in its message if pose or intrinsics are invalid."""
    pose, k = np.asarray(camera.cam_from_world, np.float64), np.asarray(camera.intrinsics, np.float64)
    if pose.shape != (4, 4) or not np.isfinite(pose).all() or not is_rotation(pose[:3, :3]):
        raise InputError(
            f"the pose of {what} is not a rotation and translation; expected a rigid 4 x 4 cam_from_world matrix"
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
    """Intrinsics [3, 3] in pixels of a width x height picture; InputError if its aspect ratio is not the camera's."""
    check_size(width, height, camera.width, camera.height, path)
    if (width, height) == (camera.width, camera.height):
        return camera.intrinsics
    return rescale(camera.intrinsics, width / camera.width, height / camera.height)


def check_size(width: int, height: int, stated_width: int, stated_height: int, path: Path) -> None:
    """Raise InputError if a picture's aspect ratio is not the one that its camera states."""
    if not _same_aspect(width, height, stated_width, stated_height, SIZE_TOLERANCE):
        raise InputError(
            f"{path} has {width} x {height} pixels, but its camera is for {stated_width} x {stated_height}; "
            "expected the pictures for which the cameras were made"
        )


def _same_aspect(width: int, height: int, other_width: int, other_height: int, tolerance: float) -> bool:
    return abs(width * other_height / (height * other_width) - 1) <= tolerance
