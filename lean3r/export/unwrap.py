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
        first, second = self.shares_of[self.index[some]].T.astype(np.float64)  # map coordinates are large
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
    """Vertices [V, 3] and faces [F, 3] of a mesh with at most TRIANGLES triangles, about, without pockets."""
    if len(faces) <= TRIANGLES:
        return vertices, faces
    # float32 resolves a scene far from its world's origin badly, and fast-simplification allows errors of fixed sizes.
    middle = vertices.mean(0)
    unit = np.abs(vertices - middle).mean() or 1.0
    places = ((vertices - middle) / unit).astype(np.float32)
    found, kept = libraries()[0](places, faces.astype(np.int32), target_count=TRIANGLES)
    used, index = np.unique(without_pockets(kept), return_inverse=True)
    return unit * found[used].astype(np.float64) + middle, index.reshape(-1, 3)


def without_pockets(faces: np.ndarray) -> np.ndarray:
    """Faces [F, 3] without pockets, which merged vertices leave: pairs of triangles, back to back between the same
    corners, that have no normals and make edges of four triangles."""
    _, which, often = np.unique(np.sort(faces, axis=1), axis=0, return_inverse=True, return_counts=True)
    return faces[often[which.reshape(-1)] == 1]


def unwrapped(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The vertex [U] that each new one is a copy of, faces [F, 3] of new ones, their uv [U, 2] in 0..1 on a page, and
    its width and height [2] in some unit; 0 if no triangle has any area."""
    _, new_atlas = libraries()
    from xatlas import ChartOptions, PackOptions

    pack, atlas = PackOptions(), new_atlas()
    pack.resolution, pack.padding, pack.create_image = PAGE, GAP, False
    unit = (
        np.sqrt(areas(vertices[faces]).mean()) or 1.0
    )  # xatlas leaves out triangles of less than 1e-7, whatever the unit
    used = []
    for part in _patches(np.arange(len(faces)), vertices[faces].mean(1)):
        own, index = np.unique(faces[part], return_inverse=True)
        places = ((vertices[own] - vertices.mean(0)) / unit).astype(np.float32)
        atlas.add_mesh(places, index.reshape(-1, 3).astype(np.uint32))
        used.append(own)
    atlas.generate(ChartOptions(), pack)
    found = [atlas[number] for number in range(len(used))]
    starts = np.cumsum([0, *(len(origin) for origin, _, _ in found)])
    origin = np.concatenate([own[copies.astype(np.int64)] for own, (copies, _, _) in zip(used, found, strict=True)])
    index = np.concatenate([each.astype(np.int64) + at for at, (_, each, _) in zip(starts, found, strict=False)])
    uv = np.concatenate([each for _, _, each in found]).astype(np.float64)
    return origin, index, uv, np.array([atlas.width, atlas.height], np.float64)


def areas(corners: np.ndarray) -> np.ndarray:
    """Areas [F] of triangles with corners [F, 3, 2] or [F, 3, 3]."""
    first, second = np.moveaxis(corners[:, 1:] - corners[:, :1], 1, 0)
    squares = (first**2).sum(1) * (second**2).sum(1) - (first * second).sum(1) ** 2
    return np.sqrt(squares.clip(0)) / 2


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
    sides = behind - ahead  # opposite each corner
    doubled = sides[:, 2, 0] * sides[:, 0, 1] - sides[:, 2, 1] * sides[:, 0, 0]  # area, with sign
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = np.stack([-sides[..., 1], sides[..., 0]], -1) / doubled[:, None, None]  # of the shares
    low = np.ceil(corners.min(1) - 0.5 - OVERHANG).astype(np.int64).clip(0)
    high = np.floor(corners.max(1) - 0.5 + OVERHANG).astype(np.int64).clip(max=[width - 1, height - 1]) + 1
    starts = np.einsum("fkc,fkc->fk", slopes, low[:, None] + 0.5 - ahead)
    slack = OVERHANG * np.linalg.norm(slopes, axis=2)
    wide, tall = np.where(doubled != 0, np.maximum(high - low, 0).T, 0)
    count = wide * tall
    ends = np.cumsum(count)
    is_inner = np.zeros(height * width, bool)
    first = 0
    while first < len(faces):
        done = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, done + CHUNK, side="right")))
        face = np.repeat(np.arange(first, last), count[first:last])
        down, across = np.divmod(np.arange(len(face)) - (ends - count - done)[face], wide[face])
        first = last
        share = slopes[face, :, 0] * across[:, None] + slopes[face, :, 1] * down[:, None] + starts[face]
        index = (low[face, 1] + down) * width + low[face, 0] + across
        inner = (share >= 0).all(1)
        is_inner[index[inner]] = True
        keep = inner | (~is_inner[index] & (share >= -slack[face]).all(1))
        # Of several writes to one texel the last counts: those of its own triangle.
        for part in (keep & ~inner, inner):
            face_of[index[part]] = face[part]
            shares_of[index[part]] = share[part, :2]
    return Texels(np.flatnonzero(face_of >= 0).astype(np.int32), face_of, shares_of)
