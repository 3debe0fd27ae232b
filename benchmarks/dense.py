"""Does depth improve when it is fitted to good cameras? nano's depth of held-out synthetic scenes, before and after.

    python benchmarks/dense.py [--scenes 40] [--views 6] [--weights FILE]

Cameras are the true ones and sparse points come from true geometry: noisy sightings, triangulated, with outliers.
Correctness comes first: exact depth must stay exact. Writes benchmarks/results/dense.json. AbsRel and normal errors
are medians over scenes, distances of clouds are in per cent of the scene's mean depth.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import hardware, write_result

import lean3r
from lean3r.data.base import SceneBatch
from lean3r.data.world.synthetic import SyntheticWorld
from lean3r.eval.point_errors import nearest
from lean3r.geometry.fusion import fuse, with_cloud
from lean3r.geometry.points import normals_from_depth
from lean3r.models.base import Backbone
from lean3r.pipeline.reconstruct import reconstruct
from lean3r.refine.depth import follow
from lean3r.train.recipes import HELD_OUT_SEED
from lean3r.types import PointCloud, Reconstruction, SparsePoints, Views

HEIGHT, WIDTH = 208, 272
POINTS, NOISE_PX, OUTLIERS = 2000, 0.5, 0.03
LEAST_ANGLE_RAD = np.deg2rad(1.5)  # between two measurements of a point, as structure from motion requires
CLOUD = 20_000  # points of each cloud that are compared


def held_out(index: int, views: int) -> SceneBatch:
    """One scene that no recipe trains on, with undistorted lenses."""
    return SyntheticWorld(seed=HELD_OUT_SEED, distortion=0.0).batch(index, 1, views=views, height=HEIGHT, width=WIDTH)


def in_true_cameras(found: Reconstruction, truth: SceneBatch) -> Reconstruction:
    """A prediction with the true cameras, its depth brought to their scale."""
    intrinsics, poses = truth.intrinsics[0].double().numpy(), truth.cam_from_world[0].double().numpy()
    depth = truth.depth[0].numpy()
    known = depth > 0
    scale = float(np.median(depth[known]) / np.median(found.depth[known]))
    arrays = {"depth": found.depth * np.float32(scale), "cam_from_world": poses, "intrinsics": intrinsics}
    return replace(found, **arrays)


def sparse_points(truth: SceneBatch, seed: int) -> SparsePoints:
    """Points of the true surfaces as structure from motion gives them: triangulated from measurements with NOISE_PX."""
    rng = np.random.default_rng(seed)
    depth, poses = truth.depth[0].double().numpy(), truth.cam_from_world[0].double().numpy()
    intrinsics = truth.intrinsics[0].double().numpy()
    views, height, width = depth.shape
    centres = -np.einsum("sij,si->sj", poses[:, :3, :3], poses[:, :3, 3])
    view = rng.integers(views, size=POINTS)
    row, col = rng.integers(height, size=POINTS), rng.integers(width, size=POINTS)
    z = depth[view, row, col]
    cam = np.einsum("pij,pj->pi", np.linalg.inv(intrinsics)[view], np.stack([col + 0.5, row + 0.5, z * 0 + 1], 1))
    world = np.einsum("pji,pj->pi", poses[view, :3, :3], cam * z[:, None] - poses[view, :3, 3])
    rows, seen = [[] for _ in range(POINTS)], [[] for _ in range(POINTS)]
    for v in range(views):
        local = world @ poses[v, :3, :3].T + poses[v, :3, 3]
        pixel = local @ intrinsics[v].T
        xy = pixel[:, :2] / np.where(pixel[:, 2:] > 0, pixel[:, 2:], np.nan)
        inside = (z > 0) & (xy >= 0).all(1) & (xy < [width, height]).all(1)
        at = np.where(inside[:, None], xy, 0).astype(int)
        inside &= np.abs(depth[v, at[:, 1], at[:, 0]] / np.maximum(local[:, 2], 1e-9) - 1) < 0.01
        noisy = (
            xy + rng.normal(0, NOISE_PX, xy.shape) + rng.normal(0, 20, xy.shape) * (rng.random((POINTS, 1)) < OUTLIERS)
        )
        projection = intrinsics[v] @ poses[v, :3]
        for p in np.flatnonzero(inside):
            rows[p] += [noisy[p, 0] * projection[2] - projection[0], noisy[p, 1] * projection[2] - projection[1]]
            seen[p].append((v, noisy[p]))
    kept = [p for p in range(POINTS) if _angle(world[p], centres[[v for v, _ in seen[p]]]) > LEAST_ANGLE_RAD]
    solved = np.array([np.linalg.svd(np.stack(rows[p]))[2][-1] for p in kept]).reshape(-1, 4)
    xyz = solved[:, :3] / solved[:, 3:]
    sightings = [(i, v, xy) for i, p in enumerate(kept) for v, xy in seen[p]]
    return SparsePoints(
        xyz, np.zeros((len(kept), 3), np.uint8), np.full(len(kept), NOISE_PX),
        np.array([s[0] for s in sightings], np.int32), np.array([s[1] for s in sightings], np.int32),
        np.array([s[2] for s in sightings]).reshape(-1, 2),
    )  # fmt: skip


def _angle(point: np.ndarray, centres: np.ndarray) -> float:
    """The widest angle between the rays from centres [N, 3] to a point; 0 for fewer than two."""
    rays = (point - centres) / np.linalg.norm(point - centres, axis=1, keepdims=True)
    return float(np.arccos((rays @ rays.T).clip(-1, 1)).max()) if len(centres) > 1 else 0.0


def score(found: Reconstruction, truth: SceneBatch) -> dict[str, float]:
    """AbsRel as it is and after one scale for the scene, in per cent; median angle of normals in degrees; mean
    distances from the cloud to the truth and back."""
    depth, true = torch.from_numpy(found.depth), truth.depth[0]
    known = (true > 0) & (depth > 0)
    ratio = depth[known] / true[known]
    intrinsics = truth.intrinsics[0]
    ours, exact = normals_from_depth(depth, intrinsics), normals_from_depth(true, intrinsics)
    angle = torch.rad2deg((ours * exact).sum(-1)[known].clamp(-1, 1).acos())
    poses = truth.cam_from_world[0].double().numpy()
    surface = fuse(
        found.images, true.numpy(), np.ones(true.shape, np.float32), None, poses, intrinsics.numpy(), conf_percentile=0
    ).xyz
    thin = [c[:: 1 + len(c) // CLOUD] for c in (with_cloud(found).points.xyz, surface)]
    unit = float(true[true > 0].mean()) / 100
    return {
        "abs_rel": 100 * float((ratio - 1).abs().mean()),
        "abs_rel_one_scale": 100 * float((ratio / ratio.median() - 1).abs().mean()),
        "normals_deg": float(angle.median()),
        "accuracy": float(nearest(*thin)[0].mean()) / unit,
        "completeness": float(nearest(*thin[::-1])[0].mean()) / unit,
    }


def check(views: int) -> None:
    """Exact depth stays exact, whatever the noise of the points."""
    truth = held_out(0, views)
    shape = (views, HEIGHT, WIDTH)
    nothing = PointCloud(*(np.zeros(s, np.float32) for s in ((0, 3), (0, 3), 0, 0, (0, 2), (0, 3))))
    exact = Reconstruction(
        tuple(lean3r.Source(f"{i}.png", WIDTH, HEIGHT) for i in range(views)),
        np.zeros((*shape, 3), np.uint8),
        np.ones(shape, bool),
        truth.depth[0].numpy(),
        np.ones(shape, np.float32),
        truth.cam_from_world[0].double().numpy(),
        truth.intrinsics[0].double().numpy(),
        nothing,
        sparse=sparse_points(truth, 0),
    )
    after = score(follow(exact), truth)
    assert after["abs_rel"] < 0.5, f"exact depth was harmed: AbsRel {after['abs_rel']:.2f} %"


def run(model: Backbone, scenes: int, views: int) -> dict:
    """Medians over scenes, before and after, and how many improved."""
    before, after, seconds, fields = [], [], [], []
    for index in range(scenes):
        truth = held_out(index, views)
        found = in_true_cameras(reconstruct(model, Views(truth.images)), truth)
        start = time.perf_counter()
        better = follow(replace(found, sparse=sparse_points(truth, index)))
        seconds.append(time.perf_counter() - start)
        fields.append(np.mean([view["field"] for view in better.info["depth"]]))
        before.append(score(found, truth))
        after.append(score(better, truth))
    names = before[0]
    return {
        "before": {n: round(float(np.median([b[n] for b in before])), 3) for n in names},
        "after": {n: round(float(np.median([a[n] for a in after])), 3) for n in names},
        "scenes_better": {n: sum(a[n] < b[n] for a, b in zip(after, before, strict=True)) for n in names},
        "views_with_field": round(float(np.mean(fields)), 3),
        "seconds": round(float(np.median(seconds)), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--views", type=int, default=6)
    parser.add_argument("--weights", type=Path, help="another file of nano's weights")
    options = parser.parse_args()
    check(options.views)
    model = lean3r.load("nano", options.weights, device="cpu")
    result = {"hardware": hardware(), "scenes": options.scenes, "views": options.views, "size": [HEIGHT, WIDTH]}
    result |= run(model, options.scenes, options.views)
    path = write_result("dense", result)
    print(path.read_text())


if __name__ == "__main__":
    main()
