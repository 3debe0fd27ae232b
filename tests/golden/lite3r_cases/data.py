"""data_*: sampling and preprocessing, from files in the layout of the sets."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from lean3r.data.sampling.lite3r import Pairs, draw_views, in_unit
from lean3r.data.sets.blendedmvs import BlendedMVS
from lean3r.data.sets.dtu64 import Dtu64
from lean3r.data.sets.formats.files import write_pfm
from lean3r.geometry.camera import world_points
from lite3r_cases import Golden, compare

LIMIT = 1e-6
EVERY = 5  # pixels


def write_picture(path: Path, pixels: np.ndarray) -> None:
    """Pixels without loss, whatever the name says: readers go by the content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format="PNG")


def write_blendedmvs(case: Golden, root: Path) -> None:
    """The input of a case as the publisher would."""
    for scene in range(case.settings["scenes"]):
        folder = root / f"scene{scene}"
        for part in ("cams", "rendered_depth_maps"):
            (folder / part).mkdir(parents=True)
        for frame in case.settings["frame_ids"]:
            image, depth, camera = (
                case[f"in.scene{scene}.frame{frame}.{n}"] for n in ("image", "depth", "camera_text")
            )
            write_picture(folder / "blended_images" / f"{frame:08}.jpg", image)
            write_picture(folder / "blended_images" / f"{frame:08}_masked.jpg", image)
            write_pfm(folder / "rendered_depth_maps" / f"{frame:08}.pfm", depth)
            (folder / "cams" / f"{frame:08}_cam.txt").write_text(str(camera))


def check_blendedmvs(path: Path) -> None:
    """Frames drawn, pictures, depth, cameras and points of all items."""
    case = Golden(path)
    size, count = case.settings["img_size"], case.settings["views"]
    numbers = sorted(case.settings["frame_ids"])
    with tempfile.TemporaryDirectory() as folder:
        write_blendedmvs(case, Path(folder))
        pairs = Pairs([BlendedMVS(folder)], part="all", order=None, seed=case.settings["seed"], as_released=True)
        draws = [pairs.draw(n, count) for n in range(len(case["out.frames_drawn"]))]
        assert [place for place, _ in draws] == case["out.order_of_scenes"].tolist()
        assert [[numbers[v] for v in views] for _, views in draws] == case["out.frames_drawn"].tolist()
        for n, (place, views) in enumerate(draws):
            if f"out.item{n}.depths" in case.arrays:
                check_item(case, f"out.item{n}.", pairs, place, views, size)
    rng = np.random.default_rng(case.settings["seed"])
    wanted = case["out.draws_12_frames_3_views"]
    assert [[5 * v for v in draw_views(rng, 12, wanted.shape[1])] for _ in wanted] == wanted.tolist()


def check_item(case: Golden, prefix: str, pairs: Pairs, place: int, views: list[int], size: int) -> None:
    """One item, in its unit of length."""
    batch = pairs.sample(place, views, size, size)
    scaled = in_unit(batch, relative=False)
    cameras, depth = scaled.cam_from_world, scaled.depth
    assert np.array_equal((batch.images[0] * 255).round().byte(), case[f"{prefix}images_u8"])
    k = batch.intrinsics.clone()
    k[..., :2, 2] -= 0.5  # the files count from the centre of the first pixel
    compare(k[0], case[f"{prefix}intrinsics"], LIMIT, "intrinsics")
    compare(cameras[0], case[f"{prefix}extrinsics"], LIMIT, "extrinsics")
    if f"{prefix}depths" not in case.arrays:
        assert not batch.depth.any()
        return
    compare(depth[0], case[f"{prefix}depths"], LIMIT, "depths")
    known = depth[0] > 0
    assert np.array_equal(known, case[f"{prefix}point_masks"].astype(bool))
    points = world_points(depth, batch.intrinsics, cameras)[0].where(known[..., None], 0.0)
    wanted = case[f"{prefix}world_points_every_5th_pixel"]
    compare(points[:, ::EVERY, ::EVERY], wanted, LIMIT, "world points")


def check_dtu64(path: Path) -> None:
    """The first item: a set with cameras only."""
    case = Golden(path)
    size, count = case.settings["img_size"], case.settings["views"]
    numbers = sorted(int(name.split(".")[1].removeprefix("frame")) for name in case.arrays if name.endswith(".image"))
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            write_picture(Path(folder) / "scan1" / "image" / f"{number:06}.png", case[f"in.frame{number}.image"])
            (Path(folder) / "Cameras").mkdir(exist_ok=True)
            text = str(case[f"in.frame{number}.camera_text"])
            (Path(folder) / "Cameras" / f"{number:08}_cam.txt").write_text(text)
        pairs = Pairs([Dtu64(folder)], part="all", order=None, seed=case.settings["seed"], as_released=True)
        place, views = pairs.draw(0, count)
        assert [numbers[v] for v in views] == case["out.frames_drawn"].tolist()
        check_item(case, "out.", pairs, place, views, size)


CASES = {"data_blendedmvs": check_blendedmvs, "data_dtu64": check_dtu64}
