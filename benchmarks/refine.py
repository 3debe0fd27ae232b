"""What does refinement gain? Real photo scenes compared with plain pycolmap, and held-out synthetic scenes.

    python benchmarks/refine.py [--photos ../shared/data/scenes] [--repeats 3] [--scenes 20] [--minutes 60]

Writes benchmarks/results/refine.json, again after every scene. Each photo scene is run in turn by the network alone,
refined, refined with known intrinsics (all in one process), and by plain pycolmap with its defaults (SIFT, exhaustive
matching, incremental mapping) in a separate process. Seconds are medians, of the work alone (no imports, no loading of
weights).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import hardware, write_result
from PIL import Image

import lean3r
from lean3r.data.sets.colmap import read_cameras
from lean3r.data.world.synthetic import SyntheticWorld
from lean3r.eval.point_errors import nearest
from lean3r.eval.pose_errors import pose_auc
from lean3r.eval.reconstruction import network_depth
from lean3r.eval.synthetic import abs_rel_one_scale
from lean3r.eval.trajectory import trajectory_errors
from lean3r.geometry.align import umeyama_robust
from lean3r.geometry.pose import camera_centers
from lean3r.refine.accept import pair_errors
from lean3r.train.recipes import HELD_OUT_SEED
from lean3r.types import Reconstruction

THRESHOLDS_DEG = (3, 5, 15, 30)
SIZE = (360, 480)  # height, width of synthetic photographs
SAMPLE = 20_000  # points that clouds are compared by
THREADS = 2


def check() -> None:
    """Check the measures used below on exact cameras."""
    points = np.random.default_rng(0).normal((0, 0, 6), 1, (50, 3))
    pose = np.eye(4)
    pose[0, 3] = -1.0
    moved = points + pose[:3, 3]
    assert pair_errors(points[:, :2] / points[:, 2:], moved[:, :2] / moved[:, 2:], pose).max() < 1e-12
    truth = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    truth[:, :3, 3] = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0.5]])
    assert pose_auc(truth, truth, THRESHOLDS_DEG)[3] == 1.0


def pose_figures(found: np.ndarray, truth: np.ndarray, registered: np.ndarray) -> dict[str, float]:
    """AUC in per cent over all pairs (views that are not finite are misses); ATE of the finite views after a
    similarity, in per cent of the scene's size (root mean square distance of the true centres from their middle)."""
    auc = pose_auc(torch.from_numpy(found), torch.from_numpy(truth), THRESHOLDS_DEG)
    figures = {f"auc{t}": round(100 * auc[t], 2) for t in THRESHOLDS_DEG} | {"registered": int(registered.sum())}
    there = np.asarray(np.isfinite(found).all((1, 2)))
    if there.sum() >= 3:
        centres = camera_centers(torch.from_numpy(truth))
        size = float((centres - centres.mean(0)).norm(dim=-1).square().mean().sqrt())
        ate = trajectory_errors(torch.from_numpy(found[there]), torch.from_numpy(truth[there])).ate
        figures["ate"] = round(100 * float(np.sqrt(np.mean(ate**2))) / size, 3)
    return figures


REFINED = lean3r.RefineOptions(when="on", seconds=600)


def ways(intrinsics: Path) -> dict[str, dict[str, Any]]:
    """The options of each variant."""
    return {
        "network": {"refine": "off"},
        "refined": {"refine": REFINED},
        "known_intrinsics": {
            "refine": REFINED,
            "cameras": lean3r.CameraOptions(cameras=intrinsics, known="intrinsics"),
        },
    }


def photos(model, folder: Path, rows: dict[str, dict]) -> Iterator[None]:
    """One round over the scenes of a folder, NAME/images and NAME/gt, into `rows`; comes back after each scene."""
    for scene in sorted(path for path in folder.iterdir() if (path / "gt").is_dir()):
        cameras = read_cameras(scene / "gt")
        row = rows.setdefault(scene.name, {"views": len(cameras.names)})
        for name, options in ways(scene / "gt").items():
            start = time.perf_counter()
            found = lean3r.reconstruct(model, scene / "images", **options)
            taken = time.perf_counter() - start
            add_run(row, name, of_reconstruction(found, cameras.names, cameras.cam_from_world), taken)
        poses, taken = plain(scene / "images")
        found_poses = np.stack([poses.get(n, np.full((4, 4), np.nan)) for n in cameras.names])
        there = np.asarray(np.isfinite(found_poses).all((1, 2)))
        add_run(row, "pycolmap", pose_figures(found_poses, cameras.cam_from_world, there), taken)
        print(scene.name, {way: (f["auc5"], f["registered"], f["seconds"]) for way, f in figures(row)}, flush=True)
        yield


def figures(row: dict) -> list[tuple[str, dict]]:
    """The ways of a row and their figures."""
    return [(way, values) for way, values in row.items() if isinstance(values, dict)]


def add_run(row: dict, way: str, found: dict, taken: float) -> None:
    """Add the figures of one more run, with the median of all seconds so far."""
    every = [*row.get(way, {}).get("all_seconds", ()), round(taken, 2)]
    row[way] = found | {"seconds": round(statistics.median(every), 2), "all_seconds": every}


def of_reconstruction(found: Reconstruction, names: tuple[str, ...], truth: np.ndarray) -> dict:
    """Figures of one result, in the order of the truth."""
    index = [found.names.index(name) for name in names]
    registered = np.array([r != "predicted" for r in found.registration] or [False] * len(found.names))[index]
    figures = pose_figures(found.cam_from_world[index], truth, registered)
    told = found.info.get("refinement")
    if told:
        figures |= {key: told[key] for key in ("status", "error_px", "inliers", "matches") if key in told}
        figures["refinement_seconds"] = told["seconds"]
    return figures


def plain(images: Path) -> tuple[dict[str, np.ndarray], float]:
    """Poses by name of the largest model of pycolmap's defaults, and the seconds that it took."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--plain", str(images), folder]
        subprocess.run(command, check=True, capture_output=True)
        told = json.loads((Path(folder) / "poses.json").read_text())
    return {name: np.array(pose) for name, pose in told["poses"].items()}, told["seconds"]


def run_plain(images: Path, folder: Path) -> None:
    """The process that `plain` starts: pycolmap with its defaults."""
    import pycolmap

    start = time.perf_counter()
    pycolmap.extract_features(folder / "database.db", images)
    pycolmap.match_exhaustive(folder / "database.db")
    models = pycolmap.incremental_mapping(folder / "database.db", images, folder)
    seconds = time.perf_counter() - start
    best = max(models.values(), key=lambda model: model.num_reg_images(), default=None)
    chosen = [] if best is None else [image for image in best.images.values() if image.has_pose]
    poses = {image.name: [*image.cam_from_world().matrix().tolist(), [0, 0, 0, 1]] for image in chosen}
    (folder / "poses.json").write_text(json.dumps({"poses": poses, "seconds": seconds}))


def synthetic(model, scenes: int, views: int) -> Iterator[dict[str, dict]]:
    """Medians over held-out scenes, photographed at SIZE: network alone, refined, with known intrinsics; after each
    scene those so far."""
    world = SyntheticWorld(seed=HELD_OUT_SEED, tile_size=256)
    every: dict[str, list[dict]] = {}
    for index in range(scenes):
        batch = world.batch(index, 1, views=views, height=SIZE[0], width=SIZE[1])
        truth = batch.cam_from_world[0].double().numpy()
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for view, image in enumerate((batch.images[0] * 255).round().byte().permute(0, 2, 3, 1).numpy()):
                Image.fromarray(image).save(folder / f"{view:02d}.bmp")
            write_intrinsics(folder / "cameras.json", batch.intrinsics[0].double().numpy())
            for kind, options in ways(folder / "cameras.json").items():
                found = lean3r.reconstruct(model, sorted(folder.glob("*.bmp")), **options)
                figures = of_reconstruction(found, found.names, truth)
                every.setdefault(kind, []).append(figures | dense_figures(found, batch, truth))
        print(
            index,
            {k: (v[-1]["auc5"], v[-1].get("status"), round(v[-1]["abs_rel"], 1)) for k, v in every.items()},
            flush=True,
        )
        yield medians(every)


def medians(every: dict[str, list[dict]]) -> dict[str, dict]:
    """Of the figures of all scenes, by way."""
    keys = [*(f"auc{t}" for t in THRESHOLDS_DEG), "ate", "abs_rel", "normal_deg", "accuracy", "completeness"]
    return {
        kind: {key: round(statistics.median(r[key] for r in rows), 3) for key in keys}
        | {f"mean_auc{t}": round(statistics.mean(r[f"auc{t}"] for r in rows), 2) for t in THRESHOLDS_DEG}
        | {"status": [r.get("status") for r in rows]}
        for kind, rows in every.items()
    }


def write_intrinsics(path: Path, matrices: np.ndarray) -> None:
    """A cameras.json with intrinsics alone."""
    height, width = SIZE
    views = [
        {"name": f"{v:02d}.bmp", "width": width, "height": height, "K": k.tolist()} for v, k in enumerate(matrices)
    ]
    path.write_text(json.dumps({"axes": "opencv", "views": views}))


def dense_figures(found: Reconstruction, batch, truth: np.ndarray) -> dict[str, float]:
    """AbsRel in per cent after one scale, median angle between normals in degrees, and the cloud's accuracy and
    completeness (mean distance to the other's nearest point, in per cent of the mean depth), after a similarity
    that brings predicted pixels onto true ones."""
    depth = network_depth(found, batch.depth[0].numpy())
    known = (depth > 0) & (found.depth > 0)
    intrinsics = np.stack(
        [to_network(k, s) for k, s in zip(batch.intrinsics[0].double().numpy(), found.sources, strict=True)]
    )
    ours, theirs = (
        world_points(found.depth, found.intrinsics, found.cam_from_world),
        world_points(depth, intrinsics, truth),
    )
    rng = np.random.default_rng(0)
    pick = rng.choice(np.flatnonzero(known.ravel()), min(SAMPLE, int(known.sum())), replace=False)
    source, target = (torch.from_numpy(points.reshape(-1, 3)[pick]) for points in (ours, theirs))
    fit = umeyama_robust(source, target)
    cloud = found.points.xyz[rng.choice(len(found.points.xyz), min(SAMPLE, len(found.points.xyz)), replace=False)]
    cloud = fit.apply(torch.from_numpy(cloud.astype(np.float64))).numpy()
    mean = float(depth[depth > 0].mean()) / 100
    surface = theirs[depth > 0]
    goal = surface[rng.choice(len(surface), min(SAMPLE, len(surface)), replace=False)]
    both = known[:, 1:, 1:] & known[:, :-1, 1:] & known[:, 1:, :-1]
    cosine = (normals(ours) * (normals(theirs) @ fit.rotation.numpy()))[both].sum(-1)
    return {
        "abs_rel": 100 * abs_rel_one_scale(*map(torch.from_numpy, (found.depth, depth, known))),
        "normal_deg": float(np.degrees(np.arccos(np.clip(np.median(cosine), -1, 1)))),
        "accuracy": float(nearest(cloud, surface)[0].mean()) / mean,
        "completeness": float(nearest(goal, cloud)[0].mean()) / mean,
    }


def to_network(matrix: np.ndarray, source) -> np.ndarray:
    """Intrinsics of the original picture in network pixels."""
    sx, sy, ox, oy = source.original_from_network
    return np.array([[1 / sx, 0, -ox / sx], [0, 1 / sy, -oy / sy], [0, 0, 1]]) @ matrix


def world_points(depth: np.ndarray, intrinsics: np.ndarray, cam_from_world: np.ndarray) -> np.ndarray:
    """[S, H, W, 3] world points of depth maps [S, H, W]."""
    height, width = depth.shape[1:]
    y, x = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    rays = np.einsum("sij,hwj->shwi", np.linalg.inv(intrinsics), np.stack([x, y, np.ones_like(x)], -1))
    return np.einsum(
        "sij,shwj->shwi",
        np.linalg.inv(cam_from_world)[:, :3, :3],
        rays * depth[..., None] - cam_from_world[:, None, None, :3, 3],
    )


def normals(points: np.ndarray) -> np.ndarray:
    """Unit normals [S, H - 1, W - 1, 3] of a grid of points, by differences of neighbours."""
    across, down = points[:, 1:, 1:] - points[:, 1:, :-1], points[:, 1:, 1:] - points[:, :-1, 1:]
    found = np.cross(across, down)
    return found / np.maximum(np.linalg.norm(found, axis=-1, keepdims=True), 1e-30)


def summary(rows: dict[str, dict]) -> dict:
    """The aims: AUC@5 within 2 points of plain pycolmap or better, and less time."""
    return {
        "auc5_within_2_of_pycolmap": sum(r["refined"]["auc5"] >= r["pycolmap"]["auc5"] - 2 for r in rows.values()),
        "faster_than_pycolmap": sum(r["refined"]["seconds"] < r["pycolmap"]["seconds"] for r in rows.values()),
        "scenes": len(rows),
    }


def measure(model, options: argparse.Namespace) -> Iterator[dict]:
    """The result so far, after each scene: every photo scene once, the synthetic ones, then the other rounds of
    photo scenes. When time is up, only the first round continues."""
    deadline = time.perf_counter() + 60 * options.minutes
    rows: dict[str, dict] = {}
    for number in range(options.repeats if options.photos.is_dir() else 0):
        for _ in photos(model, options.photos, rows):
            yield {"photos": rows, "aims": summary(rows)}
            if number and time.perf_counter() > deadline:
                return
        if number == 0:
            yield from synthetic_part(model, options, deadline)
    if not rows:
        yield from synthetic_part(model, options, deadline)


def synthetic_part(model, options: argparse.Namespace, deadline: float) -> Iterator[dict]:
    """Medians of the synthetic scenes so far; no further scene when time is up."""
    for done, found in enumerate(synthetic(model, options.scenes, options.views), start=1):
        yield {"synthetic": {"scenes": done, "views": options.views, **found}}
        if time.perf_counter() > deadline:
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, default=Path("../shared/data/scenes"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scenes", type=int, default=20)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=60.0, help="after these, only the first round continues")
    parser.add_argument("--out", default="refine")
    parser.add_argument("--plain", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain:
        run_plain(*options.plain)
        return
    check()
    torch.set_num_threads(THREADS)
    model = lean3r.load("nano")
    lean3r.reconstruct(model, torch_views())  # first calls are slower
    result: dict = {"hardware": hardware(), "repeats": options.repeats}
    for part in measure(model, options):
        result |= part
        write_result(options.out, result)
    print(write_result(options.out, result))


def torch_views() -> lean3r.Views:
    """Input for a warm-up run."""
    return lean3r.Views(torch.rand(1, 8, 3, 192, 288))


if __name__ == "__main__":
    main()
