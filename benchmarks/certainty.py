"""Does "certain" mean right? Small random sets of photographs, and of two places mixed, against ground truth.

    python benchmarks/certainty.py [--photos ../shared/data/scenes] [--draws 6] [--mixed 12]

Writes benchmarks/results/certainty.json, again after every place. Of each place, `draws` random sets of each of SIZES
photographs are reconstructed with default settings. A set's claim is its views that refinement registered and does not
call uncertain; its error is that of their worst pair: the larger of the angles of relative rotation and direction
(rotation alone where two true centres are nearer than NEAR of the mean depth). `focal_percent` is the worst error of
their focal lengths. `warned` are the claims with a warning that says what may be wrong (WARNINGS). Mixed sets take
photographs of two places: their claim is wrong if it holds views of both, unless they are one: the fountain stands in
the courtyard of the castle (ONE).

The truth of brighton_beach_aerial, a level flight, is structure from motion with a free focal length: 447 px, where
half of its pictures have EXIF data of 339 px, and 3.61 mm before a sensor of 1/2.3 inches (6.17 mm wide) are 374 px.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import hardware, write_result
from torch import Tensor

import lean3r
from lean3r.data.sets.colmap import ColmapCameras, read_cameras
from lean3r.eval.pose_errors import rotation_error_deg
from lean3r.models.base import Backbone
from lean3r.types import Reconstruction

SIZES = (2, 3, 4, 6, 8)
RIGHT_DEG = (1, 2, 5, 10)
NEAR = 0.05
CLAIMED = ("refined", "fallback")
ONE = ["castle_p19", "fountain_p11"]
WARNINGS = {"focal-length", "two-views"}


def main() -> None:
    """Draw, reconstruct, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=Path("../shared/data/scenes"))
    parser.add_argument("--draws", type=int, default=6)
    parser.add_argument("--mixed", type=int, default=12)
    parser.add_argument("--only", nargs="*", help="places by name")
    args = parser.parse_args()
    model = lean3r.load("nano")
    places = sorted(path for path in args.photos.iterdir() if (path / "gt").is_dir())
    sets: list[dict[str, Any]] = []
    for place in places:
        if args.only and place.name not in args.only:
            continue
        truth = read_cameras(place / "gt")
        for size in SIZES:
            for draw in range(args.draws):
                chosen = sorted(random.Random(f"{place.name} {size} {draw}").sample(truth.names, size))
                found = lean3r.reconstruct(model, [place / "images" / name for name in chosen])
                row = {"place": place.name, "views": size, "draw": draw}
                sets.append(row | of_claim(found, truth))
                print(sets[-1], flush=True)
        write(sets)
    for draw in range(args.mixed):
        sets.append(mixed(model, places, draw))
        print(sets[-1], flush=True)
    print(write(sets))


def claimed(found: Reconstruction) -> list[int]:
    """The views whose cameras are said to be right."""
    return [view for view, origin in enumerate(found.registration) if origin in CLAIMED]


def of_claim(found: Reconstruction, truth: ColmapCameras) -> dict[str, Any]:
    """How many views a result is certain of, and the errors of those."""
    views = claimed(found)
    row: dict[str, Any] = {
        "certain": len(views),
        "warnings": sorted(told["code"] for told in found.info.get("warnings", ())),
        "names": list(found.names),
    }
    if len(views) < 2:
        return row
    index = [truth.names.index(found.names[view]) for view in views]
    poses, true = (torch.from_numpy(each) for each in (found.cam_from_world[views], truth.cam_from_world[index]))
    errors = pair_errors_deg(poses, true, NEAR * truth.mean_depth)
    focal = [
        found.lenses[view].params[0] / truth.intrinsics[at, 0, 0] - 1 for view, at in zip(views, index, strict=True)
    ]
    return row | {"error_deg": float(errors.max()), "focal_percent": 100 * float(np.abs(focal).max())}


def pair_errors_deg(poses: Tensor, true: Tensor, near: float) -> np.ndarray:
    """Of all pairs of cameras [S, 4, 4]; a direction that is the other way round is 180 degrees off."""
    i, j = torch.triu_indices(len(poses), len(poses), 1)
    found, wanted = (each[j] @ torch.linalg.inv(each[i]) for each in (poses, true))
    turned = rotation_error_deg(found[:, :3, :3], wanted[:, :3, :3])
    cosine = torch.nn.functional.cosine_similarity(found[:, :3, 3], wanted[:, :3, 3], dim=1)
    aside = torch.rad2deg(torch.arccos(cosine.clamp(-1, 1)))
    counts = wanted[:, :3, 3].norm(dim=1) >= near
    return torch.where(counts, torch.maximum(turned, aside), turned).numpy()


def mixed(model: Backbone, places: list[Path], draw: int) -> dict[str, Any]:
    """Four photographs of one place and one to four of another in turn, and whether they are certain of one place."""
    dice = random.Random(f"mixed {draw}")
    pair = dice.sample(places, 2)
    pictures = [p for place, n in zip(pair, (4, 1 + draw % 4), strict=True) for p in dice.sample(sorted_in(place), n)]
    with tempfile.TemporaryDirectory() as folder:
        for path in pictures:
            os.symlink(path.resolve(), Path(folder) / f"{path.parts[-3]}-{path.name}")
        found = lean3r.reconstruct(model, sorted(Path(folder).iterdir()))
    held = sorted({found.names[view].split("-")[0] for view in claimed(found)})
    warnings = sorted(told["code"] for told in found.info.get("warnings", ()))
    return {
        "places": [place.name for place in pair],
        "views": len(pictures),
        "draw": draw,
        "certain": len(claimed(found)),
        "certain_of": held,
        "warnings": warnings,
    }


def sorted_in(place: Path) -> list[Path]:
    """The photographs of a place."""
    return sorted((place / "images").iterdir())


def write(sets: list[dict[str, Any]]) -> Path:
    """The file: all sets, and shares of them by number of views."""
    alone = [row for row in sets if "place" in row]
    both = [row for row in sets if "places" in row]
    shares = {str(size): summary([row for row in alone if row["views"] == size]) for size in SIZES}
    joined = {"sets": len(both), "certain_of_two_places": sum(map(is_wrong, both))}
    result = {"hardware": hardware(), "by_views": shares, "all": summary(alone), "mixed": joined, "sets": sets}
    return write_result("certainty", result)


def is_wrong(row: dict[str, Any]) -> bool:
    """Whether a mixed set is certain of views of two places that are not one."""
    return len(row["certain_of"]) > 1 and row["certain_of"] != ONE


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of sets: the share of views that are certain, the sets that claim any pair, and how many of these are right."""
    claims = [row for row in rows if "error_deg" in row]
    sure = [row for row in claims if not WARNINGS & set(row["warnings"])]
    views = sum(row["views"] for row in rows)
    return {
        "sets": len(rows),
        "views_certain_percent": 100 * sum(row["certain"] for row in rows) / max(1, views),
        "claims": len(claims),
        "warned": len(claims) - len(sure),
        **of_claims("", claims),
        **of_claims("unwarned_", sure),
    }


def of_claims(name: str, claims: list[dict[str, Any]]) -> dict[str, Any]:
    """How many of them are right, and how far the worst is off."""
    return {
        **{f"{name}within_{deg}_deg": sum(row["error_deg"] <= deg for row in claims) for deg in RIGHT_DEG},
        f"{name}focal_within_10_percent": sum(row["focal_percent"] <= 10 for row in claims),
        f"{name}worst_deg": max((row["error_deg"] for row in claims), default=None),
        f"{name}worst_focal_percent": max((row["focal_percent"] for row in claims), default=None),
    }


if __name__ == "__main__":
    main()
