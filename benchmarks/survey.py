"""How upright results stand, and how well survey outputs fit: against known gravity and GPS.

    python benchmarks/survey.py [--photos ../shared/data/scenes] [--scenes 40]

Writes benchmarks/results/survey.json. Up: the angle in degrees between the estimate and the truth, from the cameras
alone and with surfaces, on photo scenes whose ground truth stands upright (surveyed, or tracked by a headset), as
`lean3r reconstruct` gives it, and on synthetic scenes with exact cameras and depth, all of them rolled by some degrees.
Flight: `lean3r reconstruct --gps -f csv,las,laz,geotiff` of nadir pictures, of which some have GPS: residuals of the
cameras against GPS, those of all cameras against structure from motion, and the sizes of the outputs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import hardware, write_result

import lean3r
from lean3r.colmap_library import pycolmap
from lean3r.data.world.synthetic import SyntheticWorld
from lean3r.export import ExportOptions, write_all
from lean3r.geometry.align import umeyama
from lean3r.geometry.rotation import so3_exp
from lean3r.geometry.up import estimate_up, settle_up
from lean3r.models.base import Backbone
from lean3r.refine.scale import read_places, with_places
from lean3r.train.recipes import HELD_OUT_SEED

# Up in the ground truth: HoloLens stands its world upright, and so did the surveyors of the other two.
UPRIGHT = {"office_dining_indoor": (0, 1, 0), "castle_p19": (0, 0, -1), "fountain_p11": (0, 0, -1)}
FLIGHT = "brighton_beach_aerial"
ROLL_DEG = 2.0


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", type=Path, default=Path("../shared/data/scenes"))
    parser.add_argument("--scenes", type=int, default=40)
    options = parser.parse_args()
    model = lean3r.load("nano")
    result = {"hardware": hardware(), "synthetic": synthetic(options.scenes), "photos": {}, "flight": None}
    print(result["synthetic"], flush=True)
    for name, up in UPRIGHT.items():
        result["photos"][name] = of_photos(model, options.photos / name, np.array(up, float))
        print(name, result["photos"][name], flush=True)
    result["flight"] = of_flight(model, options.photos / FLIGHT)
    print(result["flight"])
    print(write_result("survey", result))


def of_photos(model: Backbone, folder: Path, up: np.ndarray) -> dict[str, object]:
    """The errors of up in a reconstruction of a photo scene, and the error that the estimate expects."""
    found = lean3r.reconstruct(model, folder / "images")
    truth = poses_of(folder)
    rotations = np.stack([truth[name][:3, :3] for name in found.names])
    u, _, v = np.linalg.svd(np.einsum("sji,sjk->ik", rotations, found.cam_from_world[:, :3, :3]))
    true = (u @ v).T @ up
    said = found.info["up"]
    alone = estimate_up(found.cam_from_world[found.is_certain])
    return {
        "views": len(found.names),
        "cameras_deg": angle_deg(alone.direction, true),
        "error_deg": angle_deg(said["direction"], true),
        "expected_deg": said["error_deg"],
        "assumes": said["assumes"],
    }


def synthetic(scenes: int) -> dict[str, float]:
    """Errors on synthetic scenes, whose true up is -y; the median and the ninth of ten."""
    world = SyntheticWorld(seed=HELD_OUT_SEED, distortion=0.0)
    generator = torch.Generator().manual_seed(0)
    cameras, settled, within = [], [], []
    for index in range(scenes):
        batch = world.batch(index, 1, views=6, height=90, width=120)
        roll = torch.randn(6, 1, generator=generator, dtype=torch.float64) * np.radians(ROLL_DEG)
        poses = batch.cam_from_world[0].double()
        assert batch.normals is not None
        normals = batch.normals[0].permute(0, 2, 3, 1).double() @ poses[:, None, :3, :3]
        held = poses.clone()
        held[:, :3] = so3_exp(roll * torch.eye(3, dtype=torch.float64)[2]) @ poses[:, :3]
        up = estimate_up(held.numpy())
        better = settle_up(up, normals.reshape(-1, 3).numpy())
        cameras.append(angle_deg(up.direction, (0, -1, 0)))
        settled.append(angle_deg(better.direction, (0, -1, 0)))
        within.append(settled[-1] <= 2 * (better.error_deg or 0))
    quantile = {"median": 0.5, "worst_tenth": 0.9}
    return {
        "scenes": scenes,
        "views": 6,
        "roll_deg": ROLL_DEG,
        **{f"cameras_{name}_deg": float(np.quantile(cameras, at)) for name, at in quantile.items()},
        **{f"{name}_deg": float(np.quantile(settled, at)) for name, at in quantile.items()},
        "within_twice_expected": statistics.mean(within),
    }


def of_flight(model: Backbone, folder: Path) -> dict[str, object]:
    """Residuals of a flight against GPS and structure from motion, and what its survey outputs are."""
    pictures = lean3r.Pictures(folder / "images")
    found = lean3r.reconstruct(model, pictures)
    found = with_places(found, read_places(pictures, found.names))
    gps = found.info["gps"]
    off = np.array([[row[f"{axis}_m"] for axis in ("east", "north", "up")] for row in gps["residuals"]])
    truth = poses_of(folder)
    ours, true = (centres(np.stack(poses)) for poses in (found.cam_from_world, [truth[n] for n in found.names]))
    fit = umeyama(torch.from_numpy(true), torch.from_numpy(ours))
    apart = np.linalg.norm(fit.apply(torch.from_numpy(true)).numpy() - ours, axis=1)
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        files = write_all(found, Path(out), ["csv", "las", "laz", "geotiff"], ExportOptions())
        seconds = time.perf_counter() - start
        sizes = {path.name: path.stat().st_size for path in files}
    return {
        "views": len(found.names),
        "with_gps": gps["pictures"],
        "extent_m": gps["extent_m"],
        "gps_rms_m": gps["rms_m"],
        "gps_rms_by_axis_m": np.sqrt((off**2).mean(axis=0)).tolist(),
        "sfm_rms_m": float(np.sqrt((apart**2).mean())),
        "points": len(found.points.xyz),
        "raster": files.figures["geotiff"],
        "bytes": sizes,
        "seconds": seconds,
    }


def poses_of(folder: Path) -> dict[str, np.ndarray]:
    """cam_from_world [4, 4] of each picture of a scene's ground truth."""
    model = pycolmap.Reconstruction(folder / "gt")
    rows = ((image.name, image.cam_from_world().matrix()) for image in model.images.values())
    return {name: np.vstack([matrix, [0, 0, 0, 1]]) for name, matrix in rows}


def centres(poses: np.ndarray) -> np.ndarray:
    """Optical centres [S, 3]."""
    return -np.einsum("sji,sj->si", poses[:, :3, :3], poses[:, :3, 3])


def angle_deg(first: object, second: object) -> float:
    """Between two unit vectors."""
    return float(np.degrees(2 * np.arcsin(np.clip(np.linalg.norm(np.subtract(first, second)) / 2, 0, 1))))


if __name__ == "__main__":
    main()
