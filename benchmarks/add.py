"""Pictures added to a result: how right their cameras are, and what they cost with ever more stored views.

    python benchmarks/add.py [--photos ../shared/data/scenes] [--parts accuracy growth]

Writes benchmarks/results/add.json, anew after every scene. "accuracy": of each photo scene every fourth picture is
added to a result of the others; the stored cameras are aligned with the true ones by a similarity, and the errors of
the added ones are compared with those of the same pictures reconstructed with all others at once, aligned by the same
views. "growth": three pictures of one scene are added to a result that holds the rest of it and ever more pictures of
other places, as they are, mirrored and turned. There, depth is the network's: without stereo.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, hardware, write_result
from PIL import Image, ImageOps

import lean3r
from lean3r.geometry.align import align_cameras
from lean3r.grow.recall import on_canvas
from lean3r.inputs.cameras import open_colmap
from lean3r.json_text import parse_json
from lean3r.types import Lens, Reconstruction

EVERY, FIRST = 4, 2  # picture FIRST, FIRST + EVERY, ... are the new ones
THREADS = 1
GROWN = "fountain_p11"  # whose pictures are added to ever more
SAME_PLACE = ("castle_p19",)  # its courtyard: not another place
SIZES = (8, 40, 75, 150)  # stored views
REFINED = lean3r.RefineOptions(when="on", seconds=600)
WAYS: tuple[Callable[[Image.Image], Image.Image], ...] = (
    lambda image: image,
    ImageOps.mirror,
    ImageOps.flip,
    lambda image: image.transpose(Image.Transpose.ROTATE_180),
)


def split(scene: Path) -> tuple[list[Path], list[Path]]:
    """Stored and new pictures of a scene."""
    files = sorted((scene / "images").iterdir())
    new = files[FIRST::EVERY]
    return [file for file in files if file not in new], new


def truth_of(scene: Path) -> dict[str, np.ndarray]:
    """cam_from_world [4, 4] by the name of the picture."""
    images = open_colmap(scene / "gt").images.values()
    return {image.name: np.vstack([image.cam_from_world().matrix(), [0, 0, 0, 1]]) for image in images}


def errors(found: Reconstruction, truth: dict[str, np.ndarray], new: list[str]) -> dict[str, float | int]:
    """Errors of the cameras of new pictures, without those that are marked as uncertain, after a similarity that aligns
    the others: degrees, and the distance in per cent of the extent of all true cameras."""
    poses = {name: pose for name, pose in zip(found.names, found.cam_from_world, strict=True) if name in truth}
    labels = dict(zip(found.names, found.registration, strict=True))
    others = [name for name in poses if name not in new and labels[name] != "uncertain"]
    own, true = (torch.from_numpy(np.stack([of[name] for name in others])) for of in (poses, truth))
    _, fit = align_cameras(own, true)
    uncertain = sum(labels[name] == "uncertain" for name in new)
    new = [name for name in new if labels[name] != "uncertain"]
    if not new:
        return {"uncertain": uncertain}
    moved = fit.apply_to_poses(torch.from_numpy(np.stack([poses[name] for name in new]))).numpy()
    wanted = np.stack([truth[name] for name in new])
    turn = np.einsum("sij,skj->sik", moved[:, :3, :3], wanted[:, :3, :3])
    angle = np.degrees(np.arccos(((np.trace(turn, axis1=1, axis2=2) - 1) / 2).clip(-1, 1)))
    away = np.linalg.norm(centres(moved) - centres(wanted), axis=1)
    every = centres(np.stack(list(truth.values())))
    extent = float(np.linalg.norm(every - every.mean(0), axis=1).max())
    return {
        "median_deg": float(np.median(angle)),
        "worst_deg": float(angle.max()),
        "median_percent": 100 * float(np.median(away)) / extent,
        "worst_percent": 100 * float(away.max()) / extent,
        "uncertain": uncertain,
    }


def centres(poses: np.ndarray) -> np.ndarray:
    """[S, 3] of poses [S, 4, 4]."""
    return -np.einsum("sji,sj->si", poses[:, :3, :3], poses[:, :3, 3])


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What the work returns, and its seconds of the processor, with those of its processes: other programs on the
    machine hardly change them."""

    def processor() -> float:
        usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(each.ru_utime + each.ru_stime for each in usage)

    before = processor()
    found = work()
    return found, {"processor_seconds": processor() - before}


def accuracy(model: Any, options: argparse.Namespace, rows: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One row a scene, besides those of before."""
    every = sorted(path.name for path in options.photos.iterdir() if (path / "gt").is_dir())
    for name in options.scenes or every:
        scene = options.photos / name
        stored, new = split(scene)
        truth, names = truth_of(scene), [file.name for file in new]
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            before, first = timed(lambda stored=stored: lean3r.reconstruct(model, stored, refine=REFINED))
            lean3r.export(before, out)
            after, cost = timed(lambda out=out, new=new, stored=stored: lean3r.add(model, out, new, stored=stored))
        count = len(before.sources)
        assert (after.cam_from_world[:count] == before.cam_from_world).all()
        whole, all_cost = timed(lambda stored=stored, new=new: lean3r.reconstruct(model, stored + new, refine=REFINED))
        rows[name] = {
            "stored": len(stored),
            "new": len(new),
            "recalled": len(after.info["added"][-1]["recalled"]),
            "added": errors(after, truth, names) | cost,
            "at_once": errors(whole, truth, names) | all_cost,
            "stored_alone": first,
        }
        print(name, rows[name], flush=True)
        yield {"accuracy": rows}


def growth(model: Any, options: argparse.Namespace, _: object) -> Iterator[dict[str, Any]]:
    """One row a number of stored views."""
    _, new = split(options.photos / GROWN)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        pictures, scene = Path(name) / "pictures", None
        pictures.mkdir()
        parts = others(model, options.photos, pictures)
        scene = next(parts)
        own = set(scene.names)
        for size in options.sizes or SIZES:
            while len(scene.sources) < size:
                scene = beside(scene, next(parts))
            stored, out = first_of(scene, size), Path(name) / f"out{size}"
            lean3r.export(stored, out)
            row: dict[str, Any] = {"stored": size}
            for way in ("first", "again"):
                given = new[:-1] if way == "first" else new[-1:]
                after, cost = timed(
                    lambda out=out, given=given: lean3r.add(model, out, given, stored=[pictures, *new[:-1]])
                )
                last = after.info["added"][-1]
                right = sum(view in own or view in {file.name for file in new} for view in last["recalled"])
                row[way] = {"new": len(given), "recalled": len(last["recalled"]), "of_the_place": right, **cost}
                row[way]["certain"] = last["certain"]
            row["megabytes"] = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
            rows.append(row)
            print(row, flush=True)
            yield {"growth": rows}


def others(model: Any, photos: Path, pictures: Path) -> Iterator[Reconstruction]:
    """Results with the true cameras, first that of the place that grows; their pictures are written into a folder."""
    names = sorted(
        path.name for path in photos.iterdir() if (path / "gt").is_dir() and path.name not in (GROWN, *SAME_PLACE)
    )
    for number, way in enumerate(WAYS):
        for name in [GROWN, *names]:
            if number and name == GROWN:
                continue
            truth = truth_of(photos / name)
            files, cameras = [], []
            for file in split(photos / name)[0] if name == GROWN else sorted((photos / name / "images").iterdir()):
                files.append(pictures / f"{name}_{number}_{file.name}")
                with Image.open(file) as image:
                    way(image.convert("RGB")).save(files[-1], quality=90)
                cameras.append(given(files[-1].name, truth[file.name], options_of(photos / name, file.name)))
            known = lean3r.GivenCameras(tuple(cameras))
            yield lean3r.reconstruct(model, files, cameras=known, refine="off", dense="network")


def options_of(scene: Path, name: str) -> tuple[int, int, Lens]:
    """Width, height and lens of a picture."""
    model = open_colmap(scene / "gt")
    image = next(image for image in model.images.values() if image.name == name)
    camera = model.cameras[image.camera_id]
    return camera.width, camera.height, Lens(camera.model.name, tuple(map(float, camera.params)))


def given(name: str, pose: np.ndarray, camera: tuple[int, int, Lens]) -> Any:
    """A known camera."""
    from lean3r.inputs.cameras import GivenCamera

    width, height, lens = camera
    return GivenCamera(name, width, height, cam_from_world=pose, lens=lens)


def beside(scene: Reconstruction, other: Reconstruction) -> Reconstruction:
    """Both, the second one far from the first."""
    shape = np.maximum(scene.depth.shape[1:], other.depth.shape[1:])
    moved = other.cam_from_world.copy()
    moved[:, :3, 3] -= moved[:, :3, :3] @ np.array([1e3 * len(scene.sources), 0, 0])
    maps = {
        name: np.concatenate([on_canvas(getattr(each, name), shape, 0) for each in (scene, other)])
        for name in ("images", "mask", "depth", "conf")
    }
    return replace(
        scene,
        **maps,
        sources=(*scene.sources, *other.sources),
        cam_from_world=np.concatenate([scene.cam_from_world, moved]),
        intrinsics=np.concatenate([scene.intrinsics, other.intrinsics]),
        lenses=(*scene.lenses, *other.lenses),
        registration=(*scene.registration, *other.registration),
    )


def first_of(scene: Reconstruction, count: int) -> Reconstruction:
    """The first views, and their cloud."""
    from lean3r.geometry.fusion import with_cloud

    arrays = ("images", "mask", "depth", "conf", "cam_from_world", "intrinsics")
    rest = ("sources", "lenses", "registration")
    info = {key: value for key, value in scene.info.items() if key not in ("sky", "known")}
    kept = {name: getattr(scene, name)[:count] for name in (*arrays, *rest)}
    return with_cloud(replace(scene, **kept, info=info))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, default=Path("../shared/data/scenes"))
    parser.add_argument("--scenes", nargs="*", help="only these")
    parser.add_argument("--sizes", nargs="*", type=int, help="stored views")
    parser.add_argument("--parts", nargs="*", default=["accuracy", "growth"])
    parser.add_argument("--out", default="add")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    model = lean3r.load("nano")
    path = RESULTS / f"{options.out}.json"
    result: dict[str, Any] = parse_json(path.read_bytes()) if path.exists() else {}
    result["hardware"] = hardware()
    for part in options.parts:
        for row in {"accuracy": accuracy, "growth": growth}[part](model, options, result.get(part, {})):
            result |= row
            write_result(options.out, result)


if __name__ == "__main__":
    main()
