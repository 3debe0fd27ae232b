"""How good is depth: the network's, after it followed refined cameras, and from stereo, classical and learned?

    python benchmarks/depth.py synthetic [--scenes 16] [--views 4,8,16]
    python benchmarks/depth.py photos [--photos FOLDER] [--save FOLDER]
    python benchmarks/depth.py sizes

--net FILE takes other weights of the stereo network than the embedded ones (benchmarks/train_stereo.py makes them).

synthetic: held-out scenes with true cameras, and with those of refinement; AbsRel, share within 5 %, the surest 80 %,
angle of normals, and the distance of clouds. photos: the photo scenes with nano and refinement; the error at points of
the ground-truth models that the run did not use: half of the tracks are set aside, and the run's own points at their
pixels are taken from it; the share of pixels that two other views confirm within 1 %, and that lie in two others at
all; where a depth sensor was there, the error against it. Depth is measured at the size that it has by default; small:
stereo at the network's. sizes: seconds and memory of stereo for pictures and numbers of views of several sizes. One
scale for each scene. Correctness comes first: exact depth must stay exact. Writes benchmarks/results/depth_NAME.json;
figures are medians over scenes, in per cent and degrees.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import ROOT, hardware, write_result
from dense import held_out, in_true_cameras, sparse_points
from PIL import Image

import lean3r
from lean3r.colmap_library import pycolmap
from lean3r.data.base import SceneBatch
from lean3r.data.world.synthetic import HELD_OUT_SEED, SyntheticWorld
from lean3r.geometry.consistency import Scene, neighbours
from lean3r.geometry.fusion import with_cloud
from lean3r.geometry.lens import Optics
from lean3r.geometry.normals import smooth_normals
from lean3r.geometry.points import normals_from_depth
from lean3r.inputs.pictures import Pictures
from lean3r.models.base import Backbone
from lean3r.pipeline.enlarging import enlarge
from lean3r.pipeline.reconstruct import reconstruct
from lean3r.pipeline.trust import no_points
from lean3r.processes import memory_status_mb
from lean3r.refine.depth import follow
from lean3r.stereo.classical import measure_classically
from lean3r.stereo.dense import Measure, densify
from lean3r.stereo.measure import measure
from lean3r.stereo.options import FINER
from lean3r.stereo.rays import pinhole_slopes
from lean3r.stereo.weights import load_net
from lean3r.types import Reconstruction, Source, Views

NEAR_PX = 4.0  # a point of the run this near to one that is set aside is taken from it
SUREST = 0.8
CONFIRMED = 0.01
BEHIND = 1.1  # times the depth of a view, from which a place is hidden there
SIZES, SIZE_VIEWS = ((240, 320), (480, 640)), (4, 16)  # height, width
BENT = 0.1
MEASURES: dict[str, Measure] = {"classical": measure_classically, "stereo": measure}
Way = Callable[[Reconstruction], Reconstruction]


def ways(sized: Way = lambda scene: scene) -> dict[str, Way]:
    """What is compared, by name; depth is measured after `sized` changed the size of pictures and maps."""
    measured = {way: lambda scene, by=by: densify(sized(follow(scene)), measure=by) for way, by in MEASURES.items()}
    return {"network": lambda scene: scene, "follow": follow, **measured}


def against(depth: np.ndarray, conf: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Errors after one scale for the scene, of all pixels and of the SUREST part, in per cent."""
    errors = relative(depth, truth)
    known = np.isfinite(errors)
    error = errors[known]
    sure = conf[known] >= np.quantile(conf[known], 1 - SUREST, method="higher")
    found = {"abs_rel": error.mean(), "surest": error[sure].mean(), "median": np.median(error)}
    found |= {"within_5": (error < 0.05).mean(), "missing": 1 - known.sum() / max((truth > 0).sum(), 1)}
    return {name: 100 * float(value) for name, value in found.items()}


def relative(depth: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Relative errors after one scale for the scene, NaN where either depth is unknown."""
    ratio = np.where((truth > 0) & (depth > 0), depth, np.nan) / np.where(truth > 0, truth, 1)
    return np.abs(ratio / np.nanmedian(ratio) - 1)


def normals_deg(depth: np.ndarray, truth: SceneBatch) -> float:
    """The median angle of smooth normals, as in the cloud, to the true ones."""
    known = (truth.depth[0] > 0) & torch.from_numpy(depth > 0)
    slopes = pinhole_slopes(truth.intrinsics[0].double(), *depth.shape[1:]).numpy()
    ours = torch.from_numpy(np.stack([smooth_normals(*view) for view in zip(depth, slopes, strict=True)]))
    exact = normals_from_depth(truth.depth[0], truth.intrinsics[0])
    return float(torch.rad2deg((ours * exact).sum(-1)[known].clamp(-1, 1).acos()).median())


def confirmed(scene: Reconstruction) -> dict[str, float]:
    """Shares of the pixels with depth, in per cent: that at least two other views confirm within CONFIRMED, and that
    lie in the pictures of two others at all."""
    maps = Scene(scene.depth, scene.cam_from_world, Optics.of(scene))
    agreed, within, total = 0, 0, 0
    for view, others in enumerate(neighbours(maps, 8)):
        rows, cols = np.nonzero(scene.depth[view] > 0)
        votes, pictures = np.zeros((2, len(rows)), int)
        for other in others:
            z, own = maps.seen(other, maps.world_points(view, rows, cols))
            votes += np.abs(np.where(np.isfinite(own), z / own, np.inf) - 1) < CONFIRMED
            pictures += np.isfinite(own)
        agreed, within = agreed + int((votes >= 2).sum()), within + int((pictures >= 2).sum())
        total += len(rows)
    return {"confirmed": 100 * agreed / max(total, 1), "in_three": 100 * within / max(total, 1)}


def synthetic(model: Backbone, scenes: int, counts: list[int]) -> dict[str, Any]:
    """By cameras, views and way: medians over scenes."""
    result: dict[str, Any] = {"true": {}, "refined": {}}
    for views in counts:
        rows: dict[str, dict[str, list[dict[str, float]]]] = {c: {w: [] for w in ways()} for c in result}
        for index in range(scenes):
            truth = held_out(index, views)
            found = reconstruct(model, Views(truth.images))
            starts = {"true": replace(in_true_cameras(found, truth), sparse=sparse_points(truth, index))}
            refined = reconstruct(model, Views(truth.images), refine="on")
            if refined.info["refinement"]["status"] != "kept":
                starts["refined"] = replace(refined, depth=found.depth, conf=found.conf)
            for cameras, start in starts.items():
                for way, apply in ways().items():
                    scene = apply(start)
                    figures = against(scene.depth, scene.conf, truth.depth[0].numpy())
                    figures |= {"normals_deg": normals_deg(scene.depth, truth)}
                    rows[cameras][way].append(figures)
        for cameras, by_way in rows.items():
            result[cameras][views] = {way: medians(each) for way, each in by_way.items()} | {
                "scenes": len(by_way["network"])
            }
            print(cameras, views, result[cameras][views], flush=True)
    return result


def sizes() -> dict[str, Any]:
    """By size of pictures and views: AbsRel before and after, median seconds a view, memory above what was in use."""
    result: dict[str, Any] = {}
    for height, width in SIZES:
        for views in SIZE_VIEWS:
            world = SyntheticWorld(seed=HELD_OUT_SEED, distortion=0.0)
            truth = world.batch(1, 1, views=views, height=height, width=width)
            scene = with_bent_depth(truth)
            wall, processor = [], []
            for _ in range(3):
                Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
                before = memory_status_mb("VmRSS")
                begun = time.perf_counter(), time.process_time()
                found = densify(scene)
                wall.append((time.perf_counter() - begun[0]) / views)
                processor.append((time.process_time() - begun[1]) / views)
                peak = memory_status_mb("VmHWM")
            errors = [against(each.depth, each.conf, truth.depth[0].numpy())["abs_rel"] for each in (scene, found)]
            assert errors[1] < 0.7 * errors[0], errors
            assert before is not None and peak is not None
            row = {"abs_rel_before": errors[0], "abs_rel": errors[1], "memory_mb": peak - before}
            row |= {"seconds_a_view": np.median(wall), "cpu_seconds_a_view": np.median(processor)}
            result.setdefault(f"{width}x{height}", {})[str(views)] = {k: round(float(v), 3) for k, v in row.items()}
            print(width, height, views, row, flush=True)
    return result


def with_bent_depth(truth: SceneBatch) -> Reconstruction:
    """The true cameras with depth that is off by some BENT, smoothly."""
    views, _, height, width = truth.images[0].shape
    noise = torch.randn(views, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * BENT
    depth = truth.depth[0] * F.interpolate(noise, (height, width), mode="bicubic", align_corners=False)[:, 0].exp()
    return Reconstruction(
        sources=tuple(Source(f"{view}.png", width, height) for view in range(views)),
        images=(truth.images[0].permute(0, 2, 3, 1) * 255).round().byte().numpy(),
        mask=np.ones(depth.shape, bool),
        depth=depth.numpy(),
        conf=np.ones(depth.shape, np.float32),
        cam_from_world=truth.cam_from_world[0].double().numpy(),
        intrinsics=truth.intrinsics[0].double().numpy(),
        points=no_points(),
        registration=("given",) * views,
    )


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    """Of every figure over the scenes."""
    return {name: round(float(np.median([row[name] for row in rows])), 3) for name in (rows[0] if rows else {})}


def set_aside(scene: Reconstruction, folder: Path) -> tuple[Reconstruction, list[tuple[int, np.ndarray, np.ndarray]]]:
    """The scene without its points at pixels of every second track of the ground truth, and these tracks: view, xy in
    original pixels [N, 2] and true depth [N]."""
    model = pycolmap.Reconstruction(folder)
    places, used = [], set()
    numbers = {Path(name).stem: view for view, name in enumerate(scene.names)}
    for image in model.images.values():
        view = numbers.get(Path(image.name).stem)
        if view is None:
            continue
        observed = [(p.xy, p.point3D_id) for p in image.points2D if p.has_point3D() and p.point3D_id % 2]
        xy = np.array([xy for xy, _ in observed]).reshape(-1, 2)
        xyz = np.array([model.points3D[number].xyz for _, number in observed]).reshape(-1, 3)
        z = (image.cam_from_world() * xyz)[:, 2] if len(xyz) else np.zeros(0)
        places.append((view, xy, z))
    sparse = scene.sparse
    if sparse is not None:
        for view, xy, _ in places:
            mine = np.flatnonzero(sparse.view == view)
            if len(mine) and len(xy):
                apart = np.linalg.norm(sparse.xy[mine, None] - xy[None], axis=-1).min(1)
                used |= set(sparse.point[mine[apart < NEAR_PX]].tolist())
        kept = ~np.isin(sparse.point, list(used))
        sparse = replace(sparse, point=sparse.point[kept], view=sparse.view[kept], xy=sparse.xy[kept])
    return replace(scene, sparse=sparse), places


def at_tracks(scene: Reconstruction, places: list[tuple[int, np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Errors at tracks after one scale for the scene."""
    ratios = []
    for view, xy, z in places:
        scale, offset = np.reshape(scene.sources[view].original_from_network, (2, 2))
        cols, rows = np.floor((xy - offset) / scale).astype(int).T
        inside = (cols >= 0) & (rows >= 0) & (cols < scene.depth.shape[2]) & (rows < scene.depth.shape[1]) & (z > 0)
        depth = scene.depth[view, rows[inside], cols[inside]]
        ratios.append((depth / z[inside])[depth > 0])
    ratio = np.concatenate(ratios)
    error = 100 * np.abs(ratio / np.median(ratio) - 1)
    return {"at_tracks_median": float(np.median(error)), "at_tracks_mean": float(error.mean()), "tracks": len(ratio)}


def sensor(scene: Reconstruction, folder: Path) -> dict[str, float]:
    """Errors against the maps of a depth sensor, where there are any."""
    if not folder.is_dir():
        return {}
    truth = np.zeros_like(scene.depth)
    for view, source in enumerate(scene.sources):
        path = folder / f"{Path(source.name).stem}.png"
        if path.is_file():
            depth = np.asarray(Image.open(path), np.float32)
            sx, sy, ox, oy = source.original_from_network
            height, width = scene.depth.shape[1:]
            cols = ((np.arange(width) + 0.5) * sx + ox) * depth.shape[1] / source.width
            rows = ((np.arange(height) + 0.5) * sy + oy) * depth.shape[0] / source.height
            inside = ((rows >= 0) & (rows < depth.shape[0]))[:, None] & ((cols >= 0) & (cols < depth.shape[1]))
            at = np.ix_(rows.astype(int).clip(0, depth.shape[0] - 1), cols.astype(int).clip(0, depth.shape[1] - 1))
            truth[view] = np.where(inside, depth[at], 0)
    found = against(scene.depth, scene.conf, truth)
    by_others = seen_by_others(scene, truth)
    found["alone"] = 100 * float((~by_others[truth > 0]).mean())
    errors = relative(scene.depth, truth)
    for name, where in (("of_seen", by_others), ("of_alone", ~by_others)):
        found[name] = 100 * float(np.nanmean(errors[where]))
    return {f"sensor_{name}": value for name, value in found.items()}


def seen_by_others(scene: Reconstruction, truth: np.ndarray) -> np.ndarray:
    """Pixels [S, H, W] bool whose true place is in the picture of another view, not behind the depth there."""
    known = (truth > 0) & (scene.depth > 0)
    depth = np.where(truth > 0, truth * np.median(scene.depth[known] / truth[known]), 0).astype(np.float32)
    exact, found = (Scene(maps, scene.cam_from_world, Optics.of(scene)) for maps in (depth, scene.depth))
    is_seen = np.zeros(truth.shape, bool)
    for view in range(len(truth)):
        rows, cols = np.nonzero(truth[view] > 0)
        world = exact.world_points(view, rows, cols)
        for other in set(range(len(truth))) - {view}:
            z, own = found.seen(other, world)
            is_seen[view, rows, cols] |= z < BEHIND * np.where(np.isfinite(own), own, -np.inf)
    return is_seen


def photos(model: Backbone, root: Path, save: Path | None) -> dict[str, Any]:
    """By scene and way."""
    result: dict[str, Any] = {}
    for folder in sorted(path for path in root.iterdir() if (path / "gt").is_dir()):
        pictures = Pictures(folder / "images")
        predicted = reconstruct(model, pictures, refine="off", dense="network")
        refined = reconstruct(model, pictures, refine="on", dense="network")
        start, places = set_aside(replace(refined, depth=predicted.depth, conf=predicted.conf), folder / "gt")
        result[folder.name] = {"status": refined.info["refinement"]["status"], "views": len(refined.sources)}
        compared = {"small": ways()["stereo"]} | ways(partial(enlarge, pictures=pictures, side=FINER))
        for way, apply in compared.items():
            scene = apply(start)
            figures = at_tracks(scene, places) | sensor(scene, folder / "depth") | confirmed(scene)
            result[folder.name][way] = {name: round(value, 3) for name, value in figures.items()}
            if save is not None:
                lean3r.export(with_cloud(scene), save / folder.name / way, ["ply", "preview"], overwrite=True)
        print(folder.name, result[folder.name], flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("synthetic", "photos", "sizes"))
    parser.add_argument("--scenes", type=int, default=16)
    parser.add_argument("--views", default="4,8,16")
    parser.add_argument("--photos", type=Path, default=ROOT.parent / "shared" / "data" / "scenes")
    parser.add_argument("--save", type=Path)
    parser.add_argument("--net", type=Path)
    options = parser.parse_args()
    if options.net:
        MEASURES["stereo"] = partial(measure, net=load_net(options.net))
    result: dict[str, Any] = {"hardware": hardware()}
    if options.what == "sizes":
        print(write_result("depth_sizes", result | {"sizes": sizes()}))
        return
    model = lean3r.load("nano", device="cpu")
    if options.what == "synthetic":
        counts = [int(count) for count in options.views.split(",")]
        result |= {"scenes": options.scenes, "by_cameras": synthetic(model, options.scenes, counts)}
    else:
        result |= {"scenes": photos(model, options.photos, options.save)}
    print(write_result(f"depth_{options.what}", result))


if __name__ == "__main__":
    main()
