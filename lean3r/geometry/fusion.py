"""From depth maps to one point cloud: filtering, unprojection and thinning, a few views at a time.

The work is in numpy on plain arrays, in float64 where points are made, and holds candidates of a few views
only, so that memory stays small for hundreds of views. The result is the same on every run.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from lean3r.geometry.lens import Optics
from lean3r.geometry.normals import smooth_normals
from lean3r.geometry.points import edge_mask, voxel_thin
from lean3r.parallel import by_threads
from lean3r.types import PointCloud, Reconstruction, SparsePoints

STEP = 1.25  # least growth of the voxels per step: smaller steps take long and keep few more points
COARSEST = 1e4  # pixels per voxel: no cloud is larger, so voxels of one octave cannot merge further
CHUNK = 500_000  # candidates gathered before a thinning: bounds the memory
SAMPLE = 2_000_000  # confidences that the percentile is taken from: exact below, a regular sample above


def with_cloud(scene: Reconstruction) -> Reconstruction:
    """The scene with the cloud of its depth and confidence, by its point options, along the rays of its lenses.

    Uncertain views give no points. If no view has depth, the cloud are the triangulated points, if there are any, with
    the number of their views as confidence, at the pixel of one of these.
    """
    if scene.sparse is not None and not scene.depth.any():
        return replace(scene, points=_triangulated(scene, scene.sparse))
    points = fuse(
        scene.images,
        scene.certain_depth,
        scene.conf,
        scene.mask,
        scene.cam_from_world,
        scene.intrinsics,
        conf_percentile=scene.point_options.conf_percentile,
        max_points=scene.point_options.max_points,
        optics=Optics.of(scene),
    )
    return replace(scene, points=points)


def without_depth(scene: Reconstruction) -> Reconstruction:
    """The scene with its cameras only: no depth and no confidence; the cloud stays as it was."""
    nothing = np.zeros_like(scene.depth)
    return replace(scene, depth=nothing, conf=nothing.copy())


def _triangulated(scene: Reconstruction, sparse: SparsePoints) -> PointCloud:
    certain = scene.is_certain[sparse.view]
    of_point, of_view, places = sparse.point[certain], sparse.view[certain], sparse.xy[certain]
    seen, first, views = np.unique(of_point, return_index=True, return_counts=True)
    best = np.sort(np.argsort(-views, kind="stable")[: max(1, scene.point_options.max_points)])
    seen, first, views = seen[best], first[best], views[best]
    view = of_view[first].astype(np.int32)
    scales = np.array([source.original_from_network for source in scene.sources]).reshape(-1, 2, 2)[view]
    last = np.array(scene.depth.shape[2:0:-1]) - 1
    xy = np.floor((places[first] - scales[:, 1]) / scales[:, 0]).clip(0, last) + 0.5
    xyz, rgb = sparse.xyz[seen].astype(np.float32), sparse.rgb[seen]
    return PointCloud(xyz, rgb, views.astype(np.float32), view, xy.astype(np.float32), np.zeros_like(xyz))


def fuse(
    images: np.ndarray,
    depth: np.ndarray,
    conf: np.ndarray,
    mask: np.ndarray | None,
    cam_from_world: np.ndarray,
    intrinsics: np.ndarray,
    *,
    conf_percentile: float = 20.0,
    max_points: int = 1_000_000,
    optics: Optics | None = None,
) -> PointCloud:
    """Fuse S views into coloured world points, ordered by view and row-major pixel.

    images [S, H, W, 3] uint8; depth [S, H, W] z-depth; conf [S, H, W]; mask [S, H, W] bool or None;
    cam_from_world [S, 4, 4]; intrinsics [S, 3, 3] in pixels of `images`. Dropped are pixels without a finite
    positive depth and confidence, padding, the `conf_percentile` per cent of lowest confidence in the scene, and flying
    pixels at depth edges. Thinning keeps the most confident point of each voxel, whose side is half to one
    pixel at the point's distance, so that overlapping views do not pile up and near detail stays; all voxels
    grow until at most `max_points` are left. Normals are those of `smooth_normals`. `optics` are the cameras if they
    are not pinholes.
    """
    optics = optics or Optics((), intrinsics)
    keep = trusted_pixels(depth, conf, mask, conf_percentile)
    max_points = max(max_points, 1)
    parts = [_Candidates.empty()]
    waiting, growth = 0, 1.0  # candidates since the last thinning; side of the voxels
    for view in range(len(depth)):
        parts.append(_candidates(view, depth[view], conf[view], keep[view], cam_from_world[view], optics))
        waiting += len(parts[-1].flat)
        if waiting >= CHUNK:
            points = _thin(_Candidates.join(parts), growth)
            # Growing the voxels on the way bounds the memory. The final ones are hardly ever smaller.
            growth *= STEP if len(points.flat) > 1.25 * max_points else 1.0
            parts, waiting = [points], 0
    points = _within(_Candidates.join(parts), max_points, growth)
    order = np.argsort(points.flat)
    flat = points.flat[order]
    height, width = depth.shape[1:]
    rows, cols = np.divmod(flat % (height * width), width)
    ends = np.searchsorted(flat, np.arange(len(depth) + 1) * height * width)

    def normals(view: int) -> np.ndarray:
        # Also of pixels too uncertain or too near to edges for points: more neighbours make normals better.
        usable = _usable(depth[view], conf[view], None if mask is None else mask[view])
        mine = slice(ends[view], ends[view + 1])
        slopes = optics.slopes(view, height, width)
        found = smooth_normals(np.where(usable, depth[view], 0), slopes)[rows[mine], cols[mine]]
        return (found @ cam_from_world[view, :3, :3]).astype(np.float32)

    seen = [view for view in range(len(depth)) if ends[view] < ends[view + 1]]
    return PointCloud(
        xyz=points.xyz[order],
        rgb=images.reshape(-1, 3)[flat],
        conf=points.conf[order],
        view=(flat // (height * width)).astype(np.int32),
        xy=np.stack([cols, rows], axis=1).astype(np.float32) + np.float32(0.5),
        normals=np.concatenate([np.zeros((0, 3), np.float32), *by_threads(normals, seen)]),
    )


def trusted_pixels(depth: np.ndarray, conf: np.ndarray, mask: np.ndarray | None, conf_percentile: float) -> np.ndarray:
    """Pixels [S, H, W] that give points: known depth, not padding, not among the `conf_percentile` per cent of lowest
    confidence in the scene, no flying pixels at depth edges."""
    keep = _usable(depth, conf, mask)
    threshold = _threshold(conf, keep, conf_percentile)

    def narrow(view: int) -> None:
        edge = edge_mask(torch.from_numpy(np.where(keep[view], depth[view], 0))).numpy()
        keep[view] &= ~edge & (conf[view] >= threshold)

    by_threads(narrow, range(len(depth)))
    return keep


class _Candidates:
    """Candidate points: flat [P] index into all pixels, xyz [P, 3], conf [P], octave [P] of their voxel."""

    def __init__(self, flat: np.ndarray, xyz: np.ndarray, conf: np.ndarray, octave: np.ndarray):
        self.flat, self.xyz, self.conf, self.octave = flat, xyz, conf, octave

    @classmethod
    def empty(cls) -> _Candidates:
        return cls(np.zeros(0, np.int64), np.zeros((0, 3), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int8))

    @classmethod
    def join(cls, parts: list[_Candidates]) -> _Candidates:
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("flat", "xyz", "conf", "octave")))

    def __getitem__(self, index: np.ndarray) -> _Candidates:
        return _Candidates(self.flat[index], self.xyz[index], self.conf[index], self.octave[index])


def _usable(depth: np.ndarray, conf: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Pixels [S, H, W] with a finite positive depth and confidence, without padding."""
    usable = np.isfinite(depth)
    usable &= depth > 0
    usable &= np.isfinite(conf)
    usable &= conf > 0
    if mask is not None:
        usable &= mask
    return usable


def _threshold(conf: np.ndarray, usable: np.ndarray, percentile: float) -> float:
    """The confidence below which `percentile` per cent of the usable pixels lie."""
    step = 1 + conf.size // SAMPLE
    values = conf.reshape(-1)[::step][usable.reshape(-1)[::step]]
    # "lower" picks an existing value: with constant confidence every pixel is kept despite rounding.
    return float(np.percentile(values, percentile, method="lower")) if values.size else 0.0


def _candidates(
    view: int, depth: np.ndarray, conf: np.ndarray, keep: np.ndarray, cam_from_world: np.ndarray, optics: Optics
) -> _Candidates:
    """World points of the kept pixels of one view."""
    slopes = optics.slopes(view, *depth.shape)
    flat = np.flatnonzero(keep & np.isfinite(slopes).all(axis=-1))
    z = depth.reshape(-1)[flat].astype(np.float64)
    cam = np.concatenate([slopes.reshape(-1, 2)[flat], np.ones((len(flat), 1))], axis=1) * z[:, None]
    pose = cam_from_world.astype(np.float64)
    xyz = (cam - pose[:3, 3]) @ pose[:3, :3]
    octave = np.floor(np.log2(z * optics.footprint(view))).clip(-120, 120).astype(np.int8)
    return _Candidates(flat + view * depth.size, xyz.astype(np.float32), conf.reshape(-1)[flat], octave)


def _within(points: _Candidates, max_points: int, growth: float) -> _Candidates:
    """Thin with voxels of growth * 2^octave, growing them until at most `max_points` are left."""
    points = _thin(points, growth)
    while len(points.flat) > max_points and growth < COARSEST:
        # Surfaces fill about 1 / growth^2 voxels once voxels are larger than the distance of points.
        growth *= max(1.03 * np.sqrt(len(points.flat) / max_points), STEP)
        points = _thin(points, growth)
    if len(points.flat) > max_points:  # about one point per octave is left
        points = points[np.sort(np.argsort(-points.conf, kind="stable")[:max_points])]
    return points


def _thin(points: _Candidates, growth: float) -> _Candidates:
    def kept(octave: float) -> np.ndarray:
        of_octave = np.flatnonzero(points.octave == octave)
        return of_octave[voxel_thin(points.xyz[of_octave], growth * 2.0**octave, points.conf[of_octave])]

    octaves = np.unique(points.octave).astype(float).tolist()
    return points[np.sort(np.concatenate([np.zeros(0, np.int64), *by_threads(kept, octaves)]))]
