"""Cameras and depth of three pictures, and writers of them in the forms of other programs."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

RNG = np.random.default_rng(0)
NAMES = [f"rgb/{name}.jpg" for name in ("b", "a", "c")]
TURN = Rotation.from_rotvec(RNG.normal(size=(3, 3)))
PLACE = RNG.normal(size=(3, 3))
WORLD_FROM_CAM = np.tile(np.eye(4), (3, 1, 1))
WORLD_FROM_CAM[:, :3, :3], WORLD_FROM_CAM[:, :3, 3] = TURN.as_matrix(), PLACE
TIMES = np.array([1305031102.175304, 1305031102.211214, 1305031102.275326])
DEPTH = [RNG.uniform(0.5, 8, size).astype(np.float32) for size in ((9, 7), (6, 13), (2, 5))]  # portrait, odd, small
TUM = "".join(f"{t:.6f} {' '.join(map(str, (*p, *q)))}\n" for t, p, q in zip(TIMES, PLACE, TURN.as_quat(), strict=True))
KITTI = "".join(" ".join(map(str, pose[:3].ravel())) + "\n" for pose in WORLD_FROM_CAM)


def euroc() -> str:
    quaternions = TURN.as_quat()[:, [3, 0, 1, 2]]
    rows = zip((TIMES * 1e9).astype(np.int64), PLACE, quaternions, strict=True)
    return "#timestamp, p_x [m], ...\n" + "".join(f"{t},{','.join(map(str, (*p, *q)))},0,0\n" for t, p, q in rows)


def is_truth(cam_from_world: np.ndarray | None) -> bool:
    return cam_from_world is not None and np.allclose(cam_from_world @ WORLD_FROM_CAM, np.eye(4), atol=1e-6)


def write_colmap(folder: Path, form: str = "binary", rigs: int = 3) -> Path:
    from lean3r.colmap_library import pycolmap

    folder.mkdir(parents=True, exist_ok=True)
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig, options.num_points3D = rigs, 2, 2, 7
    model = pycolmap.synthesize_dataset(options)
    model.write_binary(folder) if form == "binary" else model.write_text(folder)
    return folder


def png16(path: Path, depth: np.ndarray, units: float) -> None:
    Image.fromarray(np.round(depth * units).astype(np.uint16)).save(path.with_suffix(".png"))


def pfm(path: Path, depth: np.ndarray, order: str) -> None:
    scale = {"<": "-1.0", ">": "1.0"}[order]
    head = f"Pf\n{depth.shape[1]} {depth.shape[0]}\n{scale}\n".encode()
    path.with_suffix(".pfm").write_bytes(head + depth[::-1].astype(f"{order}f4").tobytes())


def exr(path: Path, depth: np.ndarray, channels: list[str], kind: type = np.float32) -> None:
    openexr = pytest.importorskip("OpenEXR")
    noise = RNG.uniform(size=depth.shape).astype(kind)
    pixels = {name: depth.astype(kind) if name[-1] in "ZV" or len(channels) == 1 else noise for name in channels}
    if channels == ["R", "G", "B"]:
        pixels = dict.fromkeys(channels, depth.astype(kind))
    openexr.File({"type": openexr.scanlineimage}, pixels).write(str(path.with_suffix(".exr")))


def ply_by_hand(path: Path, points: np.ndarray, order: str) -> None:
    """Doubles and bytes in an odd order, as no program writes them."""
    kind = {"a": "ascii", "<": "binary_little_endian", ">": "binary_big_endian"}[order]
    head = f"ply\r\nformat {kind} 1.0\r\ncomment x\r\nelement vertex {len(points)}\r\n".replace("\r", "")
    head += (
        "property uchar red\nproperty double z\nproperty float nx\nproperty double x\nproperty double y\nend_header\n"
    )
    rows = [(7, z, 0.5, x, y) for x, y, z in points.tolist()]
    body = "".join(f"{' '.join(map(str, row))}\n" for row in rows).encode()
    if order != "a":
        body = b"".join(struct.pack(f"{order}Bdfdd", *row) for row in rows)
    path.write_bytes(head.encode() + body)


def write_depth(folder: Path, names: str = "bac") -> None:
    (folder / "depth").mkdir(exist_ok=True, parents=True)
    for name, depth in zip(names, DEPTH, strict=True):
        np.save(folder / "depth" / f"{name}.npy", depth)


MAPS: dict[str, tuple[Callable[[Path, np.ndarray], object], float]] = {
    "npy": (lambda p, d: np.save(p.with_suffix(".npy"), d.astype(np.float64)), 0),
    "npy half": (lambda p, d: np.save(p.with_suffix(".npy"), d[None].astype(np.float16)), 0.005),
    "npy mm": (lambda p, d: np.save(p.with_suffix(".npy"), np.round(d * 1000).astype(np.int32)), 0.0006),
    "npz": (lambda p, d: np.savez_compressed(p.with_suffix(".npz"), depth=d[..., None], conf=d), 0),
    "png": (lambda p, d: png16(p, d, 1000), 0.0006),
    "pfm": (lambda p, d: pfm(p, d, "<"), 0),
    "pfm big": (lambda p, d: pfm(p, d, ">"), 0),
    "exr Y": (lambda p, d: exr(p, d, ["Y"]), 0),
    "exr half V": (lambda p, d: exr(p, d, ["V"], np.float16), 0.005),
    "exr Blender": (lambda p, d: exr(p, d, ["View.Depth.Z", "View.Combined.R"]), 0),
    "exr grey RGB": (lambda p, d: exr(p, d, ["R", "G", "B"]), 0),
    "tiff": (lambda p, d: Image.fromarray(d).save(p.with_suffix(".tiff")), 0),
    "tiff 16": (lambda p, d: Image.fromarray(np.round(d * 1000).astype(np.uint16)).save(p.with_suffix(".tif")), 0.0006),
}
