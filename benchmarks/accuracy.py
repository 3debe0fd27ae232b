"""How accurate is nano? Held-out synthetic scenes and real photo scenes, always compared with a constant predictor.

    python benchmarks/accuracy.py [--weights FILE] [--scenes 200] [--photos ../shared/data/scenes]
    python benchmarks/accuracy.py --many 16 [--video ../shared/data/video]

Writes benchmarks/results/nano_accuracy.json: nano as `lean3r.reconstruct` without refinement has it, and its network
alone ("network"), whose cameras are not adjusted to matches. With --many nano_many_views.json instead: the ways to run
nano on many views, on the same scenes. Conventions: docs/nano.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from common import hardware, write_result

import lean3r
from lean3r.data.base import SceneBatch
from lean3r.data.sets.colmap import read_cameras
from lean3r.data.world.synthetic import SyntheticWorld
from lean3r.eval.baselines import best_constant_motion, constant_motion
from lean3r.eval.pose_errors import auc_histogram, pose_auc, relative_pose_errors
from lean3r.eval.synthetic import SMALL_BASELINE, THRESHOLDS_DEG, score_scenes
from lean3r.eval.trajectory import trajectory_errors
from lean3r.inputs.frames import FrameChoice
from lean3r.inputs.pictures import Pictures
from lean3r.inputs.trajectory import read_trajectory
from lean3r.layers import matching
from lean3r.models.base import Backbone
from lean3r.pipeline.predict import predict
from lean3r.train.recipes import HELD_OUT_SEED
from lean3r.types import Prediction, Views

SIZES = ((240, 240), (208, 272), (272, 208), (192, 288))  # height, width: equal shares of the scenes
MEAN_DEPTH_SCENES = 96
MANY_VIEWS = 56  # of a synthetic scene
NAMES = ("auc5", "auc15", "auc30", "all_auc30", "rotation_deg", "translation_deg", "ate_cm", "abs_rel")
NAMES += ("edge3", "edge12", "edge_seen", "edge3_seen", "focal")


def held_out(views: int, scenes: int) -> list[SceneBatch]:
    """`scenes` scenes of the stream that no recipe trains on, with all picture shapes in turn; without normals."""
    world, found = SyntheticWorld(seed=HELD_OUT_SEED), []
    for index in range(scenes):
        height, width = SIZES[index % len(SIZES)]
        found.append(replace(world.batch(index, 1, views=views, height=height, width=width), normals=None))
    return found


def mean_log_depth() -> torch.Tensor:
    """[1, 1, 30, 30] mean log depth map of training scenes after their mean is removed: floor below, wall ahead."""
    total, count = torch.zeros(30, 30), torch.zeros(30, 30)
    world = SyntheticWorld(seed=7, height=30, width=30)
    for index in range(MEAN_DEPTH_SCENES):
        depth = world.batch(index, 1, views=4).depth[0]
        known = depth > 0
        log = torch.where(known, depth.clamp_min(1e-6).log(), 0.0)
        log = torch.where(known, log - log.sum() / known.sum(), 0.0)
        total, count = total + log.sum(0), count + known.sum(0)
    return (total / count.clamp_min(1))[None, None]


def constant_predictor(direction: tuple[float, float, float], log_depth: torch.Tensor):
    """A predictor that never sees the pictures: no rotation, one direction of motion, depth map and focal length."""

    def call(views: Views) -> Prediction:
        count, _, height, width = views.images.shape[1:]
        depth = torch.nn.functional.interpolate(log_depth, (height, width), mode="bilinear").exp()[0]
        focal = 0.9 * (height * width) ** 0.5
        intrinsics = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
        return Prediction(
            constant_motion(count, direction)[None],
            intrinsics.expand(1, count, 3, 3),
            depth.expand(1, count, height, width),
            None,
        )

    return call


def unrefined(model: Backbone, views: Views) -> Prediction:
    """What `reconstruct` has without refinement; depth everywhere, also where nothing is trusted."""
    network, scene = predict(model, views), lean3r.reconstruct(model, views, refine="off", dense="network")
    assert network.depth is not None
    depth = torch.from_numpy(scene.depth)[None]
    ratio = torch.where(depth > 0, depth / network.depth, torch.nan).flatten(2).nanmedian(-1).values
    factor = torch.where(ratio.isfinite(), ratio, 1.0)[..., None, None]
    # Cameras alone are scored, whatever the world: standing upright does not matter.
    poses, intrinsics = (torch.from_numpy(x).float()[None] for x in (scene.cam_from_world, scene.intrinsics))
    return Prediction(poses, intrinsics, network.depth * factor, network.conf)


def synthetic(model: Backbone, scenes: int, view_counts: list[int]) -> dict[str, dict]:
    """nano, its network alone and the constant predictor on the same held-out scenes, by number of views."""
    depth_map, rows = mean_log_depth(), {}
    for views in view_counts:
        batches = held_out(views, scenes)
        truth = [batch.cam_from_world[0].double() for batch in batches]
        small = [SMALL_BASELINE * float(batch.depth[batch.depth > 0].mean()) for batch in batches]
        direction = best_constant_motion(truth, small)
        ours = score_scenes(lambda v: unrefined(model, v), batches)
        network = score_scenes(lambda v: predict(model, v), batches)
        constant = score_scenes(constant_predictor(direction, depth_map), batches)
        flat = score_scenes(constant_predictor(direction, torch.zeros(1, 1, 2, 2)), batches)
        rows[str(views)] = {
            "nano": ours,
            "network": network,
            "constant": constant,
            "constant_depth_abs_rel": flat["abs_rel"],
            "constant_direction": direction,
            "pairs": scenes * views * (views - 1) // 2,
        }
        print(f"{views:3d} views  nano {short(ours)}\n           network {short(network)}")
        print(f"           constant {short(constant)}", flush=True)
    return rows


def photos(model: Backbone, folder: Path) -> dict[str, dict]:
    """Every real scene against its COLMAP cameras: all pairs, with the direction of each."""
    rows = {}
    for scene in sorted(p for p in folder.iterdir() if (p / "gt").is_dir()):
        truth = read_cameras(scene / "gt")
        found = lean3r.reconstruct(model, scene / "images", refine="off")
        order = [found.names.index(name) for name in truth.names]
        poses = torch.from_numpy(truth.cam_from_world)
        direction = best_constant_motion([poses], [None])
        focal = found.original_intrinsics[order, 0, 0] / truth.intrinsics[:, 0, 0]
        ours = pose_auc(torch.from_numpy(found.cam_from_world[order]), poses, THRESHOLDS_DEG)
        views = Pictures([str(scene / "images")]).views(resolution=model.resolution, patch=model.patch)
        network = pose_auc(predict(model, views).cam_from_world[0, order].double(), poses, THRESHOLDS_DEG)
        constant = pose_auc(constant_motion(len(order), direction), poses, THRESHOLDS_DEG)
        rows[scene.name] = {
            "views": len(order),
            "nano": {f"auc{t}": 100 * v for t, v in ours.items()},
            "network": {f"auc{t}": 100 * v for t, v in network.items()},
            "constant": {f"auc{t}": 100 * v for t, v in constant.items()},
            "focal_error_percent": 100 * float(np.median(np.abs(focal - 1))),
        }
        print(
            f"{scene.name:24s} nano {short(rows[scene.name]['nano'])}  constant {short(rows[scene.name]['constant'])}"
        )
    return rows


def clips() -> dict[str, slice]:
    """Frames of the video of 200 frames: quarters of it, and all of it at several rates."""
    quarters = {f"frames {start} to {start + 49}": slice(start, start + 50) for start in range(0, 200, 50)}
    return quarters | {"every 3": slice(0, 200, 3), "every 3, from 1": slice(1, 200, 3), "every 2": slice(0, 200, 2)}


@contextmanager
def matched_with(partners: int | None) -> Iterator[None]:
    """Each view is matched with so many others; None: with all."""
    many = (1 << 30) if partners is None else partners + 1
    with mock.patch.object(matching, "MANY", many), mock.patch.object(matching, "PARTNERS", partners):
        yield


def ways_of(partners: list[int]) -> dict[str, tuple[str, int | None]]:
    """Name -> the model and with how many others it matches each view."""
    return {
        f"{name}, {'all pairs' if k is None else f'{k} partners'}": (name, k)
        for name in ("nano", "nano-gsa-fp8")
        for k in (None, *partners)
    }


def many_views(scenes: int, video: Path, ways: dict[str, tuple[str, int | None]]) -> Iterator[dict]:
    """Figures of each way on the same synthetic scenes and frames of a video: all so far, after each way."""
    batches = held_out(MANY_VIEWS, scenes)
    frames = Pictures([str(video / "office_walk.mp4")], FrameChoice(every=1)).views(resolution=240, patch=16)
    truth = torch.from_numpy(np.linalg.inv(read_trajectory(video / "office_walk_poses_tum.txt").world_from_cam))
    rows: dict[str, dict] = {}
    for way, (name, k) in ways.items():
        model, row = lean3r.load(name, device="cpu"), {}
        with matched_with(k):
            scores = [score_scenes(lambda v, model=model: predict(model, v), [batch]) for batch in batches]
            for clip, frame in clips().items():
                found = predict(model, Views(frames.images[:, frame])).cam_from_world[0]
                row[clip] = {f"auc{t}": 100 * v for t, v in pose_auc(found, truth[frame], THRESHOLDS_DEG).items()}
                row[clip]["rotation_deg"] = float(np.median(relative_pose_errors(found, truth[frame]).rotation_deg))
                row[clip]["ate_cm"] = 100 * float(np.sqrt(np.mean(trajectory_errors(found, truth[frame]).ate ** 2)))
        rows[way] = {"video": row, "synthetic": scores}
        for part, each in (("video", list(row.values())), ("synthetic", scores)):
            print(way, part, short({n: float(np.mean([e[n] for e in each])) for n in NAMES if n in each[0]}))
        yield rows


def short(figures: dict[str, float]) -> str:
    """The figures that fit on a line."""
    return "  ".join(f"{n} {figures[n]:.1f}" for n in NAMES if n in figures)


def check_scoring() -> None:
    """Ground truth must score 100, whatever the gauge; run before anything is measured."""
    batch = held_out(3, 1)[0]
    exact = Prediction(batch.cam_from_world, batch.intrinsics, batch.depth, None)
    figures = score_scenes(lambda _: exact, [batch])
    assert figures["auc5"] > 99.9 and figures["abs_rel"] < 1e-3 and figures["focal"] < 1e-3, figures
    edges = [figures[name] for name in ("edge3", "edge12", "edge_seen", "edge3_seen")]
    assert np.allclose(edges, 100, atol=1e-3), figures
    assert auc_histogram(np.full(4, 90.0), 30) == 0.0


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--views", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--photos", type=Path, default=Path("../shared/data/scenes"))
    parser.add_argument("--video", type=Path, default=Path("../shared/data/video"))
    parser.add_argument("--many", type=int, metavar="SCENES", help="the ways to run many views, on so many scenes")
    parser.add_argument("--partners", type=int, nargs="+", default=[matching.PARTNERS])
    parser.add_argument("--out", help="name of the JSON file")
    options = parser.parse_args()
    check_scoring()
    if options.many:
        about = {"scenes": options.many, "views": MANY_VIEWS, "hardware": hardware()}
        for rows in many_views(options.many, options.video, ways_of(options.partners)):
            print(write_result(options.out or "nano_many_views", about | {"ways": rows}), flush=True)
        return
    model = lean3r.load("nano", weights=options.weights)
    result = {"weights_hash": model.origin.hash, "scenes": options.scenes, "hardware": hardware()}
    result["photos"] = photos(model, options.photos) if options.photos.is_dir() else "skipped: no such folder"
    result["synthetic"] = synthetic(model, options.scenes, options.views) if options.scenes else {}
    print(write_result(options.out or "nano_accuracy", result))


if __name__ == "__main__":
    main()
