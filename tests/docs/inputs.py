"""What the pages call by name - photos/, clip.mp4, vggt.safetensors, ... - small and made here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from contracts.tiny import tiny
from data import tiny as tiny_sets
from PIL import Image
from scipy.spatial.transform import Rotation

from docs.pages import steps_of
from lean3r.compress import prepare
from lean3r.data.world.showroom import phone_photos
from lean3r.models import CARDS, MODELS
from lean3r.models.base import Backbone
from lean3r.models.checkpoint import save_model, save_weights
from lean3r.models.keymap import IDENTITY
from lean3r.models.lite3r import released_name
from lean3r.models.vggt import Vggt

VIEWS, HEIGHT, WIDTH = 4, 144, 192
FRAMES, RATE = 12, 4
GPS = 0x8825


@cache
def taken(views: int) -> tuple[list[bytes], np.ndarray, np.ndarray]:
    """So many photos of a room as JPEG files, cam_from_world [S, 4, 4] and intrinsics [S, 3, 3]."""
    with TemporaryDirectory() as folder:
        truth = phone_photos(folder, views, seed=1, height=HEIGHT, width=WIDTH)
        files = [path.read_bytes() for path in sorted(Path(folder).glob("*.jpg"))]
    return files, truth.cam_from_world[0].double().numpy(), truth.intrinsics[0].double().numpy()


def photos(folder: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    """IMG_1.jpg ... as a phone writes them, with the places where they were taken, some metres apart."""
    folder.mkdir()
    files, cam_from_world, _ = taken(VIEWS)
    centres = np.linalg.inv(cam_from_world)[:, :3, 3].tolist()
    for number, (file, (x, y, z)) in enumerate(zip(files, centres, strict=True), start=1):
        with Image.open(BytesIO(file)) as picture:
            exif = picture.getexif()
            place = {1: "N", 2: (46.0, 50.0, 33.0 + z / 3), 3: "W", 4: (91.0, 59.0, 38.0 - x / 2), 6: 198.0 - y}
            exif[GPS] = place
            picture.resize(size).save(folder / f"IMG_{number}.jpg", exif=exif, quality=95)


def positions(path: Path) -> None:
    """Where the photos were taken, and one that is not here."""
    rows = [f"IMG_{n + 1}.jpg,{46.8425 + 2e-5 * (n % 2):.7f},{-91.9939 + 3e-5 * n:.7f},198.4" for n in range(VIEWS + 1)]
    path.write_text("\n".join(["name,lat,lon,alt", *rows]))


def more(*numbers: int) -> Callable[[Path], None]:
    """Other photos of the same room, between those of `photos`."""

    def write(folder: Path) -> None:
        folder.mkdir()
        for number in numbers:
            (folder / f"IMG_{number}.jpg").write_bytes(taken(FRAMES)[0][number])

    return write


def masks(folder: Path) -> None:
    """A black strip at the left of every photo."""
    folder.mkdir()
    strip = np.full((HEIGHT, WIDTH), 255, np.uint8)
    strip[:, : WIDTH // 6] = 0
    for number in range(1, VIEWS + 1):
        Image.fromarray(strip).save(folder / f"IMG_{number}.jpg.png")


def scenes(folder: Path) -> None:
    """Two scenes to reconstruct."""
    folder.mkdir()
    photos(folder / "kitchen")
    video(folder / "hall.mp4")


def video(path: Path) -> None:
    """Three seconds along the photos."""
    import av

    with av.open(path, "w") as out:
        stream = out.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = WIDTH, HEIGHT, "yuv420p", 4_000_000
        for file in taken(FRAMES)[0]:
            with Image.open(BytesIO(file)) as picture:
                out.mux(stream.encode(av.VideoFrame.from_image(picture)))
        out.mux(stream.encode())


def trajectory(path: Path) -> None:
    """Where the video's frames were taken, in TUM's format."""
    rows = []
    for number, world_from_cam in enumerate(np.linalg.inv(taken(FRAMES)[1])):
        x, y, z, w = Rotation.from_matrix(world_from_cam[:3, :3]).as_quat()
        rows.append(" ".join(map(str, [number / RATE, *world_from_cam[:3, 3], x, y, z, w])))
    path.write_text("\n".join(rows))


def lens(path: Path) -> None:
    """The intrinsics of the video."""
    k = taken(FRAMES)[2][0]
    values = {"fx": k[0, 0], "fy": k[1, 1], "cx": k[0, 2], "cy": k[1, 2], "width": WIDTH, "height": HEIGHT}
    path.write_text(json.dumps(values))


def colmap_model(folder: Path) -> None:
    """sparse/0 with a pinhole for each photo, and no points."""
    model = folder / "sparse" / "0"
    model.mkdir(parents=True)
    import pycolmap

    made = pycolmap.Reconstruction()
    for number, (pose, k) in enumerate(zip(*taken(VIEWS)[1:], strict=True), start=1):
        params = [k[0, 0], k[1, 1], k[0, 2], k[1, 2]]
        made.add_camera_with_trivial_rig(
            pycolmap.Camera(camera_id=number, model="PINHOLE", width=WIDTH, height=HEIGHT, params=params)
        )
        image = pycolmap.Image(name=f"IMG_{number}.jpg", keypoints=np.zeros((0, 2)), camera_id=number, image_id=number)
        made.add_image_with_trivial_frame(image, pycolmap.Rigid3d(np.ascontiguousarray(pose[:3])))
    made.write(model)


def transforms(path: Path) -> None:
    """nerfstudio's file, OpenGL axes."""
    rows = []
    for number, (pose, k) in enumerate(zip(*taken(VIEWS)[1:], strict=True), start=1):
        matrix = np.linalg.inv(pose) @ np.diag([1.0, -1.0, -1.0, 1.0])
        values = {"fl_x": k[0, 0], "fl_y": k[1, 1], "cx": k[0, 2], "cy": k[1, 2], "w": WIDTH, "h": HEIGHT}
        rows.append({"file_path": f"images/IMG_{number}.jpg", "transform_matrix": matrix.tolist(), **values})
    path.write_text(json.dumps({"frames": rows}))


def checkpoint(name: str) -> Callable[[Path], None]:
    """A file as the authors publish it, of a model at its smallest size; of nano at its own."""

    def write(path: Path) -> None:
        model: Backbone = MODELS.get(name)() if name.startswith("nano") else tiny(name)
        if model.KEY_MAP == IDENTITY:
            save_model(model, path)
        elif path.suffix == ".pt":
            torch.save(model.KEY_MAP.write(model.state_dict()), path)
        else:
            save_weights(model.KEY_MAP.write(model.state_dict()), path, {"format": "pt"})

    return write


def lite3r(path: Path) -> None:
    """A final file of VGGT as the Lite3R release writes it."""
    dense = Vggt(replace(Vggt.SMALLEST, point_head=False, track_head=False))
    dense.load_state_dict({name: tiny("vggt").state_dict()[name] for name in dense.state_dict()})
    model = prepare(dense, "lite3r")
    tensors = {released_name(name): value for name, value in model.KEY_MAP.write(model.state_dict()).items()}
    torch.save({"model": tensors, "optim": None, "step": 113, "extra": {}}, path)


def data_set(name: str) -> Callable[[Path], None]:
    """The tiny copy of a data set."""
    return lambda root: tiny_sets.write(name, root) and None


def posed(folder: Path) -> None:
    """A copy of the set that add-a-data-set.md adds, by the writer that stands there."""
    page = "docs/how-to/add-a-data-set.md"
    code = next(step.text for step in steps_of(page) if step.path.startswith("tests/"))
    namespace: dict = {"__name__": "posed"}
    exec(compile(code, page, "exec"), namespace)
    namespace["write"](folder, tiny_sets.scenes())


def plan(path: Path) -> None:
    """A plan of one's own."""
    path.write_text(json.dumps({"name": "mine", "steps": [{"target": "global blocks", "mechanism": "gsa"}]}))


def hub(folder: Path) -> None:
    """The Hub's cache with the official checkpoints of all models, as if they had been downloaded."""
    published = {(c.repository, "model.safetensors"): name for name, c in CARDS.items() if c.repository}
    published["facebook/VGGT-1B-Commercial", "vggt_1B_commercial.pt"] = "vggt"
    for (repository, file), name in published.items():
        cached = folder / f"models--{repository.replace('/', '--')}"
        (cached / "snapshots" / "0").mkdir(parents=True)
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text("0")
        checkpoint(name)(cached / "snapshots" / "0" / file)


INPUTS: dict[str, Callable[[Path], None]] = {
    "photos": photos,
    "PHOTOS": photos,
    "holiday": photos,
    "drone": photos,
    "scenes": scenes,
    "masks": masks,
    "clip.mp4": video,
    "colmap": colmap_model,
    "transforms.json": transforms,
    "vggt.safetensors": checkpoint("vggt"),
    "my-vggt.safetensors": checkpoint("vggt"),
    "mine.safetensors": checkpoint("nano"),
    "vggt_fp8_qat_1ep.pt": lite3r,
    "my-plan.json": plan,
    "ROOT": data_set("colmap"),
}
"""Name -> writer of that file or folder. A name that means something else on a page stands in OF_PAGE."""

OF_PAGE: dict[str, dict[str, Callable[[Path], None]]] = {
    "README.md": {"model.safetensors": checkpoint("da3-large")},
    "docs/how-to/own-weights-and-training.md": {"model.safetensors": checkpoint("pi3")},
    "docs/how-to/adapters.md": {"DIR": data_set("scannet")},
    "docs/how-to/add-a-data-set.md": {"posed": posed},
    "docs/how-to/known-cameras.md": {
        "photos": partial(photos, size=(640, 480)),
        "walk.mp4": video,
        "poses_tum.txt": trajectory,
        "camera.json": lens,
    },
    "docs/how-to/add.md": {"more": more(7, 8), "later": more(9), "evening": more(10)},
    "docs/how-to/survey.md": {"positions.csv": positions},
    "docs/nano.md": {"DIR": photos, "nano-stream.safetensors": checkpoint("nano-stream")},
}


def wanted(page: str, text: str) -> dict[str, Callable[[Path], None]]:
    """The inputs that a page's blocks name."""
    known = INPUTS | OF_PAGE.get(page, {})
    return {name: write for name, write in known.items() if re.search(rf"(?<![\w.-/]){re.escape(name)}\b", text)}
