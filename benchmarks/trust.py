"""Are unsupported results reported? Warnings, sky, borders and confidence, compared with ground truth.

    python benchmarks/trust.py [--photos ../shared/data/scenes] [--scenes 14]

Writes benchmarks/results/trust.json. Warnings: made-up bad inputs, and photo scenes, which
should give none. Sky: measured 3-D points of the scenes in the removed regions (there should be none). Points: relative
error of depth at measured points after one scale for the scene, and the share of them that give points of the cloud;
in the whole picture, and in its border. Confidence: AbsRel in per cent after one scale for the scene, of all pixels, of
the half of highest confidence, and of the half of smallest error, on sensor depth and on held-out synthetic scenes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np
from common import hardware, write_result
from PIL import Image, ImageFilter

import lean3r
from lean3r.colmap_library import pycolmap
from lean3r.data.world.synthetic import SyntheticWorld
from lean3r.eval.reconstruction import network_depth
from lean3r.geometry.content import sky
from lean3r.geometry.evidence import border
from lean3r.geometry.fusion import trusted_pixels
from lean3r.models.base import Backbone
from lean3r.train.recipes import HELD_OUT_SEED
from lean3r.types import Reconstruction

SIZE = (640, 480)
SENSOR = "office_dining_indoor"


def bad_inputs(photos: Path) -> dict[str, tuple[str, list[Image.Image]]]:
    """Inputs with no usable view, or with an unusable one: the expected code, and the pictures."""
    rng = np.random.default_rng(0)
    shape = (SIZE[1], SIZE[0], 3)
    ramp = np.linspace(0, 1, SIZE[1])[:, None, None]
    blue = np.array([70, 120, 200]) * (1 - ramp) + np.array([180, 210, 240]) * ramp + np.zeros(shape)
    scenes = sorted(path for path in photos.iterdir() if (path / "images").is_dir())
    pictures = {s.name: [Image.open(p).convert("RGB") for p in sorted((s / "images").iterdir())] for s in scenes}
    first = pictures[scenes[0].name]

    def made(values: np.ndarray) -> Image.Image:
        return Image.fromarray(values.clip(0, 255).astype(np.uint8))

    def noise() -> Image.Image:
        return made(rng.integers(0, 256, shape))

    return {
        "black": ("no-content", [made(np.zeros(shape))] * 4),
        "dark": ("no-content", [made(rng.normal(2, 2, shape)) for _ in range(4)]),
        "white": ("no-content", [made(np.full(shape, 255))] * 4),
        "plain sky": ("no-content", [made(blue + rng.normal(0, 1, shape)) for _ in range(4)]),
        "noise": ("noise", [noise() for _ in range(4)]),
        "weak noise": ("noise", [made(rng.normal(128, 30, shape)) for _ in range(4)]),
        "blurred noise": ("no-overlap", [noise().filter(ImageFilter.GaussianBlur(3)) for _ in range(4)]),
        "identical": ("identical-pictures", [first[0]] * 4),
        "nothing in common": ("no-overlap", [images[0] for images in pictures.values()]),
        "one black": ("no-content", [*first[:6], made(np.zeros(shape))]),
        "one noise": ("noise", [*first[:6], noise()]),
        "one foreign": ("no-overlap", [*first[:6], pictures[scenes[-1].name][0]]),
        "one twice": ("repeated-pictures", [*first[:6], first[2]]),
    }


def of_images(model: Backbone, images: list[Image.Image], refine: str) -> Reconstruction:
    """A reconstruction of pictures in memory, saved as PNG first."""
    with tempfile.TemporaryDirectory() as name:
        for index, image in enumerate(images):
            image.save(f"{name}/{index:02d}.png")
        return lean3r.reconstruct(model, name, refine=refine)


def codes(found: Reconstruction) -> list[str]:
    """The codes of its warnings."""
    return [warning["code"] for warning in found.info.get("warnings", [])]


def measured_points(found: Reconstruction, folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """View, row, column and depth of the measured points of a scene that fall into the network's pictures."""
    truth = pycolmap.Reconstruction(folder / "gt")
    of_name = {image.name: image for image in truth.images.values()}
    rows = []
    for view, source in enumerate(found.sources):
        image = of_name[source.name]
        pose = image.cam_from_world().matrix()
        scale, offset = np.reshape(source.original_from_network, (2, 2))
        for point in image.points2D:
            if point.has_point3D():
                col, row = np.floor((point.xy - offset) / scale)
                rows.append((view, row, col, pose[2, :3] @ truth.points3D[point.point3D_id].xyz + pose[2, 3]))
    view, row, col, depth = np.array(rows).T
    inside = (row >= 0) & (col >= 0) & (row < found.depth.shape[1]) & (col < found.depth.shape[2])
    return (*(values[inside].astype(int) for values in (view, row, col)), depth[inside])


def points_of(found: Reconstruction, folder: Path) -> dict[str, float]:
    """Error at measured points and the share of them that is kept, in per cent, whole and at the border."""
    *at, true = measured_points(found, folder)
    keep = trusted_pixels(found.depth, found.conf, found.mask, 20.0)
    ours, kept, edge = found.depth[*at], keep[*at], border(found.mask)[*at]
    known = ours > 0
    error = 100 * np.abs(ours * np.median(true[known] / ours[known]) / true - 1)
    in_sky = np.stack([sky(i, m) for i, m in zip(found.images, found.mask, strict=True)])
    return {
        "error": round(float(error[kept].mean()), 2),
        "error_border": round(float(error[kept & edge].mean()), 2),
        "kept": round(100 * float(kept.mean()), 1),
        "kept_border": round(100 * float(kept[edge].mean()), 1),
        "border_share": round(100 * float((keep & border(found.mask)).sum() / keep.sum()), 1),
        "sky": round(100 * float(in_sky.sum() / found.mask.sum()), 2),
        "measured": len(true),
        "measured_in_sky": int(in_sky[*at].sum()),
    }


def halves(found: Reconstruction, truth: np.ndarray) -> dict[str, float]:
    """AbsRel in per cent after one scale: of all, of the most confident half, and of the half of smallest error."""
    known = (truth > 0) & (found.depth > 0)
    ours, true = found.depth[known].astype(float), truth[known]
    error = 100 * np.abs(ours * np.median(true / ours) / true - 1)
    order, half = np.argsort(-found.conf[known], kind="stable"), len(error) // 2
    return {
        "all": round(float(error.mean()), 2),
        "best_half": round(float(error[order[:half]].mean()), 2),
        "oracle_half": round(float(np.sort(error)[:half].mean()), 2),
    }


def sensor_depth(found: Reconstruction, folder: Path) -> np.ndarray:
    """Depth of the sensor, in metres, at the pixels of the network's pictures."""
    stored = [np.asarray(Image.open(folder / "depth" / f"{Path(name).stem}.png")) / 1000 for name in found.names]
    size = found.sources[0].width, found.sources[0].height
    return network_depth(found, np.stack([np.asarray(Image.fromarray(d).resize(size, 0)) for d in stored]))


def synthetic(model: Backbone, index: int, refine: str) -> dict[str, float]:
    """Confidence on one held-out scene."""
    batch = SyntheticWorld(seed=HELD_OUT_SEED, distortion=0.0).batch(index, 1, views=6, height=360, width=480)
    pixels = (batch.images[0].permute(0, 2, 3, 1).numpy() * 255).round().clip(0, 255).astype(np.uint8)
    found = of_images(model, [Image.fromarray(image) for image in pixels], refine)
    return halves(found, network_depth(found, batch.depth[0].numpy()))


def main() -> None:
    """Measure everything and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, default=Path("../shared/data/scenes"))
    parser.add_argument("--scenes", type=int, default=14)
    options = parser.parse_args()
    model = lean3r.load("nano")
    result: dict = {"hardware": hardware(), "bad_inputs": {}, "photos": {}, "confidence": {}}
    for name, (expected, images) in bad_inputs(options.photos).items():
        found = codes(of_images(model, images, "off"))
        result["bad_inputs"][name] = {"expected": expected, "found": found, "hit": expected in found}
    for folder in sorted(path for path in options.photos.iterdir() if (path / "gt").is_dir()):
        for refine in ("off", "on"):
            found = lean3r.reconstruct(model, folder / "images", refine=refine)
            row = {"warnings": codes(found), **points_of(found, folder)}
            result["photos"].setdefault(folder.name, {})[refine] = row
            if folder.name == SENSOR:
                result["confidence"].setdefault("sensor", {})[refine] = halves(found, sensor_depth(found, folder))
            print(folder.name, refine, row, flush=True)
        write_result("trust", result)
    for refine in ("off", "on"):
        rows = [synthetic(model, index, refine) for index in range(options.scenes)]
        figures = {key: round(statistics.median(row[key] for row in rows), 2) for key in rows[0]} if rows else {}
        result["confidence"].setdefault("synthetic_median", {})[refine] = figures
    print(write_result("trust", result))


if __name__ == "__main__":
    main()
