"""Augmentation of pictures together with their cameras: crop, mirror, quarter turns, colours."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from lean3r.data.sets.formats.maps import no_depth
from lean3r.data.sets.scenes import RawView
from lean3r.errors import UsageError

_SPARSE = 0.2
_MIRROR = np.diag([-1.0, 1.0, 1.0, 1.0])
_TURN = np.array([[0.0, -1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
_LUMA = (0.299, 0.587, 0.114)
_ROWS = 4  # the mean brightness is over every fourth row


@dataclass(frozen=True)
class Augmentation:
    """Random changes, drawn for each scene and each of its views.

    flip: probability of mirroring a scene; turn: probability of a quarter turn for a scene whose pictures have the
    other orientation than the batch; zoom: smallest side of the crop, relative to the largest possible crop; shift:
    how far the crop may move within the free margin, in 0..1; jitter: largest change of brightness, contrast and
    saturation, drawn once per scene or, for half of the scenes, once per view.
    """

    flip: float = 0.0
    turn: float = 0.0
    zoom: float = 1.0
    shift: float = 0.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        for name in ("flip", "turn", "shift", "jitter"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"augmentation: {name} is {getattr(self, name)}; expected a number in 0..1")
        if not 0.1 <= self.zoom <= 1:
            raise UsageError(f"augmentation: zoom is {self.zoom}; expected a number in 0.1..1")


NONE = Augmentation()
USUAL = Augmentation(flip=0.5, turn=0.5, zoom=0.8, shift=1.0, jitter=0.3)


@dataclass(frozen=True)
class SceneDraw:
    """The draw for a whole scene: whether to mirror or rotate it, and colours of all views (None: drawn per view)."""

    flip: bool
    turn: bool
    colours: tuple[float, float, float] | None


def draw_scene(rng: np.random.Generator, augmentation: Augmentation) -> SceneDraw:
    """Draw for a scene; always uses the same number of values from `rng`."""
    flip, turn, shared = rng.random(3)
    colours = _colours(rng, augmentation.jitter)
    return SceneDraw(flip < augmentation.flip, turn < augmentation.turn, colours if shared < 0.5 else None)


def augment(
    view: RawView, height: int, width: int, augmentation: Augmentation, scene: SceneDraw, rng: np.random.Generator
) -> RawView:
    """Augment one view to [height, width], with the draw of the scene and a draw of its own.

    The crop comes first, so that later changes work on fewer pixels.
    """
    share = 1 - (1 - augmentation.zoom) * rng.random()
    spot = 0.5 + (rng.random(2) - 0.5) * augmentation.shift
    own = _colours(rng, augmentation.jitter)
    rows, columns = view.depth.shape
    turn = scene.turn and rows != columns and (rows > columns) != (height > width) and height != width
    view = cut(view, *((width, height) if turn else (height, width)), share, (float(spot[0]), float(spot[1])))
    if augmentation.jitter:
        view = replace(view, image=recolour(view.image, *(scene.colours or own)))
    view = rotate_quarter(view) if turn else view
    return mirror(view) if scene.flip else view


def cut(view: RawView, height: int, width: int, share: float = 1.0, spot: tuple[float, float] = (0.5, 0.5)) -> RawView:
    """Crop and scale a view to [height, width]: the largest crop of this aspect ratio, its sides times `share`.

    `spot` in 0..1 is the position of the crop in the free margin, (0, 0) at the upper left. Pictures are averaged,
    depth and normals take the nearest pixel; sparse depth is moved point by point.
    """
    rows, columns = view.depth.shape
    scale = max(height / rows, width / columns) / share
    # A crop of whole pixels, so that no pixel outside it is read; the intrinsics are exact for it.
    wide, high = (min(max(1, round(side / scale)), most) for side, most in ((width, columns), (height, rows)))
    left, top = round(spot[0] * (columns - wide)), round(spot[1] * (rows - high))
    if (rows, columns, high, wide) == (height, width, height, width):
        return view
    sx, sy = width / wide, height / high
    image = _resize(view.image[top : top + high, left : left + wide], height, width)
    k = np.array([[sx, 0.0, -sx * left], [0.0, sy, -sy * top], [0.0, 0.0, 1.0]]) @ view.intrinsics
    x = left + ((np.arange(width) + 0.5) / sx).astype(np.int64)
    y = top + ((np.arange(height) + 0.5) / sy).astype(np.int64)
    if any(view.depth.strides):
        depth = view.depth.take(y, 0).take(x, 1)
        if np.count_nonzero(depth) < _SPARSE * depth.size and view.depth.any():
            depth = _move(view.depth, height, width, (left, top), (sx, sy))
    else:
        depth = no_depth(height, width)
    normals = None if view.normals is None else view.normals.take(y, 0).take(x, 1)
    return RawView(image, depth, k, view.cam_from_world, normals)


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize uint8 [H, W, 3] with antialiasing, several times as fast as Pillow."""
    planes = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    planes = F.interpolate(planes, (height, width), mode="bicubic", antialias=True)
    return planes[0].permute(1, 2, 0).numpy()


def _move(
    depth: np.ndarray, height: int, width: int, corner: tuple[float, float], scale: tuple[float, float]
) -> np.ndarray:
    """Move the centre of each pixel with known depth to the resized crop; of several in one pixel, the nearest wins."""
    y, x = np.nonzero(depth)
    column = np.floor((x + 0.5 - corner[0]) * scale[0]).astype(np.int64)
    row = np.floor((y + 0.5 - corner[1]) * scale[1]).astype(np.int64)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    nearest_depth = np.full((height, width), np.inf, np.float32)
    np.minimum.at(nearest_depth, (row[inside], column[inside]), depth[y[inside], x[inside]])
    return np.where(np.isfinite(nearest_depth), nearest_depth, np.float32(0))


def mirror(view: RawView) -> RawView:
    """Mirror left and right. A mirror image is not a rotation, so the world is mirrored with the picture: mirror all
    views of a scene."""
    k = view.intrinsics.copy()
    k[0, 2] = view.depth.shape[1] - k[0, 2]
    pose = _MIRROR @ view.cam_from_world @ _MIRROR
    normals = None if view.normals is None else view.normals[:, ::-1] * np.array([-1, 1, 1], np.float32)
    return RawView(view.image[:, ::-1], view.depth[:, ::-1], k, pose, normals)


def rotate_quarter(view: RawView) -> RawView:
    """Rotate by a quarter turn clockwise, as if the camera had been rotated anticlockwise about its axis."""
    k, rows = view.intrinsics, view.depth.shape[0]
    turned_k = np.array([[k[1, 1], 0.0, rows - k[1, 2]], [0.0, k[0, 0], k[0, 2]], [0.0, 0.0, 1.0]])
    image, depth = np.rot90(view.image, -1), np.rot90(view.depth, -1)
    normals = None if view.normals is None else np.rot90(view.normals, -1) @ _TURN[:3, :3].T.astype(np.float32)
    return RawView(image, depth, turned_k, _TURN @ view.cam_from_world, normals)


def recolour(image: np.ndarray, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    """Apply the three factors in this order to [H, W, 3] uint8; a factor of 1 changes nothing."""
    planes = np.ascontiguousarray(image.transpose(2, 0, 1))
    mean = brightness * float(planes[:, ::_ROWS].mean())
    # All three are linear, so together they are x * own + grey * shared + constant. Products and sums are separate,
    # because the rounding of fused operations depends on the number of threads.
    values = torch.from_numpy(planes).float()
    own, shared = brightness * contrast * saturation, brightness * contrast * (1 - saturation)
    grey = values[0] * (shared * _LUMA[0])
    for plane, weight in zip(values[1:], _LUMA[1:], strict=True):
        grey.add_(plane * (shared * weight))
    grey.add_((1 - contrast) * mean + 0.5)
    return values.mul_(own).add_(grey).clamp_(0, 255).byte().numpy().transpose(1, 2, 0)


def _colours(rng: np.random.Generator, bound: float) -> tuple[float, float, float]:
    b, c, s = 1 + bound * (2 * rng.random(3) - 1)
    return float(b), float(c), float(s)
