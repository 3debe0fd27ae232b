"""A texture for a mesh: the pictures, at their own size, projected on to it (a part of mesh.py).

The mesh is simplified and unwrapped (unwrap.py). Every texel is a mean of the pictures that see its place well: from
close by, straight on, not near their borders, and with the colours that most have there, which leaves out what moves
and what is before the surface.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from lean3r.export.unwrap import Texels, areas, covered, simplified, unwrapped
from lean3r.geometry.consistency import Scene, sample_depth, unit
from lean3r.geometry.lens import Optics
from lean3r.geometry.spread import spread
from lean3r.geometry.surface import vertex_normals
from lean3r.inputs.views import whole_size
from lean3r.parallel import by_threads
from lean3r.types import Reconstruction

if TYPE_CHECKING:
    from lean3r.inputs.pictures import Pictures

logger = logging.getLogger("lean3r")

SIDE = 4096  # most texels along a side, which every phone can show
BEST = 5  # pictures of a vertex
SHARPNESS = 4  # exponent of merits: a mean of pictures that do not quite fit is blurred
STEEPEST = 0.1  # cosine between a surface and a ray from which a picture shows it
RIM = 0.08  # of a picture's shorter side: there it fades out
ODD = 40.0  # difference of a colour from that of most pictures, of 255, from which it counts little
DARK, BRIGHT = 8, 247  # colours between these tell how bright a picture is
COMPARED, ROUNDS = 5000, 10  # vertices whose colours are compared for that, about, and how often
HIDDEN = 1.05  # ratio of depths from which something is behind what a view shows
CHUNK = 1_000_000  # texels, or colours, at a time


class Textured(NamedTuple):
    """vertices and unit normals [V, 3]; faces [F, 3]; uv [V, 2] in 0..1, v downwards; texture [H, W, 3] uint8; unseen:
    the share of its texels that no picture shows, which have the colours of the mesh."""

    vertices: np.ndarray
    normals: np.ndarray
    faces: np.ndarray
    uv: np.ndarray
    texture: np.ndarray
    unseen: float


def textured(
    vertices: np.ndarray, faces: np.ndarray, rgb: np.ndarray, scene: Reconstruction, pictures: Pictures | None
) -> Textured | None:
    """A mesh (vertices [V, 3], faces [F, 3], rgb [V, 3] uint8) with the `pictures` of its scene as texture (None: those
    that the network saw); None if its triangles have no area. What cannot be read is missing, with a warning."""
    corners, triangles = simplified(vertices, faces)
    normals = vertex_normals(corners, triangles)
    normals[~normals.any(1)] = (0, 0, 1)  # where triangles cancel: glTF wants unit vectors
    maps = Scene.of(scene)
    merit, gain = merits(corners, normals, scene, maps, pictures is not None)
    merit = sharpened(merit)
    own = rgb[_nearest(vertices, corners)].astype(np.float32)
    origin, triangles, uv, page = unwrapped(corners, triangles)
    corners, normals, merit, own = corners[origin], normals[origin], merit[:, origin], own[origin]
    scale = _scale(corners, triangles, uv * page, scene, maps, pictures is not None)
    if not scale > 0:
        return None
    used = min(1.0, SIDE / (scale * page.max()))  # of the resolution of the pictures
    width, height = (max(1, round(float(side))) for side in page * scale * used)
    texels = covered(uv * [width, height], triangles, height, width)
    seen = np.zeros((len(texels.index), 4), np.float32)
    for view, picture, place in _pictures(scene, pictures, used):
        _project(texels, corners, triangles, merit[view], maps, view, picture, place, gain[view], seen)
    colours, weight = seen[:, :3], seen[:, 3:]
    shown = weight[:, 0] > 0
    colours[shown] /= weight[shown]
    lacking = np.flatnonzero(~shown)
    face, shares = texels.at(lacking)
    colours[lacking] = np.einsum("tk,tkc->tc", shares, own[triangles[face]])
    texture = _filled(colours, texels.index, height, width)
    return Textured(corners, normals, triangles, uv, texture, len(lacking) / max(1, len(shown)))


def merits(
    vertices: np.ndarray, normals: np.ndarray, scene: Reconstruction, maps: Scene, is_whole: bool
) -> tuple[np.ndarray, np.ndarray]:
    """How well each view shows each vertex, [S, V]: the pixels that it spends on it, fewer with an odd colour; 0 where
    it does not see it. And the gains [S, 3] that make the views equally bright. `is_whole`: in the pixels of the whole
    pictures, not of the network's."""

    def of_view(view: int) -> tuple[np.ndarray, np.ndarray]:
        pose = scene.cam_from_world[view]
        cam = vertices @ pose[:3, :3].T + pose[:3, 3]
        xy = maps.optics.project(view, cam)
        depth = sample_depth(maps.depth[view], xy)
        with np.errstate(invalid="ignore"):
            is_seen = (cam[:, 2] < HIDDEN * depth) & (cam[:, 2] > depth / HIDDEN)
        facing = -np.einsum("vc,vc->v", normals @ pose[:3, :3].T, unit(cam))
        rows, cols = np.nonzero(scene.mask[view])
        low, high = np.array([cols.min(), rows.min()]), np.array([cols.max(), rows.max()]) + 1
        to_rim = np.nan_to_num(np.minimum(xy - low, high - xy).min(1))
        fade = (to_rim / (RIM * (high - low).min())).clip(0, 1)
        pixel = _pixel(scene, maps.optics, view, is_whole)
        pixels = np.where(is_seen, (facing - STEEPEST).clip(0) * fade / (pixel * cam[:, 2].clip(1e-12)) ** 2, 0)
        return pixels.astype(np.float32), _sampled(scene.images[view], xy)

    views = np.flatnonzero(scene.is_certain & scene.mask.any((1, 2))).tolist()
    found, colours = map(np.stack, zip(*by_threads(of_view, views), strict=True))
    colours[found == 0] = np.nan
    gain = np.ones((len(scene.mask), 3), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # vertices that no view sees
        gain[views] = gains(colours)
        colours *= gain[views, None]
        parts = np.array_split(colours, 1 + colours.size // CHUNK, axis=1)  # a median takes several copies
        odd = np.concatenate([np.abs(part - np.nanmedian(part, axis=0)).max(-1) for part in parts], axis=1)
    merit = np.zeros((len(scene.mask), len(vertices)), np.float32)
    merit[views] = found * np.exp(-((np.nan_to_num(odd) / ODD) ** 2))
    return merit, gain


def gains(colours: np.ndarray) -> np.ndarray:
    """Factors [S, 3], 1 in the (geometric) mean, that make views equally bright which have the colours [S, V, 3] of
    vertices; NaN where a view does not see one."""
    some = colours[:, :: 1 + colours.shape[1] // COMPARED]
    logs = np.log(np.where((some > DARK) & (some < BRIGHT), some, np.nan))
    gain = np.zeros((len(logs), 1, 3), np.float32)
    for _ in range(ROUNDS):
        gain = np.nan_to_num(np.nanmedian(np.nanmedian(logs + gain, axis=0) - logs, axis=1, keepdims=True))
        gain -= gain.mean(axis=0)
    return np.exp(gain[:, 0])


def sharpened(merit: np.ndarray) -> np.ndarray:
    """Weights [S, V] of views from their merits: only the BEST views of a vertex count, and the first most of all."""
    if len(merit) > BEST:
        merit = np.where(merit >= np.partition(merit, -BEST, axis=0)[-BEST], merit, 0)
    return (merit / np.maximum(merit.max(axis=0), 1e-30)) ** SHARPNESS


def _project(
    texels: Texels,
    vertices: np.ndarray,
    faces: np.ndarray,
    merit: np.ndarray,
    maps: Scene,
    view: int,
    picture: np.ndarray,
    place: tuple[np.ndarray, np.ndarray],
    gain: np.ndarray,
    seen: np.ndarray,
) -> None:
    """Add the colours that a view has for texels, times its `gain` [3] and their weights, and the weights to `seen`
    [T, 4]. `place`: scale and offset of the picture's pixels in those of the maps."""
    pose, optics = maps.cam_from_world[view], maps.optics
    nearest = _nearest_around(maps.depth[view])
    is_shown = np.any(merit[faces] > 0, axis=1)
    mine = np.flatnonzero(is_shown[texels.face_of[texels.index]]).astype(np.int32)

    def add(some: np.ndarray) -> None:
        face, shares = texels.at(some)
        corners = faces[face]
        weight = np.einsum("tk,tk->t", shares, merit[corners]).clip(0)
        cam = np.einsum("tk,tkc->tc", shares, vertices[corners]) @ pose[:3, :3].T + pose[:3, 3]
        xy = optics.project(view, cam)
        rows, cols = (np.nan_to_num(xy[:, i], nan=-1).astype(np.int64) for i in (1, 0))
        inside = (rows >= 0) & (cols >= 0) & (rows < nearest.shape[0]) & (cols < nearest.shape[1])
        keep = np.flatnonzero(inside & (weight > 0))
        keep = keep[cam[keep, 2] < HIDDEN * nearest[rows[keep], cols[keep]]]
        seen[some[keep], :3] += weight[keep, None] * gain * _sampled(picture, xy[keep] * place[0] + place[1])
        seen[some[keep], 3] += weight[keep]

    by_threads(add, np.array_split(mine, max(1, len(mine) // (CHUNK // 4))))


def _sampled(picture: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Colours [P, 3] float32 of a picture [H, W, 3] uint8 at pixels xy [P, 2], linear between pixel centres; those of
    the border outside, black where xy is NaN."""
    height, width = picture.shape[:2]
    at = np.nan_to_num(xy - 0.5).clip(0, [width - 1, height - 1])
    low = at.astype(np.int64)
    left, top = low.T
    right, down = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    across, along = (at - low).astype(np.float32).T[..., None]
    above = (1 - across) * picture[top, left] + across * picture[top, right]
    return (1 - along) * above + along * ((1 - across) * picture[down, left] + across * picture[down, right])


def _nearest_around(depth: np.ndarray) -> np.ndarray:
    """The smallest depth [H, W] within a pixel: beside an edge, pixels may show what is before it. 0: unknown."""
    known = torch.from_numpy(depth > 0)
    inverse = torch.where(known, 1 / torch.from_numpy(depth).clamp(min=1e-30), 0.0)
    around = F.max_pool2d(inverse[None, None], 3, 1, 1)[0, 0]
    return torch.where(known, 1 / around, 0.0).numpy()


def _pictures(
    scene: Reconstruction, pictures: Pictures | None, used: float
) -> Iterator[tuple[int, np.ndarray, tuple[np.ndarray, np.ndarray]]]:
    """Views, their pictures, of which a share of the resolution is `used`, and where the maps' pixels are in these:
    scale and offset."""
    whole = round(used * max((source.width * source.height) ** 0.5 for source in scene.sources))
    number = {name: view for view, name in enumerate(scene.names)}
    total = len(number)
    for picture in () if pictures is None else pictures.whole(scene.names, partial(whole_size, side=whole)):
        view = number.pop(picture.source.name)
        (scale, offset), (own, start) = (
            np.reshape(source.original_from_network, (2, 2)) for source in (scene.sources[view], picture.source)
        )
        yield view, picture.pixels, (scale / own, (offset - start) / own)
    if pictures is not None and number:
        logger.warning(
            "%d of %d pictures cannot be read again (%s): they are not in the texture%s",
            len(number), total, min(number), "" if len(number) < total else ", which has the network's small ones",
        )  # fmt: skip
    if len(number) == total:
        for view, image in enumerate(scene.images):
            yield view, image, (np.ones(2), np.zeros(2))


def _pixel(scene: Reconstruction, optics: Optics, view: int, is_whole: bool) -> float:
    """Side of a pixel at depth 1."""
    across = scene.sources[view].original_from_network[0] if is_whole else 1.0
    return optics.footprint(view) / across


def _scale(
    vertices: np.ndarray, faces: np.ndarray, at: np.ndarray, scene: Reconstruction, maps: Scene, is_whole: bool
) -> float:
    """How many texels wide the unit of `at` [V, 2] is if texels are as large as the pixels of the pictures; 0 if the
    triangles have no area on the page."""
    area, on_page = areas(vertices[faces]).sum(), areas(at[faces]).sum()
    if not (area > 0 and on_page > 0):
        return 0.0
    seen = [(view, depth[depth > 0]) for view, depth in enumerate(maps.depth) if (depth > 0).any()]
    pixel = np.median([np.median(z) * _pixel(scene, maps.optics, view, is_whole) for view, z in seen])
    return float(np.sqrt(area / on_page) / pixel)


def _filled(colours: np.ndarray, index: np.ndarray, height: int, width: int) -> np.ndarray:
    """The texture [H, W, 3] uint8; between charts, what is around."""
    page = np.empty((height, width, 3), np.uint8)
    has = torch.zeros(height * width)
    has[torch.from_numpy(index)] = 1
    for channel in range(3):
        values = torch.zeros(height * width)
        values[torch.from_numpy(index)] = torch.from_numpy(colours[:, channel].copy())
        full = spread(values.view(1, height, width), has.view(1, height, width))[0]
        page[..., channel] = full.round().clamp(0, 255).byte().numpy()
    return page


def _nearest(vertices: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The vertex [P] nearest to each place [P, 3]."""
    from scipy.spatial import KDTree

    return np.asarray(KDTree(vertices).query(places)[1])
