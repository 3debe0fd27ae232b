"""Known cameras in lean3r's conventions (docs/conventions.md), and which of them is of which picture."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from lean3r.errors import InputError
from lean3r.geometry.lens import move_lens, pinhole_part, scale_lens
from lean3r.inputs.camera_checks import check_intrinsics, check_lens, rigid
from lean3r.inputs.listing import IMAGE_SUFFIXES

if TYPE_CHECKING:  # who reads cameras without lenses needs no torch
    from lean3r.inputs.trajectory import Trajectory
    from lean3r.types import Lens

logger = logging.getLogger("lean3r")

ASPECT_TOLERANCE = 0.01  # scaling keeps the aspect ratio, except for rounding to whole pixels
NO_FIT, SCALED_FIT, EXACT_FIT = range(3)
SHOWN_NAMES = 3


@dataclass(frozen=True, eq=False)
class GivenCamera:
    """One picture's camera; unknown parts are None: intrinsics [3, 3] in pixels of a picture of width x height,
    cam_from_world [4, 4], both float64. `name` is the picture's, perhaps with folders. `lens` is the whole camera if
    its distortion is known too (even if it is zero); `intrinsics` are then its pinhole part."""

    name: str
    width: int | None = None
    height: int | None = None
    intrinsics: np.ndarray | None = None
    cam_from_world: np.ndarray | None = None
    lens: Lens | None = None

    def __post_init__(self) -> None:
        if self.lens is not None:
            check_lens(self.lens, self.name)
            if self.intrinsics is None:
                object.__setattr__(self, "intrinsics", pinhole_part(self.lens))
        if self.intrinsics is not None:
            object.__setattr__(self, "intrinsics", np.asarray(self.intrinsics, np.float64))
            check_intrinsics(self.intrinsics, self.name)
        if self.cam_from_world is not None:
            pose = np.asarray(self.cam_from_world, np.float64)
            object.__setattr__(self, "cam_from_world", rigid(pose, self.name))

    def intrinsics_of(self, width: int, height: int) -> np.ndarray | None:
        """Intrinsics [3, 3] in pixels of this picture at another size; InputError if the aspect ratio differs."""
        if self.intrinsics is None:
            return None
        return np.diag([*self._factors(width, height), 1.0]) @ self.intrinsics

    def lens_of(self, width: int, height: int) -> Lens | None:
        """The lens for this picture at another size; InputError if the aspect ratio differs."""
        return None if self.lens is None else scale_lens(self.lens, *self._factors(width, height))

    def without_bars(self, bars: tuple[int, int, int, int] | None, width: int, height: int) -> GivenCamera:
        """The camera of a video's frame of width x height, of which `bars` (left, top, right, lower) were cut off, if
        this one is of the whole frame; else itself. Without a size it is of the one whose middle is nearer."""
        if bars is None or self.intrinsics is None:
            return self
        left, top, right, lower = bars
        whole = width + left + right, height + top + lower
        if self.width and self.height:
            is_of_whole = (self.width, self.height) != (width, height) and self._fits(*whole)
        else:
            away = [np.linalg.norm(self.intrinsics[:2, 2] - np.array(size) / 2) for size in (whole, (width, height))]
            is_of_whole = away[0] <= away[1]
        if not is_of_whole:
            return self
        matrix, lens = self.intrinsics_of(*whole), self.lens_of(*whole)
        assert matrix is not None
        matrix[:2, 2] -= left, top
        return replace(self, width=width, height=height, intrinsics=matrix, lens=lens and move_lens(lens, left, top))

    def _fits(self, width: int, height: int) -> bool:
        assert self.width and self.height
        return abs(width / height * self.height / self.width - 1) <= ASPECT_TOLERANCE

    def _factors(self, width: int, height: int) -> tuple[float, float]:
        if not self.width or not self.height:
            return 1.0, 1.0
        if not self._fits(width, height):
            is_turned = self._fits(height, width)
            why = "turned: the program that made it ignored the EXIF orientation" if is_turned else "cropped"
            raise InputError(
                f"the camera of {self.name} is for {self.width}x{self.height} pixels, the picture has {width}x{height}"
                f" ({why}). Use the pictures that the cameras were made for."
            )
        return width / self.width, height / self.height


@dataclass(frozen=True, eq=False)
class GivenCameras:
    """Cameras of one scene. `origin` says where they come from, `is_metric` whether lengths are in metres. `shared` are
    the intrinsics of all pictures without their own; `trajectory` gives poses by time. `kinds` are those of a result
    with undistorted pictures: of the pictures as they were, if it tells, and of the undistorted ones."""

    cameras: tuple[GivenCamera, ...] = ()
    origin: str = "the given cameras"
    is_metric: bool = False
    shared: GivenCamera | None = None
    trajectory: Trajectory | None = None
    kinds: tuple[GivenCameras, ...] = ()

    def for_sizes(self, names: Sequence[str], sizes: Sequence[tuple[int, int]]) -> GivenCameras:
        """Of the `kinds` the one made for pictures of these sizes (width, height). InputError if none is, or two."""
        if not self.kinds:
            return self
        fits = [kind._fit(names, sizes) for kind in self.kinds]
        found = [kind for kind, fit in zip(self.kinds, fits, strict=True) if fit == max(fits)]
        if max(fits) > NO_FIT and len(found) == 1:
            return found[0]
        width, height = sizes[0]
        made = " and ".join(f"{kind.origin} {kind.cameras[0].width}x{kind.cameras[0].height}" for kind in self.kinds)
        raise InputError(
            f"{self.origin} was written with --undistort, and {'both' if max(fits) > NO_FIT else 'none'} of its "
            f"cameras may be of these pictures: {names[0]} has {width}x{height} pixels, {made}. Name the file of the "
            "cameras instead of the folder, or use the pictures that they were made for."
        )

    def _fit(self, names: Sequence[str], sizes: Sequence[tuple[int, int]]) -> int:
        """How well all pictures have the sizes of their cameras: EXACT_FIT, SCALED_FIT to within a pixel, or NO_FIT,
        also if none has a camera."""
        pairs = zip(self._cameras_of(names), sizes, strict=True)
        return min((_size_fit(camera, *size) for camera, size in pairs if camera is not None), default=NO_FIT)

    def match(self, names: Sequence[str], times_s: Sequence[float | None] = ()) -> list[GivenCamera | None]:
        """The camera of each picture, None where there is none.

        A picture and a camera match if their paths end alike (a.jpg and images/a.jpg); a camera name without an image
        suffix matches any suffix, and so does that of a picture that was converted since. Poses of a trajectory are
        matched by `times_s`, the times of video frames in seconds, or by numbers in the names (Trajectory.match).
        Pictures and cameras without a match are logged. InputError if nothing matches, or a name matches more than one.
        """
        cameras: list[GivenCamera | None] = [None] * len(names)
        if self.trajectory is not None:
            poses = self.trajectory.match(names, times_s, self.origin)
            cameras = [
                None if pose is None else GivenCamera(name, cam_from_world=pose)
                for name, pose in zip(names, poses, strict=True)
            ]
        elif self.cameras:
            cameras = self._by_name(names)
        if self.cameras or self.trajectory:
            without = [name for name, camera in zip(names, cameras, strict=True) if camera is None]
            if without:
                logger.warning(
                    "%d of %d views have no camera in %s: %s", len(without), len(names), self.origin, _some(without)
                )
        if self.shared is None:
            return cameras
        return [self._with_shared(name, camera) for name, camera in zip(names, cameras, strict=True)]

    def _with_shared(self, name: str, camera: GivenCamera | None) -> GivenCamera:
        assert self.shared is not None
        if camera is None:
            return replace(self.shared, name=name)
        return (
            camera
            if camera.intrinsics is not None
            else replace(self.shared, name=name, cam_from_world=camera.cam_from_world)
        )

    def _by_name(self, names: Sequence[str]) -> list[GivenCamera | None]:
        cameras = self._cameras_of(names)
        taken: dict[str, str] = {}
        for name, camera in zip(names, cameras, strict=True):
            if camera is not None and taken.setdefault(camera.name, name) != name:
                raise InputError(
                    f"{self.origin} has one camera {camera.name} for both {taken[camera.name]} and {name}. "
                    "Include the folders in the cameras' names."
                )
        if not taken:
            raise InputError(
                f"no camera of {self.origin} matches a picture by file name. Pictures: {_some(names)}; "
                f"cameras: {_some([c.name for c in self.cameras])}. Rename one or the other."
            )
        unused = [camera.name for camera in self.cameras if camera.name not in taken]
        if unused:
            logger.info("%d cameras of %s match no view: %s", len(unused), self.origin, _some(unused))
        return cameras

    def _cameras_of(self, names: Sequence[str]) -> list[GivenCamera | None]:
        """The camera of each picture by its name, by its name without a suffix, or else one of no other picture, whose
        name differs by the suffix alone."""
        by_last, by_stem = defaultdict(list), defaultdict(list)
        for camera in self.cameras:
            by_last[PurePosixPath(camera.name).name].append(camera)
        found = []
        for name in names:
            path = PurePosixPath(name)
            fitting = [c for c in by_last[path.name] if _end_alike(path, PurePosixPath(c.name))]
            fitting = [c for c in fitting if c.name == name] or fitting
            if not fitting and (bare := _bare(name)) is not None:
                fitting = [c for c in by_last[bare.name] if _end_alike(bare, PurePosixPath(c.name))]
            found.append(self._only(name, fitting))
        claimed = {camera.name for camera in found if camera is not None}
        for camera in self.cameras:
            if camera.name not in claimed and (bare := _bare(camera.name)) is not None:
                by_stem[bare.name].append((bare, camera))
        for i, name in enumerate(names):
            if found[i] is None and (bare := _bare(name)) is not None:
                found[i] = self._only(name, [c for other, c in by_stem[bare.name] if _end_alike(bare, other)])
        return found

    def _only(self, name: str, fitting: Sequence[GivenCamera]) -> GivenCamera | None:
        """The camera that fits a picture, None if none does; InputError if several do."""
        if len(fitting) > 1 and len({c.name for c in fitting}) == 1:
            raise InputError(f"{self.origin} lists {fitting[0].name} {len(fitting)} times; leave one of them.")
        if len(fitting) > 1:
            raise InputError(
                f"{name} matches several cameras of {self.origin}: {_some([c.name for c in fitting])}. "
                "Give the pictures as folders whose names tell them apart."
            )
        return fitting[0] if fitting else None


def _bare(name: str) -> PurePosixPath | None:
    """The path of a picture without its suffix; None if it has no suffix of a picture."""
    path = PurePosixPath(name)
    return path.with_suffix("") if path.suffix.lower() in IMAGE_SUFFIXES else None


def _end_alike(a: PurePosixPath, b: PurePosixPath) -> bool:
    return all(x == y for x, y in zip(reversed(a.parts), reversed(b.parts), strict=False))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more


def _size_fit(camera: GivenCamera, width: int, height: int) -> int:
    if not camera.width or not camera.height:
        return NO_FIT
    if (camera.width, camera.height) == (width, height):
        return EXACT_FIT
    off = abs(width * camera.height / camera.width - height), abs(height * camera.width / camera.height - width)
    return SCALED_FIT if min(off) <= 1 else NO_FIT
