"""Do known cameras ever make a result worse? Photo scenes with true cameras: none given, parts of them, all of them.

    python benchmarks/known.py [--photos ../shared/data/scenes] [--model nano]

Writes benchmarks/results/known.json, anew after every scene: AUC@1 and AUC@5 over all pairs of views, and the
error of depth (`depth_ratio`: median over the true points of predicted depth over true depth; 1 if the world is that of
the true cameras).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import hardware, write_result

import lean3r
from lean3r.eval.pose_errors import pose_auc
from lean3r.geometry.consistency import sample_depth
from lean3r.geometry.lens import pinhole_part
from lean3r.inputs.cameras import open_colmap
from lean3r.types import Lens, Reconstruction

THRESHOLDS_DEG = (1, 5)
SLACK = 0.1  # points of AUC that count as rounding, not as a loss
THREADS = 2
REFINED = {"refine": lean3r.RefineOptions(when="on", seconds=600)}


def ways(scene: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """The options of each way; the first two are what the others are compared with. Pinholes alone are what calibration
    files often hold: written into `folder`."""
    truth = scene / "gt"
    write_pinholes(truth, folder / "pinholes.json")
    return {
        "none": REFINED,
        "off": {"refine": "off"},
        "off_both": {"refine": "off", "cameras": truth},
        "pinholes": REFINED | {"cameras": folder / "pinholes.json"},
        "intrinsics": REFINED | {"cameras": lean3r.CameraOptions(cameras=truth, known="intrinsics")},
        "both_fixed": REFINED | {"cameras": truth},
        "both_start": REFINED | {"cameras": lean3r.CameraOptions(cameras=truth, known_poses="start")},
    }


def write_pinholes(truth: Path, path: Path) -> None:
    """The pinhole part of a COLMAP model's cameras, as a cameras.json that does not mention distortion."""
    model = open_colmap(truth)
    views = []
    for image in model.images.values():
        camera = model.cameras[image.camera_id]
        matrix = pinhole_part(Lens(camera.model.name, tuple(camera.params)))
        views.append({"name": image.name, "width": camera.width, "height": camera.height, "K": matrix.tolist()})
    path.write_text(json.dumps({"axes": "opencv", "views": views}))


def figures(found: Reconstruction, truth: Path) -> dict[str, Any]:
    """AUC in per cent over all pairs; the ratio of depth; the outcome of the refinement."""
    model = open_colmap(truth)
    images = sorted(model.images.values(), key=lambda image: image.name)
    index = [found.names.index(image.name) for image in images]
    true = np.stack([np.vstack([image.cam_from_world().matrix(), [0, 0, 0, 1]]) for image in images])
    auc = pose_auc(torch.from_numpy(found.cam_from_world[index]), torch.from_numpy(true), THRESHOLDS_DEG)
    ratios = []
    for image, view, pose in zip(images, index, true, strict=True):
        seen = [p for p in image.points2D if p.has_point3D()]
        xyz = np.array([model.points3D[p.point3D_id].xyz for p in seen]).reshape(-1, 3)
        scale, offset = np.reshape(found.sources[view].original_from_network, (2, 2))
        depth = sample_depth(found.depth[view], (np.array([p.xy for p in seen]).reshape(-1, 2) - offset) / scale)
        ratios.append(depth / (xyz @ pose[2, :3] + pose[2, 3]))
    told = found.info.get("refinement", {})
    kept = {key: told[key] for key in ("status", "registered", "inliers", "matches") if key in told}
    ratio = round(float(np.nanmedian(np.concatenate(ratios))), 4)
    return {f"auc{t}": round(100 * auc[t], 2) for t in THRESHOLDS_DEG} | {"depth_ratio": ratio} | kept


def worse(row: dict[str, dict]) -> list[str]:
    """The ways of a scene that are worse than the same without cameras."""
    found = []
    for way, values in row.items():
        base = row["off" if way.startswith("off") else "none"]
        found += [f"{way} {k}" for k in ("auc1", "auc5") if values[k] < base[k] - SLACK]
    return found


def measure(model, options: argparse.Namespace) -> Iterator[dict]:
    """The result so far, after each scene."""
    rows: dict[str, dict] = {}
    every = sorted(path.name for path in options.photos.iterdir() if (path / "gt").is_dir())
    for scene in (options.photos / name for name in options.scenes or every):
        row: dict[str, dict] = {}
        with tempfile.TemporaryDirectory() as name:
            for way, given in ways(scene, Path(name)).items():
                row[way] = figures(lean3r.reconstruct(model, scene / "images", **given), scene / "gt")
                print(scene.name, way, row[way], flush=True)
        rows[scene.name] = row
        losses = {name: lost for name, found in rows.items() if (lost := worse(found))}
        yield {"model": options.model, "worse_than_without": losses, "scenes": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, default=Path("../shared/data/scenes"))
    parser.add_argument("--model", default="nano")
    parser.add_argument("--scenes", nargs="*", help="only these, in this order")
    parser.add_argument("--out", default="known")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    model = lean3r.load(options.model)
    result: dict = {"hardware": hardware()}
    for part in measure(model, options):
        result |= part
        write_result(options.out, result)


if __name__ == "__main__":
    main()
