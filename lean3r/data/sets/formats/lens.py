"""Lenses of data sets: pictures are undistorted when read, to a pinhole camera without empty corners."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch.nn.functional import grid_sample

from lean3r.data.sets.formats.files import read_image
from lean3r.data.sets.scenes import FolderSet, Frame, RawView, check_size

if TYPE_CHECKING:
    from lean3r.colmap_library import pycolmap


@dataclass(frozen=True, eq=False, kw_only=True)
class LensFrame(Frame):
    """A view with the lens of its picture and of its depth map."""

    lens: pycolmap.Camera


L = TypeVar("L", bound=LensFrame)
_BAND = 256  # rows
_Key = tuple[str, int, int, tuple[float, ...]]  # model, width, height and parameters of a camera


class LensSet(FolderSet[L]):
    """A FolderSet whose pictures and depth maps are undistorted when read."""

    def view(self, scene: int, view: int) -> RawView:
        """Read one view and undistort it."""
        frame, camera = self._frames_of(scene)[view], self.camera(scene, view)
        image = read_image(frame.image)
        height, width = image.shape[:2]
        check_size(width, height, frame.lens.width, frame.lens.height, frame.image)
        image, depth, intrinsics = undistort(image, self.depth_of(frame, height, width), frame.lens)
        return RawView(image, depth, intrinsics, camera.cam_from_world)


def pinhole_of(lens: pycolmap.Camera) -> pycolmap.Camera:
    """The camera of the undistorted picture, which has no empty corners and is no larger than the original."""
    return lens if lens.is_undistorted() else _pinhole(lens.model.name, lens.width, lens.height, tuple(lens.params))


@lru_cache(maxsize=256)
def _pinhole(model: str, width: int, height: int, params: tuple[float, ...]) -> pycolmap.Camera:
    from lean3r.colmap_library import pycolmap

    options = pycolmap.UndistortCameraOptions()
    options.max_scale = 1.0
    return pycolmap.undistort_camera(options, pycolmap.Camera(model=model, width=width, height=height, params=params))


def undistort(image: np.ndarray, depth: np.ndarray, lens: pycolmap.Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Undistort an image [H, W, 3] uint8 and depth [H, W]; returns both and the pinhole intrinsics [3, 3].

    `lens` may be for another size of the picture. Colours are interpolated bilinearly; depth is that of the nearest
    pixel, which does not mix values across edges.
    """
    height, width = image.shape[:2]
    if (lens.width, lens.height) != (width, height):
        lens = copy.copy(lens)
        lens.rescale(width, height)
    plain = pinhole_of(lens)
    if not lens.is_undistorted():
        grid, nearest_pixel = _grid(lens.model.name, width, height, tuple(lens.params))
        image, depth = bilinear(image, grid), depth.ravel()[nearest_pixel]
    return image, depth, np.asarray(plain.calibration_matrix())


@lru_cache(maxsize=2)
def _grid(model: str, width: int, height: int, params: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """[h, w, 2] float32: position (x, y) in the distorted picture of each undistorted pixel; and [h, w] int32: the
    row-major index of the distorted pixel there, clamped to the edges."""
    from lean3r.colmap_library import pycolmap

    lens = pycolmap.Camera(model=model, width=width, height=height, params=params)
    seen = _positions(lens, pinhole_of(lens))
    column = np.clip(np.floor(seen[..., 0]), 0, width - 1).astype(np.int32)
    row = np.clip(np.floor(seen[..., 1]), 0, height - 1).astype(np.int32)
    return seen.astype(np.float32), row * width + column


def _positions(lens: pycolmap.Camera, plain: pycolmap.Camera) -> np.ndarray:
    """[h, w, 2]: position (x, y) in the picture of `lens` of each pixel of `plain`, a pinhole with the same pose."""
    seen = np.empty((plain.height, plain.width, 2))
    for top in range(0, plain.height, _BAND):  # the rays of 24 megapixels take two gigabytes
        band = seen[top : top + _BAND]
        x, y = np.meshgrid(np.arange(plain.width) + 0.5, np.arange(top, top + len(band)) + 0.5)
        rays = np.asarray(plain.cam_from_img(np.stack([x.ravel(), y.ravel()], 1)))
        band[:] = np.asarray(lens.img_from_cam(np.concatenate([rays, np.ones((len(rays), 1))], 1))).reshape(band.shape)
    return seen


def depth_of_pinhole(depth: np.ndarray, lens: pycolmap.Camera, plain: pycolmap.Camera) -> np.ndarray:
    """Depth [h, w] of a pinhole camera from the map [H, W] of `lens` with its pose: the nearest pixel, 0 outside."""
    lens_key, plain_key = ((c.model.name, c.width, c.height, tuple(c.params)) for c in (lens, plain))
    index = _pixels(lens_key, plain_key)
    return np.where(index >= 0, depth.ravel()[index], np.float32(0))


@lru_cache(maxsize=2)
def _pixels(lens: _Key, plain: _Key) -> np.ndarray:
    """[h, w] int32: the row-major index in the picture of `lens` of each pixel of `plain`; -1 outside."""
    from lean3r.colmap_library import pycolmap

    camera, other = (
        pycolmap.Camera(model=model, width=width, height=height, params=params)
        for model, width, height, params in (lens, plain)
    )
    seen = _positions(camera, other)
    with np.errstate(invalid="ignore"):
        inside = np.all((seen >= 0) & (seen < (camera.width, camera.height)), axis=-1)
    column, row = np.where(inside[..., None], seen, 0).astype(np.int32).transpose(2, 0, 1)
    return np.where(inside, row * camera.width + column, -1).astype(np.int32)


def bilinear(image: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Sample an image [H, W, 3] at positions (x, y) in pixels [h, w, 2] -> [h, w, 3] uint8, clamped to the edges."""
    size = torch.tensor([image.shape[1], image.shape[0]], dtype=torch.float32)
    spots = torch.from_numpy(grid)[None] * (2 / size) - 1
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    mixed = grid_sample(values, spots, mode="bilinear", padding_mode="border", align_corners=False)
    return mixed[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()
