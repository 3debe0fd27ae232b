"""Sound files of every kind that lean3r reads: what the damage starts from."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

Files = dict[str, bytes]

PICTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {}),
    "palette": ("PNG", {}),
    "jpeg": ("JPEG", {"quality": 85}),
    "progressive": ("JPEG", {"progressive": True}),
    "mpo": ("MPO", {}),
    "webp": ("WEBP", {}),
    "avif": ("AVIF", {"speed": 10}),
    "tiff": ("TIFF", {"compression": "tiff_lzw"}),
    "gif": ("GIF", {}),
    "bmp": ("BMP", {}),
    "ppm": ("PPM", {}),
    "jp2": ("JPEG2000", {}),
    "heic": ("HEIF", {}),
}
APPLE_NOTE = b"Apple iOS\0\0\1MM\0\1" + struct.pack(">HHII6x6i", 8, 10, 3, 34, -1, 100, -9, 10, -1, 5)
VIDEOS = {"mp4": "libx264", "mkv": "libx264", "avi": "mpeg4", "webm": "libvpx"}


def picture(width: int = 96, height: int = 72) -> Image.Image:
    """A ramp with grain."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 200, width * height).reshape(height, width, 1)
    return Image.fromarray((ramp + rng.integers(0, 55, (height, width, 3))).astype(np.uint8))


@cache
def encoded(kind: str) -> bytes:
    """A picture of a row of PICTURES."""
    from pillow_heif import register_heif_opener

    register_heif_opener()
    form, options = PICTURES[kind]
    file = io.BytesIO()
    image = picture().convert("P") if kind == "palette" else picture()
    # libtiff writes no nested EXIF; the others carry all of it.
    image.save(file, form, **options, **({} if form == "TIFF" else {"exif": located()}))
    return file.getvalue()


@cache
def located() -> bytes:
    """EXIF with an orientation, a focal length and a place."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769)[0xA405] = 28
    exif.get_ifd(0x8769)[0x927C] = APPLE_NOTE
    exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 8.0, 1.5), 3: "E", 4: (11.0, 34.0, 2.5), 5: b"\0", 6: 519.0})
    return exif.tobytes()


@cache
def clip(suffix: str) -> bytes:
    """Twelve frames of 96 x 64 pixels."""
    import av

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"clip.{suffix}"
        with av.open(str(path), "w") as container:
            stream = container.add_stream(VIDEOS[suffix], rate=5)
            stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
            for i in range(12):
                frame = av.VideoFrame.from_ndarray(np.asarray(picture(96, 64)) // 2 + 10 * i, format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path.read_bytes()


@cache
def archive() -> bytes:
    """Two pictures in folders and one beside them."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
        for name in ("a/1.png", "b/1.png", "c.jpg"):
            opened.writestr(name, encoded("jpeg" if name.endswith("jpg") else "png"))
    return file.getvalue()


@cache
def colmap(suffix: str) -> Files:
    """Two rigs of two cameras, with two frames each."""
    from lean3r.colmap_library import pycolmap

    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs = options.num_cameras_per_rig = options.num_frames_per_rig = 2
    options.num_points3D = 5
    model = pycolmap.synthesize_dataset(options)
    with tempfile.TemporaryDirectory() as folder:
        model.write_binary(folder) if suffix == "bin" else model.write_text(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def cameras_json() -> Files:
    """lean3r's own: two views."""
    k = [[80.0, 0, 48.0], [0, 80.0, 36.0], [0, 0, 1]]
    view = {"width": 96, "height": 72, "K": k, "cam_from_world": np.eye(4).tolist()}
    views = [{"name": name, **view} for name in ("a.png", "b.png")]
    return {"cameras.json": json.dumps({"axes": "opencv", "scale": "arbitrary", "views": views}).encode()}


@cache
def result() -> Files:
    """A result folder of three views, refined, with what it remembers of its pictures."""
    from lean3r.export import export
    from lean3r.grow.memory import Memory
    from lean3r.refine.appearance import WORDS
    from lean3r.types import Lens, PointCloud, Reconstruction, Source, SparsePoints

    views, (height, width) = 3, (9, 12)
    names, none = [f"{view}.png" for view in range(views)], np.zeros((0, 3), np.float32)
    point, view = np.arange(20, dtype=np.int32).repeat(views), np.tile(np.arange(views, dtype=np.int32), 20)
    rng = np.random.default_rng(0)
    xyz, xy = rng.normal((0, 0, 5), 1, (20, 3)), rng.uniform(1, 70, (20 * views, 2))
    scene = Reconstruction(
        sources=tuple(Source(name, 96, 72, (8.0, 8.0, 0.0, 0.0)) for name in names),
        images=np.full((views, height, width, 3), 90, np.uint8),
        mask=np.ones((views, height, width), bool),
        depth=np.ones((views, height, width), np.float32),
        conf=np.ones((views, height, width), np.float32),
        cam_from_world=np.tile(np.eye(4), (views, 1, 1)),
        intrinsics=np.tile(np.array([[10.0, 0, 6], [0, 10, 4.5], [0, 0, 1]]), (views, 1, 1)),
        points=PointCloud(none, none.astype(np.uint8), none[:, 0], none[:, 0].astype(np.int32), none[:, :2], none),
        lenses=(Lens("SIMPLE_RADIAL", (80.0, 48.0, 36.0, 0.01)),) * views,
        sparse=SparsePoints(xyz, np.full((20, 3), 9, np.uint8), np.full(20, 0.1), point, view, xy),
        registration=("refined",) * views,
        info={"refinement": {"status": "refined", "views": [{}] * views}, "config": {"max_points": 9, "inputs": ["a"]}},
    )
    with tempfile.TemporaryDirectory() as name:
        out = export(scene, Path(name) / "out", "cameras,npz,colmap")
        vectors = np.zeros((views, WORDS * 128), np.float32)
        Memory(tuple(names), scene.images, ("",) * views, np.zeros((WORDS, 128), np.float32), vectors).write(out)
        return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def viewed() -> Files:
    """A result folder as the viewer reads it: with points, a mesh and a picture."""
    from lean3r.export.ply import ply_bytes

    rng = np.random.default_rng(0)
    xyz, rgb = rng.normal((0, 0, 5), 1, (60, 3)).astype(np.float32), rng.integers(0, 255, (60, 3), np.uint8)
    points = ply_bytes(xyz, rgb, normals=np.zeros_like(xyz), confidence=np.ones(60, np.float32))
    mesh = ply_bytes(xyz, rgb, rng.integers(0, 60, (20, 3)).astype(np.int32))
    return {**result(), "points.ply": points, "mesh.ply": mesh, "images/0.png": encoded("png")}


def transforms_json() -> Files:
    """nerfstudio's: one frame with a focal length, one with an angle of view."""
    frame = {"transform_matrix": np.eye(4).tolist()}
    own = {"w": 96, "h": 72, "camera_angle_x": 1.0, "k1": 0.01, "camera_model": "OPENCV"}
    content = {"fl_x": 80.0, "cx": 48.0, "cy": 36.0, "w": 96, "h": 72}
    frames = [{"file_path": "images/a.png", **frame}, {"file_path": "images/b.png", **frame, **own}]
    return {"transforms.json": json.dumps({**content, "frames": frames}).encode()}


def trajectory() -> Files:
    """Poses as TUM writes them."""
    rows = [f"{i}.5 {i} 0 0 0 0 0 1" for i in range(4)]
    return {"poses.txt": "\n".join(["# timestamp tx ty tz qx qy qz qw", *rows]).encode()}


def tensors() -> dict[str, torch.Tensor]:
    """Two small ones."""
    return {"encoder.weight": torch.ones(16, 8), "encoder.bias": torch.zeros(16, dtype=torch.bfloat16)}


@cache
def weights(kind: str) -> Files:
    """One file of weights, or shards below an index."""
    from safetensors.torch import save

    if kind == "safetensors":
        return {"model.safetensors": save(tensors(), {"model": "nano"})}
    if kind == "index":
        table = {name: f"{name}.safetensors" for name in tensors()}
        files = {f"{name}.safetensors": save({name: value}) for name, value in tensors().items()}
        return {"model.safetensors.index.json": json.dumps({"weight_map": table}).encode(), **files}
    file = io.BytesIO()
    torch.save({"state_dict": tensors()}, file, _use_new_zipfile_serialization=kind == "pt")
    return {"model.pt": file.getvalue()}


ODD_WEIGHTS = 11


@cache
def odd_weights(number: int) -> Files:
    """What torch saves and no model loads, but for two of them."""
    ones = torch.ones(3, 3)
    kinds = [
        lambda: {1: ones},
        lambda: {("a", "b"): ones},
        lambda: {"a": ones.to_sparse()},
        lambda: {"a": ones.to_sparse_csr()},
        lambda: {"a": torch.quantize_per_tensor(ones, 0.1, 0, torch.qint8)},
        lambda: {"a": ones.to("meta")},
        lambda: {"a": torch.ones(1).expand(10**6)},
        lambda: {"a": ones.to(torch.complex64)},
        lambda: {"a": 1},
        lambda: {"state_dict": {}},
        lambda: [1, 2],
    ]
    assert len(kinds) == ODD_WEIGHTS
    file = io.BytesIO()
    torch.save(kinds[number](), file)
    return {"model.pt": file.getvalue()}


def pickled() -> Files:
    """An object, not tensors."""
    return {"model.pt": pickle.dumps({"a": Path("x")})}


@cache
def data_set(name: str) -> Files:
    """All files of the tiny copy of a data set."""
    from data import tiny

    with tempfile.TemporaryDirectory() as folder:
        tiny.write(name, Path(folder))
        paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@cache
def checkpoint() -> Files:
    """Two checkpoints of a run, as files."""
    from lean3r.train.checkpoints.state import save_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        for step in (1, 2):
            state = {"step": step, "model": {"w": torch.ones(4)}, "optimizer": {}, "ema": {}, "config": "{}"}
            save_checkpoint(Path(folder), step, state, 2)
        return {path.name: path.read_bytes() for path in Path(folder).glob("step-*")}


def maps(suffix: str) -> Files:
    """Depth maps of two pictures."""
    values, files = np.linspace(1, 9, 48 * 36, dtype=np.float32).reshape(36, 48), {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x.{suffix}"
        if suffix == "exr":
            import OpenEXR

            OpenEXR.File({"type": OpenEXR.scanlineimage}, {"Z": values}).write(str(path))
        elif suffix == "npy":
            np.save(path, values)
        elif suffix == "npz":
            np.savez_compressed(path, depth=values)
        elif suffix == "pfm":
            path.write_bytes(b"Pf\n48 36\n-1.0\n" + values.tobytes())
        elif suffix == "png":
            Image.fromarray((1000 * values).astype(np.uint16)).save(path)
            files["depth.json"] = b'{"units_per_metre": 1000}'
        else:
            Image.fromarray(values).save(path)
        return {**files, **{f"depth/{name}.{suffix}": path.read_bytes() for name in "ab"}}


def predictions(form: str) -> Files:
    """Predictions of two pictures, a.png and b.png, in a form that another program writes."""
    points = np.arange(30, dtype=np.float64).reshape(10, 3)
    head = (
        "ply\nformat {} 1.0\nelement vertex 10\nproperty double x\nproperty double y\nproperty double z\nend_header\n"
    )
    if form == "npz":
        file = io.BytesIO()
        np.savez(file, names=["a", "b"], cam_from_world=np.tile(np.eye(4), (2, 1, 1)), depth=np.ones((2, 9, 8)))
        return {"predictions.npz": file.getvalue()}
    if form == "ply":
        return {"cloud.ply": head.format("binary_little_endian").encode() + points.tobytes()}
    if form == "ply/ascii":
        return {"cloud.ply": head.format("ascii").encode() + "".join(f"{x} {y} {z}\n" for x, y, z in points).encode()}
    row = {"tum": "0.5 1 2 3 0 0 0 1\n", "kitti": "1 0 0 4 0 1 0 5 0 0 1 6\n", "euroc": f"{10**18},1,2,3,1,0,0,0\n"}
    text = {"poses.csv" if form == "euroc" else "poses.txt": 2 * row[form].encode()}
    return {**text, "K.txt": b"80 0 48\n0 80 36\n0 0 1\n"}
