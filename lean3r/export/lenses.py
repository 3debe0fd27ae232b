"""Cameras for other programs: the lenses of the original pictures, or the pinhole cameras of undistorted ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from lean3r.errors import UsageError
from lean3r.export.names import safe_stems, unique_names
from lean3r.export.options import ExportOptions
from lean3r.geometry.lens import colmap_camera, slopes_at
from lean3r.types import Lens, Reconstruction, Source

if TYPE_CHECKING:
    from lean3r.colmap_library import pycolmap

KEPT_SUFFIXES = (".jpg", ".jpeg", ".png")  # every program opens these; undistorted pictures of other kinds become PNG
PINHOLES = ("SIMPLE_PINHOLE", "PINHOLE")


@dataclass(frozen=True)
class Camera:
    """A lens and the size of its pictures in pixels."""

    lens: Lens
    width: int
    height: int


@dataclass(frozen=True)
class CameraTable:
    """Name and camera of each view's picture as written.

    View v has the name `names[v]` and the camera `cameras[camera_of[v]]`. If pictures are undistorted, `before` has the
    cameras of the originals [S]; otherwise it is empty.
    """

    names: tuple[str, ...]
    cameras: tuple[Camera, ...]
    camera_of: tuple[int, ...]
    before: tuple[Camera, ...] = ()

    def of(self, view: int) -> Camera:
        """The camera of a view's picture as written."""
        return self.cameras[self.camera_of[view]]

    def map_pixels(self, view: int, xy: np.ndarray) -> np.ndarray:
        """Map pixels [N, 2] of a view's original picture to the picture as written."""
        if not self.before or self.before[view] == self.of(view):
            return xy
        old, new = self.before[view], self.of(view)
        rays = np.asarray(colmap_camera(old.lens, old.width, old.height).cam_from_img(xy.astype(np.float64)))
        rays = np.concatenate([rays.reshape(-1, 2), np.ones((len(xy), 1))], axis=1)
        return np.asarray(colmap_camera(new.lens, new.width, new.height).img_from_cam(rays)).reshape(-1, 2)


def camera_table(reconstruction: Reconstruction, options: ExportOptions) -> CameraTable:
    """The cameras to write: those of the refined lenses if there are any; views with equal lenses share one.

    `shared_camera` requires one for all: equal refined lenses, or the median of the pinholes. The errors are those of
    `check`.
    """
    sources = reconstruction.sources
    check(options, sources, reconstruction.lenses)
    views = [Camera(lens, s.width, s.height) for lens, s in zip(_lenses(reconstruction, options), sources, strict=True)]
    names = written_names(reconstruction.names, undistorted=options.undistort)
    share = bool(reconstruction.lenses) or options.shared_camera
    if not options.undistort:
        return _number_cameras(names, views, share)
    straight = {camera: undistort_camera(camera, math.lcm(*options.image_factors)) for camera in set(views)}
    table = _number_cameras(names, [straight[camera] for camera in views], share)
    return CameraTable(table.names, table.cameras, table.camera_of, tuple(views))


def written_names(names: Iterable[str], *, undistorted: bool) -> list[str]:
    """The names of the pictures in images/. Undistorted ones are of kinds that every program opens, differ in more
    than their folder and their kind, and have a single dot: trainers look for them by the last part of a name, convert
    them to PNG, and pair both by their order."""
    if not undistorted:
        return unique_names(names)
    names = list(names)
    return [stem + _kept_suffix(name) for stem, name in zip(safe_stems(map(_flat, names)), names, strict=True)]


def check(options: ExportOptions, sources: Sequence[Source], lenses: Sequence[Lens | None]) -> None:
    """UsageError if one camera is asked for, and the pictures differ in size or, as far as they are known, in their
    lenses."""
    if not options.shared_camera:
        return
    if len(sizes := sorted({(s.width, s.height) for s in sources})) > 1:
        listed = ", ".join(f"{w}x{h}" for w, h in sizes[:4])
        raise UsageError(
            f"one shared camera needs pictures of one size; got {listed}. Omit --shared-camera (shared_camera=True)."
        )
    if len(known := set(lenses) - {None}) > 1:
        raise UsageError(
            f"one shared camera needs one lens; the views have {len(known)}. Refine with --share-lens always and "
            "without known lenses, or omit --shared-camera (shared_camera=True)."
        )


def undistort_camera(camera: Camera, step: int = 1) -> Camera:
    """The pinhole camera for undistorted pictures, of a size without empty pixels.

    Sides are multiples of `step` if that costs less than a fiftieth of them. Intrinsics of pictures scaled down by a
    factor of `step` are then exact, however a program rounds sizes. Where the lens bends nothing, whole pixels are cut
    off, and nothing else changes.
    """
    from lean3r.colmap_library import pycolmap

    lens = colmap_camera(camera.lens, camera.width, camera.height)
    bends = not lens.is_undistorted()
    if bends:
        lens = _ahead(camera) or pycolmap.undistort_camera(pycolmap.UndistortCameraOptions(), lens)
    elif lens.model.name not in PINHOLES:  # trainers refuse other models, whatever their parameters are
        fx, fy, cx, cy = lens.calibration_matrix()[[0, 1, 0, 1], [0, 1, 2, 2]]
        lens = pycolmap.Camera(model="PINHOLE", width=lens.width, height=lens.height, params=[fx, fy, cx, cy])
    width, height = (n - n % step if 50 * (n % step) < n else n for n in (lens.width, lens.height))
    left, top = (lens.width - width) / 2, (lens.height - height) / 2  # opposite sides are cropped equally
    if not bends:
        left, top = left // 1, top // 1
    *focal, cx, cy = (float(p) for p in lens.params)
    return Camera(Lens(lens.model.name, (*focal, cx - left, cy - top)), width, height)


def _ahead(camera: Camera) -> pycolmap.Camera | None:
    """As pycolmap.undistort_camera, for a lens that sees 90 degrees and more from its axis in the corners of the
    picture, which it takes for the other side: by the parts of the sides that are ahead. None for any other lens."""
    from lean3r.colmap_library import pycolmap

    width, height = camera.width, camera.height
    rows, cols = np.arange(height) + 0.5, np.arange(width) + 0.5
    sides = [np.column_stack([np.full(height, x), rows]) for x in (0.5, width - 0.5)]
    sides += [np.column_stack([cols, np.full(width, y)]) for y in (0.5, height - 0.5)]
    slopes = [slopes_at(camera.lens, width, height, side) for side in sides]
    if all(np.isfinite(each).all() for each in slopes) or any(np.isnan(each).all() for each in slopes):
        return None
    limits, lens = pycolmap.UndistortCameraOptions(), colmap_camera(camera.lens, width, height)
    fx, fy, cx, cy = lens.calibration_matrix()[[0, 1, 0, 1], [0, 1, 2, 2]]
    found = []
    for axis, (length, focal, centre) in enumerate(((width, fx, cx), (height, fy, cy))):
        before, behind = focal * -np.nanmax(slopes[2 * axis][:, axis]), focal * np.nanmin(slopes[2 * axis + 1][:, axis])
        scale = min(before / centre, behind / (length - 0.5 - centre))
        side = max(1, int(np.clip(scale, limits.min_scale, limits.max_scale) * length))
        found.append((side, centre * side / length))
    (across, x), (down, y) = found
    return pycolmap.Camera(model="PINHOLE", width=across, height=down, params=[fx, fy, x, y])


def _lenses(reconstruction: Reconstruction, options: ExportOptions) -> tuple[Lens, ...]:
    if reconstruction.lenses:
        return reconstruction.lenses
    matrices = reconstruction.original_intrinsics
    if options.shared_camera:
        matrices = np.broadcast_to(np.median(matrices, axis=0), matrices.shape)
    return tuple(Lens("PINHOLE", tuple(float(x) for x in k[[0, 1, 0, 1], [0, 1, 2, 2]])) for k in matrices)


def _number_cameras(names: list[str], views: list[Camera], share: bool) -> CameraTable:
    if not share:  # each predicted view has its own camera, even if two are equal by chance
        return CameraTable(tuple(names), tuple(views), tuple(range(len(views))))
    table = list(dict.fromkeys(views))
    return CameraTable(tuple(names), tuple(table), tuple(table.index(camera) for camera in views))


def _flat(name: str) -> str:
    return PurePosixPath(name.replace("/", "_")).stem.replace(".", "_")


def _kept_suffix(name: str) -> str:
    suffix = PurePosixPath(name).suffix
    return suffix if suffix.lower() in KEPT_SUFFIXES else ".png"
