"""A tiny ETH3D: undistorted pictures, and depth of the original ones, whose lens bends nothing at this angle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from data.tiny import TinyScene, numbers, save_jpeg
from data.tiny.colmap import write_model

from lean3r.export.ply import ply_bytes

STRAIGHT = (1 / 3, 2 / 15, 0, 0, 17 / 315, 62 / 2835, 0, 0)  # the series of the tangent: a fisheye that is a pinhole


def write(root: Path, scenes: Sequence[TinyScene]) -> None:
    """One folder a scene, with both calibrations, depth, and the surface as two scans in frames of their own."""
    for number, scene in enumerate(scenes):
        place = root / f"courtyard_{number}"
        names = [f"DSC_{286 + view:04}.JPG" for view in range(len(scene.images))]
        for folder, model, params in (
            ("dslr_images", "THIN_PRISM_FISHEYE", STRAIGHT),
            ("dslr_images_undistorted", "PINHOLE", ()),
        ):
            end = "undistorted" if params == () else "jpg"
            write_model(place / f"dslr_calibration_{end}", scene, [f"{folder}/{name}" for name in names], model, params)
        for name, image, depth in zip(names, scene.images, scene.depth, strict=True):
            save_jpeg(place / "images" / "dslr_images_undistorted" / name, image)
            path = place / "ground_truth_depth" / "dslr_images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(np.where(depth > 0, depth, np.inf).astype("<f4").tobytes())
        write_scans(place / "dslr_scan_eval", surface(scene))


def write_originals(root: Path, scenes: Sequence[TinyScene]) -> None:
    """As in dslr_jpg: only the original pictures."""
    write(root, scenes)
    for place in root.iterdir():
        (place / "images" / "dslr_images_undistorted").rename(place / "images" / "dslr_images")
        for path in (place / "dslr_calibration_undistorted").iterdir():
            path.unlink()
        (place / "dslr_calibration_undistorted").rmdir()


def surface(scene: TinyScene) -> np.ndarray:
    """World points [N, 3] that the views see."""
    points = []
    for depth, k, pose in zip(scene.depth, scene.intrinsics, scene.world_from_cam, strict=True):
        y, x = np.nonzero(depth)
        rays = np.linalg.inv(k) @ np.stack([x + 0.5, y + 0.5, np.ones(len(x))])
        points.append((pose[:3, :3] @ (rays * depth[y, x]) + pose[:3, 3:]).T)
    return np.concatenate(points)


def write_scans(folder: Path, points: np.ndarray) -> None:
    """Two scans in frames of their own, and MeshLab's project that says where they are."""
    folder.mkdir(parents=True)
    rows = []
    for scan, part in enumerate((points[::2], points[1::2])):
        pose = np.eye(4)
        pose[:3, :3] = np.roll(np.eye(3), scan, axis=0)
        pose[:3, 3] = (1 + scan, 2, 3)
        own = (part - pose[:3, 3]) @ pose[:3, :3]
        (folder / f"scan{scan + 1}.ply").write_bytes(ply_bytes(own, np.zeros((len(own), 3), np.uint8)))
        rows.append(
            f'  <MLMesh label="scan{scan + 1}" filename="scan{scan + 1}.ply">\n'
            f"   <MLMatrix44>\n{numbers(pose)} \n</MLMatrix44>\n  </MLMesh>"
        )
    body = "\n".join(rows)
    (folder / "scan_alignment.mlp").write_text(
        f"<!DOCTYPE MeshLabDocument>\n<MeshLabProject>\n <MeshGroup>\n{body}\n </MeshGroup>\n</MeshLabProject>\n"
    )
