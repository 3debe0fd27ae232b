"""A result without evidence starts with a warning; a result with evidence gives no false warning."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lean3r
from lean3r.cli.main import main
from lean3r.inputs.frames import FrameChoice
from lean3r.options import PointOptions

SIZE = (320, 240)
UNREFINED = {"not-refined": []}  # the consequence of pictures without evidence


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return lean3r.load("nano")


@pytest.fixture(scope="module")
def fountain(data_dir: Path) -> list[Image.Image]:
    """Five pictures of one scene."""
    paths = sorted((data_dir / "scenes" / "fountain_p11" / "images").iterdir())[2:7]
    return [Image.open(path).convert("RGB") for path in paths]


def write_pictures(folder: Path, images: list[Image.Image]) -> Path:
    folder.mkdir()
    for index, image in enumerate(images):
        image.save(folder / f"p{index}.png")
    return folder


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*SIZE[::-1], 3), np.uint8))


def plain(value: int) -> Image.Image:
    return Image.new("RGB", SIZE, (value, value, value))


def rotate_view(image: Image.Image, yaw_rad: float, focal_px: float = 350.0) -> Image.Image:
    """A distant picture as seen by a camera that rotates in place."""
    y, x = np.meshgrid(np.arange(SIZE[1]) + 0.5, np.arange(SIZE[0]) + 0.5, indexing="ij")
    rays = np.stack([(x - SIZE[0] / 2) / focal_px, (y - SIZE[1] / 2) / focal_px, np.ones_like(x)], axis=-1)
    c, s = np.cos(yaw_rad), np.sin(yaw_rad)
    rays = rays @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]).T
    pixels = np.asarray(image, np.float32)
    xy = rays[..., :2] / rays[..., 2:] * 450 + [image.width / 2, image.height / 2]
    col, row = np.floor(xy - 0.5).astype(int).transpose(2, 0, 1)
    fx, fy = (xy - 0.5 - np.floor(xy - 0.5))[..., None].transpose(2, 0, 1, 3)
    rows, cols = ([(v + step).clip(0, n - 1) for step in (0, 1)] for v, n in ((row, image.height), (col, image.width)))
    at = [pixels[r, c] for r in rows for c in cols]
    mixed = (at[0] * (1 - fx) + at[1] * fx) * (1 - fy) + (at[2] * (1 - fx) + at[3] * fx) * fy
    return Image.fromarray(mixed.round().astype(np.uint8))


def codes(scene) -> dict[str, list[str]]:
    return {told["code"]: told["views"] for told in scene.info.get("warnings", [])}


@pytest.mark.parametrize("kind, code", [("black", "no-content"), ("white", "no-content"), ("noise", "noise")])
def test_pictures_without_content_give_no_points(model, tmp_path: Path, kind: str, code: str) -> None:
    images = [{"black": plain(0), "white": plain(255), "noise": noise(i)}[kind] for i in range(3)]
    scene = lean3r.reconstruct(model, write_pictures(tmp_path / "in", images))
    assert codes(scene) == UNREFINED | {code: ["p0.png", "p1.png", "p2.png"]}
    assert not len(scene.points.xyz) and not scene.depth.any() and not scene.conf.any()


def test_warnings_come_first_in_every_output(tmp_path: Path, capsys) -> None:
    folder = write_pictures(tmp_path / "in", [plain(0)] * 2)
    assert main(["reconstruct", str(folder), "-o", str(tmp_path / "out"), "--json"]) == 0
    out, err = capsys.readouterr()
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [told["code"] for told in manifest["warnings"]] == ["not-refined", "no-content"]
    assert json.loads(out)["warnings"] == manifest["warnings"]
    assert "warning: nothing can be seen in all 2 pictures" in err
    assert err.split("summary\n")[1].lstrip().startswith("warning") and "sift.cc" not in err


@pytest.mark.parametrize("refine", ["off", "auto"])
def test_one_bad_picture_costs_only_itself(model, fountain, tmp_path: Path, refine) -> None:
    bad = {"no-content": plain(9), "noise": noise(1)}
    scene = lean3r.reconstruct(model, write_pictures(tmp_path / "in", [*fountain, *bad.values()]), refine=refine)
    doubted = {} if refine == "off" else {"uncertain-views": ["p5.png", "p6.png"]}
    assert codes(scene) == doubted | {"no-content": ["p5.png"], "noise": ["p6.png"]}
    assert set(scene.points.view.tolist()) == set(range(5))


def test_identical_and_repeated_pictures(model, fountain, tmp_path: Path) -> None:
    scene = lean3r.reconstruct(model, write_pictures(tmp_path / "same", fountain[:1] * 3))
    assert codes(scene) == UNREFINED | {"identical-pictures": []} and len(scene.points.xyz)
    scene = lean3r.reconstruct(model, write_pictures(tmp_path / "again", [*fountain[:3], fountain[1]]), refine="off")
    assert codes(scene) == {"repeated-pictures": ["p3.png"]}


def test_pictures_that_share_nothing(model, data_dir: Path, fountain, tmp_path: Path) -> None:
    others = [next(iter(sorted((data_dir / "scenes" / s / "images").iterdir()))) for s in ("banana", "monstree")]
    foreign = [Image.open(path).convert("RGB") for path in others]
    scene = lean3r.reconstruct(model, write_pictures(tmp_path / "all", [fountain[0], *foreign]))
    assert codes(scene) == UNREFINED | {"views-disagree": [], "no-overlap": []}
    scene = lean3r.reconstruct(model, write_pictures(tmp_path / "one", [*fountain, foreign[0]]), refine="off")
    assert codes(scene) == {"no-overlap": ["p5.png"]} and set(scene.points.view.tolist()) == set(range(5))


@pytest.mark.parametrize("refine", ["off", "auto"])
def test_a_camera_that_rotates_in_place(model, data_dir: Path, tmp_path: Path, refine) -> None:
    path = next(iter(sorted((data_dir / "scenes" / "sceaux_castle" / "images").iterdir())))
    images = [rotate_view(Image.open(path).convert("RGB"), 0.1 * (step - 1.5)) for step in range(4)]
    kept = {} if refine == "off" else UNREFINED
    scene = lean3r.reconstruct(model, write_pictures(tmp_path / "in", images), refine=refine)
    assert codes(scene) == kept | {"no-parallax": []}


@pytest.mark.parametrize("name", ["brighton_beach_aerial", "monstree", "sceaux_castle", "office_dining_indoor"])
def test_real_scenes_give_no_warnings_of_overlap_or_parallax(model, data_dir: Path, name: str) -> None:
    scene = lean3r.reconstruct(
        model, data_dir / "scenes" / name / "images", frames=FrameChoice(max_views=7), refine="off"
    )
    # The network alone does not find its way through the office: its surfaces differ, and that is said.
    assert codes(scene) == ({"views-disagree": []} if name == "office_dining_indoor" else {})
    assert set(scene.points.view.tolist()) == set(range(7))


def test_sky_gives_no_points_unless_it_is_kept(model, data_dir: Path) -> None:
    folder = data_dir / "scenes" / "sceaux_castle" / "images"
    frames = FrameChoice(max_views=3)
    left_out, kept = (
        lean3r.reconstruct(model, folder, frames=frames, refine="off", points=PointOptions(keep_sky=k))
        for k in (False, True)
    )
    assert 0.15 < (left_out.depth == 0).mean() < 0.45 and (kept.depth > 0).all()
    assert left_out.info["sky"] == kept.info["sky"] and max(kept.info["sky"]) > 0.2
    assert len(left_out.points.xyz) < len(kept.points.xyz)
