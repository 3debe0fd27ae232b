"""Draw a sample of a data set: two views, their depth, and the first view reprojected into the second camera."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from lean3r.data.sets.formats.maps import zero_unknown
from lean3r.data.sets.scenes import RawView, invert
from lean3r.export.depth import colourise

_SIDE = 480
_GAP, _LINE = 6, 18
_SPARSE, _DOT = 0.05, 5
_BACKGROUND = (24, 27, 34)


def draw(one: RawView, other: RawView, title: str, is_posed: bool = True) -> Image.Image:
    """Draw two rows: the views and a blended reprojection; depths and reprojection. Without depth, only the views;
    without poses, no reprojection."""
    one, other = (_with_known_depth(view) for view in (one, other))
    panels = [[_scale(one.image), _scale(other.image)]]
    if one.depth.any():
        maps = [colourise(view.depth) for view in (one, other)]
        maps += [reproject(one, other)] if is_posed else []
        if np.count_nonzero(one.depth) < _SPARSE * one.depth.size:
            maps = [_enlarge(image) for image in maps]
        if is_posed:
            moved = maps[-1]
            blend = np.where(moved.any(-1, keepdims=True), moved // 2 + other.image // 2, other.image // 3)
            panels[0].append(_scale(blend))
        panels.append([_scale(image) for image in maps])
    width = max(sum(p.width + _GAP for p in row) for row in panels) + _GAP
    height = _LINE + sum(max(p.height for p in row) + _GAP for row in panels)
    sheet = Image.new("RGB", (width, height), _BACKGROUND)
    ImageDraw.Draw(sheet).text((_GAP, 3), title, fill=(230, 230, 230))
    top = _LINE
    for row in panels:
        left = _GAP
        for panel in row:
            sheet.paste(panel, (left, top))
            left += panel.width + _GAP
        top += max(p.height for p in row) + _GAP
    return sheet


def reproject(one: RawView, other: RawView) -> np.ndarray:
    """Reproject the pixels of `one` into `other` by its depth: [H, W, 3] uint8, nearest points only, else black."""
    rows, columns = np.nonzero(one.depth)
    z = one.depth[rows, columns].astype(np.float64)
    rays = np.stack([columns + 0.5, rows + 0.5, np.ones(len(rows))], 1) @ np.linalg.inv(one.intrinsics).T
    change = other.cam_from_world @ invert(one.cam_from_world)
    points = (rays * z[:, None]) @ change[:3, :3].T + change[:3, 3]
    ahead = points[:, 2] > 1e-9
    points, colours = points[ahead], one.image[rows[ahead], columns[ahead]]
    pixels = np.floor((points / points[:, 2:]) @ other.intrinsics[:2].T).astype(np.int64)
    height, width = other.depth.shape
    inside = ((pixels >= 0) & (pixels < (width, height))).all(1)
    order = np.argsort(-points[inside, 2], kind="stable")  # far points first, so that near points cover them
    x, y = pixels[inside][order].T
    sheet = np.zeros((height, width, 3), np.uint8)
    sheet[y, x] = colours[inside][order]
    return sheet


def _with_known_depth(view: RawView) -> RawView:
    """The view with 0 for unknown depth."""
    return RawView(view.image, zero_unknown(view.depth)[0], view.intrinsics, view.cam_from_world)


def _enlarge(image: np.ndarray) -> np.ndarray:
    """Enlarge single pixels to visible dots."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.MaxFilter(_DOT)))


def _scale(image: np.ndarray) -> Image.Image:
    picture = Image.fromarray(np.ascontiguousarray(image))
    scale = min(1.0, _SIDE / max(picture.size))
    return picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
