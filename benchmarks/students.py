"""The accuracy that sparsity and FP8 cost nano, untrained and trained, and mechanisms that need no training.

    python benchmarks/students.py [--gsa FILE] [--gsa-fp8 FILE] [--sla FILE] [--sla-fp8 FILE] [--scenes 60]
        [--views 2 4 8 16] [--photos ../shared/data/scenes] [--keep] [--out nano_students]

FILE is written by `lean3r distill`: weights.safetensors of a phase, or the published NAME.safetensors. All models see
the same held-out scenes. Mechanisms that need no training get settings whose measured density comes nearest to that of
gsa at this number of views. Writes benchmarks/results/nano_students.json after every number of views; with --keep,
rows already in it, of as many scenes, are not measured again.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from pathlib import Path
from typing import Any

import torch
from accuracy import check_scoring, held_out, short
from common import RESULTS, hardware, write_result

import lean3r
from lean3r.attention.base import recording
from lean3r.compress import CompressionPlan, compress, prepare
from lean3r.compress.plan import Step
from lean3r.compress.sparsify import stored_plan
from lean3r.data.sets.colmap import read_cameras
from lean3r.eval.pose_errors import pose_auc
from lean3r.eval.synthetic import THRESHOLDS_DEG, score_scenes
from lean3r.models.base import Backbone
from lean3r.models.checkpoint import read_tensors
from lean3r.pipeline.reconstruct import predict
from lean3r.train.recipes.nano_students import nano_gsa_fp8, nano_sla_fp8
from lean3r.types import Views

SHOWN = ("auc5", "auc15", "auc30", "abs_rel", "rotation_deg", "translation_deg", "focal")


def student(dense: Backbone, path: str | Path) -> Backbone:
    """A trained student from a published file, or from the weights of one phase of its run."""
    tensors, metadata = read_tensors(Path(path))
    if stored_plan(metadata) is not None:
        return lean3r.load("nano", weights=str(path))
    plan = CompressionPlan.from_dict(json.loads(metadata["config"])["settings"]["plan"])
    model = (prepare if plan.quantizes else compress)(copy.deepcopy(dense), plan)
    model.load_state_dict(tensors)
    return model.eval()


def density_of(model: Backbone, views: Views) -> float:
    """Mean share of the pairs of tokens that global attention attends to; 1 if nothing is reported."""
    with recording() as log, torch.no_grad():
        model(views)
    found = [r.density for r in log if r.density is not None and r.layout.views == views.images.shape[1]]
    return sum(found) / len(found) if found else 1.0


def without_training(views: int, density: float) -> dict[str, CompressionPlan]:
    """Plans of about this density at this number of views."""
    subsets = [(f, s) for s in (1, 2, 3) for f in range(1, views + 1)]
    frames, stride = min(subsets, key=lambda x: abs(math.log(x[0] / views / x[1] ** 2 / density)))
    grids = [(r, c) for r in range(1, 6) for c in range(r, r + 2)]
    grid = min(grids, key=lambda g: abs(math.log(1 / (g[0] * g[1]) / density)))
    settings: dict[str, dict[str, Any]] = {
        "block_sparse": {"sparsity": 1 - density, "query_block": 16, "key_block": 16, "window": 4},
        "frame_subset": {"frames": frames, "stride": stride},
        "merge": {"ratio": 1 - density**0.5, "protect": 0.0},
        "kv_prune": {"frames": 1, "grid": grid, "moving": True, "first_frame": False, "query_merge": 1},
    }
    return {name: CompressionPlan((Step("global blocks", name, s),), name) for name, s in settings.items()}


def trained_and_not(dense: Backbone, files: dict[str, str | None]) -> dict[str, Backbone]:
    """The dense model, untrained sparse ones, and the trained ones whose files are given."""
    models = {"dense": dense}
    for name, recipe in (("gsa", nano_gsa_fp8()), ("sla", nano_sla_fp8())):
        models[f"{name} untrained"] = compress(copy.deepcopy(dense), recipe.phases[0].plan)
        models[f"{name}-fp8 untrained"] = compress(copy.deepcopy(dense), recipe.plan)
    models |= {f"{name} trained": student(dense, path) for name, path in files.items() if path}
    return {name: model.eval() for name, model in models.items()}


def synthetic(
    models: dict[str, Backbone], dense: Backbone, views: int, scenes: int, kept: dict[str, dict]
) -> dict[str, dict]:
    """Figures and densities of all models on the same scenes; `kept` rows are not measured again."""
    batches = held_out(views, scenes)
    sample = Views(batches[0].images)
    density = density_of(models["gsa untrained"], sample)
    plans = without_training(views, density)
    models = models | {name: compress(copy.deepcopy(dense), plan).eval() for name, plan in plans.items()}
    rows = dict(kept)
    for name, model in models.items():
        if name in kept:
            continue
        figures = score_scenes(lambda v, model=model: predict(model, v), batches)
        rows[name] = {"density": density_of(model, sample), **{key: figures[key] for key in SHOWN}}
        if name in plans:
            rows[name]["plan"] = str(plans[name])
        print(f"{views:3d} views  {name:22s} density {rows[name]['density']:.3f}  {short(figures)}", flush=True)
    return rows


def photos(models: dict[str, Backbone], folder: Path) -> dict[str, dict]:
    """AUC of the networks' own cameras on every real scene, against COLMAP's: all pairs, all directions."""
    rows: dict[str, dict] = {}
    for scene in sorted(p for p in folder.iterdir() if (p / "gt").is_dir()):
        truth = read_cameras(scene / "gt")
        poses = torch.from_numpy(truth.cam_from_world)
        rows[scene.name] = {"views": len(truth.names)}
        for name, model in models.items():
            found = lean3r.reconstruct(model, scene / "images", refine="off")
            order = [found.names.index(n) for n in truth.names]
            auc = pose_auc(torch.from_numpy(found.cam_from_world[order]), poses, THRESHOLDS_DEG)
            rows[scene.name][name] = {f"auc{t}": 100 * value for t, value in auc.items()}
            print(f"{scene.name:24s} {name:22s} {short(rows[scene.name][name])}", flush=True)
    return rows


def margins(rows: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Points above (below: negative) the dense model, by model."""
    return {
        name: {key: row[key] - rows["dense"][key] for key in ("auc5", "auc15", "auc30", "abs_rel")}
        for name, row in rows.items()
        if name != "dense"
    }


def check_density(dense: Backbone) -> None:
    """A sparse plan that keeps everything equals the dense model, and reports density 1; run first."""
    views = Views(held_out(2, 1)[0].images)
    everything = CompressionPlan((Step("global blocks", "block_sparse", {"sparsity": 0.0}),))
    model = compress(copy.deepcopy(dense), everything).eval()
    assert density_of(model, views) == 1.0
    with torch.no_grad():
        assert torch.allclose(model(views).cam_from_world, dense(views).cam_from_world, atol=1e-4)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("gsa", "gsa-fp8", "sla", "sla-fp8"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--views", type=int, nargs="+", default=[8, 2, 4, 16])
    parser.add_argument("--photos", type=Path, default=Path("../shared/data/scenes"))
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--out", default="nano_students")
    options = parser.parse_args()
    check_scoring()
    dense = lean3r.load("nano").eval()
    check_density(dense)
    files = {name: getattr(options, name.replace("-", "_")) for name in ("gsa", "gsa-fp8", "sla", "sla-fp8")}
    models = trained_and_not(dense, files)
    earlier = RESULTS / f"{options.out}.json"
    result: dict[str, Any] = json.loads(earlier.read_text()) if options.keep and earlier.exists() else {}
    result |= {"hardware": hardware(), "scenes": result.get("scenes", {})}
    for part in ("synthetic", "margins"):
        result.setdefault(part, {})
    for views in options.views if options.scenes else ():
        same = result["scenes"].get(str(views)) == options.scenes
        rows = synthetic(models, dense, views, options.scenes, result["synthetic"].get(str(views), {}) if same else {})
        result["scenes"][str(views)] = options.scenes
        result["synthetic"][str(views)] = rows
        result["margins"][str(views)] = margins(rows)
        write_result(options.out, result)
    result["photos"] = photos(models, options.photos) if options.photos.is_dir() else "skipped: no such folder"
    print(write_result(options.out, result))


if __name__ == "__main__":
    main()
