"""Cameras with distortion: rays through the pixels of network images, and back, for any camera model of COLMAP.

pycolmap implements the models and is imported when a lens is used; pinholes need only numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # the refining process needs no torch
    from lean3r.colmap_library import pycolmap
    from lean3r.types import Lens, Reconstruction, Source

# Number of focal lengths at the start of a COLMAP model's parameters, and of unitless coefficients after the principal
# point. No fisheyes: a pinhole does not approximate them.
LENSES = {
    "SIMPLE_PINHOLE": (1, 0),
    "PINHOLE": (2, 0),
    "SIMPLE_RADIAL": (1, 1),
    "RADIAL": (1, 2),
    "OPENCV": (2, 4),
    "FULL_OPENCV": (2, 8),
    "FOV": (2, 1),
    "SIMPLE_DIVISION": (1, 1),
    "DIVISION": (2, 1),
}


def colmap_camera(lens: Lens, width: int, height: int, camera_id: int = 1) -> pycolmap.Camera:
    """The lens as a camera of pycolmap for pictures of width x height pixels."""
    from lean3r.colmap_library import pycolmap

    return pycolmap.Camera(
        camera_id=camera_id, model=lens.model, width=width, height=height, params=np.array(lens.params)
    )


def slopes_at(lens: Lens, width: int, height: int, xy: np.ndarray) -> np.ndarray:
    """(x / z, y / z) [N, 2] of the rays through places [N, 2] of original pictures; NaN where there is none, or one at
    90 degrees or more from the axis, whose tangent pycolmap takes for that of a ray on the other side."""
    camera = colmap_camera(lens, width, height)
    slopes = np.array(camera.cam_from_img(xy))
    slopes[((xy - (camera.principal_point_x, camera.principal_point_y)) * slopes).sum(axis=1) < 0] = np.nan
    return slopes


def scale_lens(lens: Lens, across: float, down: float) -> Lens:
    """The lens of the same pictures, `across` times as wide and `down` times as high; a single focal length is
    scaled by their mean."""
    focals, _ = LENSES[lens.model]
    factors = [(across + down) / 2] if focals == 1 else [across, down]
    start = [value * factor for value, factor in zip(lens.params, [*factors, across, down], strict=False)]
    return replace(lens, params=(*start, *lens.params[focals + 2 :]))


def move_lens(lens: Lens, left: float, top: float) -> Lens:
    """The lens of the same pictures without their first columns and rows."""
    at = LENSES[lens.model][0]
    cx, cy = lens.params[at : at + 2]
    return replace(lens, params=(*lens.params[:at], cx - left, cy - top, *lens.params[at + 2 :]))


def pinhole_part(lens: Lens) -> np.ndarray:
    """[3, 3] intrinsics of the pinhole that approximates a lens near its axis."""
    focals, _ = LENSES[lens.model]
    fx, fy = lens.params[0], lens.params[focals - 1]
    cx, cy = lens.params[focals : focals + 2]
    if lens.model == "FOV" and (angle := lens.params[-1]) != 0:
        fx, fy = (focal * 2 * np.tan(angle / 2) / angle for focal in (fx, fy))
    return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def bends_lines(lens: Lens) -> bool:
    """Whether a lens is more than a pinhole."""
    return any(lens.params[LENSES[lens.model][0] + 2 :])


def network_intrinsics(lens: Lens, source: Source) -> np.ndarray:
    """The pinhole part [3, 3] of a lens for original pictures, in network pixels."""
    sx, sy, ox, oy = source.original_from_network
    return np.array([[1 / sx, 0, -ox / sx], [0, 1 / sy, -oy / sy], [0, 0, 1]]) @ pinhole_part(lens)


class Optics:
    """The cameras of S views at the size of the network's images: pinholes, or lenses if given.

    sources has S entries; intrinsics [S, 3, 3] in network pixels; lenses has S entries, or none for pinholes.
    """

    def __init__(self, sources: Sequence[Source], intrinsics: np.ndarray, lenses: Sequence[Lens] = ()):
        self._sources, self._intrinsics, self._lenses = sources, intrinsics.astype(np.float64), lenses

    @classmethod
    def of(cls, reconstruction: Reconstruction) -> Optics:
        """The cameras of a reconstruction."""
        return cls(reconstruction.sources, reconstruction.intrinsics, reconstruction.lenses)

    def resized(self, x: float, y: float) -> Optics:
        """The same cameras in pictures with pixels that are so many times as wide and as high."""
        sources = []
        for source in self._sources:
            sx, sy, ox, oy = source.original_from_network
            sources.append(replace(source, original_from_network=(x * sx, y * sy, ox, oy)))
        return Optics(sources, np.diag([1 / x, 1 / y, 1.0]) @ self._intrinsics, self._lenses)

    def slopes(self, view: int, height: int, width: int) -> np.ndarray:
        """(x / z, y / z) [H, W, 2] float64 of the rays through all pixel centres; NaN outside the lens's field of view.

        The array is shared: do not write to it.
        """
        if self._lenses:
            source = self._sources[view]
            shape = (source.width, source.height, source.original_from_network)
            return _lens_slopes(self._lenses[view], *shape, height, width)
        fx, fy, cx, cy = self._intrinsics[view][[0, 1, 0, 1], [0, 1, 2, 2]]
        x, y = np.meshgrid((np.arange(width) + 0.5 - cx) / fx, (np.arange(height) + 0.5 - cy) / fy)
        return np.stack([x, y], axis=-1)

    def project(self, view: int, cam: np.ndarray) -> np.ndarray:
        """Network pixels [P, 2] of camera points [P, 3]; NaN where a point is not in front of the camera."""
        front = cam[:, 2] > 0
        if self._lenses:
            xy = np.full((len(cam), 2), np.nan)
            source = self._sources[view]
            lens = self._lenses[view]
            # Far outside the picture a lens polynomial folds back and would project such points inside.
            tilt = np.hypot(cam[:, 0], cam[:, 1])
            front &= tilt <= _steepest(lens, source.width, source.height) * np.where(front, cam[:, 2], 1)
            camera = colmap_camera(lens, source.width, source.height)
            scale, offset = np.reshape(source.original_from_network, (2, 2))
            xy[front] = (np.asarray(camera.img_from_cam(cam[front].astype(np.float64))).reshape(-1, 2) - offset) / scale
            return xy
        fx, fy, cx, cy = self._intrinsics[view][[0, 1, 0, 1], [0, 1, 2, 2]].astype(cam.dtype)
        z = np.where(front, cam[:, 2], cam.dtype.type(np.nan))
        return np.stack([cam[:, 0] / z * fx + cx, cam[:, 1] / z * fy + cy], axis=-1)

    def project_all(self, cam: np.ndarray) -> np.ndarray:
        """`project` of camera points [S, P, 3] of all views at once, [S, P, 2]."""
        xy = np.empty((*cam.shape[:2], 2))
        alike: dict[object, list[int]] = {}
        for view in range(len(cam)):
            source = self._sources[view] if self._lenses else None
            key = source and (self._lenses[view], source.width, source.height, source.original_from_network)
            alike.setdefault(key or view, []).append(view)
        for views in alike.values():
            xy[views] = self.project(views[0], cam[views].reshape(-1, 3)).reshape(len(views), -1, 2)
        return xy

    def footprint(self, view: int) -> float:
        """Side of a pixel at depth 1, in the middle of the picture."""
        fx, fy = self._intrinsics[view][[0, 1], [0, 1]]
        return float(1 / np.sqrt(abs(fx * fy)))


@lru_cache(maxsize=1024)
def _steepest(lens: Lens, width: int, height: int) -> float:
    """The largest slope of any ray of the picture against the axis, with a small margin."""
    along = np.linspace(0, 1, 33)
    edge = np.concatenate([np.stack([along, np.full(33, end)], 1) for end in (0, 1)])
    edge = np.concatenate([edge, edge[:, ::-1]]) * [width, height]
    slopes = slopes_at(lens, width, height, edge)
    reach = np.linalg.norm(slopes, axis=1)
    return 1.02 * float(np.nanmax(reach)) if np.isfinite(reach).any() else np.inf


# Views mostly share one lens, and the rays of each are needed several times in a row.
@lru_cache(maxsize=2)
def _lens_slopes(
    lens: Lens,
    width: int,
    height: int,
    original_from_network: tuple[float, float, float, float],
    rows: int,
    cols: int,
) -> np.ndarray:
    scale, offset = np.reshape(original_from_network, (2, 2))
    x, y = np.meshgrid(np.arange(cols) + 0.5, np.arange(rows) + 0.5)
    original = np.stack([x, y], axis=-1).reshape(-1, 2) * scale + offset
    slopes = slopes_at(lens, width, height, original).reshape(rows, cols, 2)
    slopes.flags.writeable = False
    return slopes
