"""A mesh on a page: simplified, cut into charts, and the texels that these cover (a part of texture.py).

fast-simplification merges vertices by quadric errors, xatlas cuts and places the charts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lean3r.errors import MissingExtraError

TRIANGLES = 100_000  # their texture has the detail
PATCH = 800  # triangles that are unwrapped together: the time of xatlas grows faster than their number
PAGE, GAP = 2048, 4  # texels of the page on which charts are placed, and between them
OVERHANG = 0.75  # texels beyond a triangle's edges which it covers, for interpolation
CHUNK = 1_000_000  # texels at a time


class Texels(NamedTuple):
    """The T texels of a texture [H, W] that are on triangles: index [T] into H * W texels; of these the face [H * W],
    and the shares [H * W, 2] of its first two corners. (Copies for the T texels alone would take as much again.)"""

    index: np.ndarray
    face_of: np.ndarray
    shares_of: np.ndarray

    def at(self, some: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The faces [t] and the shares [t, 3] of their corners of `some` [t] of the T texels."""
        first, second = self.shares_of[self.index[some]].T
        return self.face_of[self.index[some]], np.stack([first, second, 1 - first - second], 1)


def libraries() -> tuple[Callable, type]:
    """fast-simplification's function and xatlas' class; raises MissingExtraError if they are not installed."""
    try:
        from fast_simplification import simplify
        from xatlas import Atlas
    except ImportError as error:
        raise MissingExtraError.of("a texture", "mesh") from error
    return simplify, Atlas


def simplified(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [V, 3] and faces [F, 3] of a mesh with at most TRIANGLES triangles, about."""
    if len(faces) <= TRIANGLES:
        return vertices, faces
    middle = vertices.mean(0)  # float32 resolves a scene far from its world's origin badly
    simplify = libraries()[0]
    found, kept = simplify((vertices - middle).astype(np.float32), faces.astype(np.int32), target_count=TRIANGLES)
    return found.astype(np.float64) + middle, kept.astype(np.int64)


def unwrapped(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The vertex [U] that each new one is a copy of, faces [F, 3] of new ones, their uv [U, 2] in 0..1 on a page, and
    its width and height [2] in some unit."""
    import xatlas

    pack, atlas = xatlas.PackOptions(), libraries()[1]()
    pack.resolution, pack.padding, pack.create_image = PAGE, GAP, False
    used = []
    for part in _patches(np.arange(len(faces)), vertices[faces].mean(1)):
        own, index = np.unique(faces[part], return_inverse=True)
        atlas.add_mesh((vertices[own] - vertices.mean(0)).astype(np.float32), index.reshape(-1, 3).astype(np.uint32))
        used.append(own)
    atlas.generate(xatlas.ChartOptions(), pack)
    found = [atlas[number] for number in range(len(used))]
    starts = np.cumsum([0, *(len(origin) for origin, _, _ in found)])
    origin = np.concatenate([own[copies.astype(np.int64)] for own, (copies, _, _) in zip(used, found, strict=True)])
    index = np.concatenate([each.astype(np.int64) + at for at, (_, each, _) in zip(starts, found, strict=False)])
    uv = np.concatenate([each for _, _, each in found]).astype(np.float64)
    return origin, index, uv, np.array([atlas.width, atlas.height], np.float64)


def _patches(faces: np.ndarray, middles: np.ndarray) -> list[np.ndarray]:
    """Faces [F] cut into halves across their longest extent, down to PATCH of them; middles [all faces, 3]."""
    if len(faces) <= PATCH:
        return [faces]
    order = faces[np.argsort(middles[faces, np.ptp(middles[faces], axis=0).argmax()], kind="stable")]
    half = len(order) // 2
    return _patches(order[:half], middles) + _patches(order[half:], middles)


def covered(at: np.ndarray, faces: np.ndarray, height: int, width: int) -> Texels:
    """The texels under triangles: at [V, 2] are their corners in texels. Texels a little beyond a triangle count as its
    own, unless another triangle covers them."""
    face_of = np.full(height * width, -1, np.int32)
    shares_of = np.zeros((height * width, 2), np.float32)
    corners = at[faces]
    ahead, behind = np.roll(corners, -1, axis=1), np.roll(corners, -2, axis=1)
    low = np.ceil(corners.min(1) - 0.5 - OVERHANG).astype(np.int64).clip(0)
    high = np.floor(corners.max(1) - 0.5 + OVERHANG).astype(np.int64).clip(max=[width - 1, height - 1]) + 1
    wide, tall = np.maximum(high - low, 0).T
    ends = np.cumsum(wide * tall)
    sides = behind - ahead  # opposite each corner
    doubled = sides[:, 2, 0] * sides[:, 0, 1] - sides[:, 2, 1] * sides[:, 0, 0]  # area, with sign
    length = np.linalg.norm(sides, axis=2)
    for is_inner in (False, True):
        first = 0
        while first < len(faces):
            done = ends[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(ends, done + CHUNK, side="right")))
            face = np.repeat(np.arange(first, last), (wide * tall)[first:last])
            number = np.arange(len(face)) - (ends - wide * tall - done)[face]
            row, col = low[face, 1] + number // wide[face], low[face, 0] + number % wide[face]
            first = last
            sound = doubled[face] != 0
            face, row, col = face[sound], row[sound], col[sound]
            place = np.stack([col, row], 1)[:, None] + 0.5 - ahead[face]
            twice = sides[face, :, 0] * place[:, :, 1] - sides[face, :, 1] * place[:, :, 0]
            twice *= np.sign(doubled[face])[:, None]
            keep = (twice >= 0).all(1) if is_inner else (twice >= -OVERHANG * length[face]).all(1)
            index = row[keep] * width + col[keep]
            face_of[index] = face[keep]
            shares_of[index] = twice[keep, :2] / np.abs(doubled[face[keep]])[:, None]
    return Texels(np.flatnonzero(face_of >= 0).astype(np.int32), face_of, shares_of)
