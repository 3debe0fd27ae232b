"""Masks: which file belongs to which picture, how it is turned, and that nothing black reaches a result."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reading import load_views

import lean3r
from lean3r.cli.main import main
from lean3r.errors import InputError, UsageError
from lean3r.export import export
from lean3r.inputs.masks import Masks
from lean3r.inputs.pictures import Pictures
from lean3r.refine import RefineOptions
from lean3r.refine.features import COARSE, detect
from lean3r.refine.job import PICTURES, Group, Job, View
from lean3r.refine.kept import Kept
from lean3r.refine.pictures import write_masks
from lean3r.types import Source


def save(path: Path, values: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)


def found(folder: Path, *names: str) -> dict[str, str]:
    return {name: path.relative_to(folder).as_posix() for name, path in Masks.find(folder, names).files.items()}


def test_masks_are_found_by_colmaps_names_and_by_stems(tmp_path: Path) -> None:
    for name in (
        "a.jpg.png",
        "b.png",
        "sub/c.JPG.PNG",
        "left/d.jpg.png",
        "right/d.jpg.png",
        "clip_000010.png",
        "x.png",
    ):
        save(tmp_path / name, np.ones((4, 6), np.uint8))
    names = "a.jpg", "b.jpg", "c.JPG", "left/d.jpg", "right/d.jpg", "clip_000010.png", "whole.jpg"
    assert found(tmp_path, *names) == {
        "a.jpg": "a.jpg.png", "b.jpg": "b.png", "c.JPG": "sub/c.JPG.PNG", "left/d.jpg": "left/d.jpg.png",
        "right/d.jpg": "right/d.jpg.png", "clip_000010.png": "clip_000010.png",
    }  # fmt: skip


def test_ambiguous_masks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder of masks"):
        Masks.find(tmp_path / "missing", ["a.jpg"])
    with pytest.raises(InputError, match=r"expected a\.jpg\.png, found no \.png file"):
        Masks.find(tmp_path, ["a.jpg"])
    save(tmp_path / "a.png", np.ones((4, 6), np.uint8))
    with pytest.raises(InputError, match=r"expected b\.jpg\.png, found 1 \.png files, a\.png first"):
        Masks.find(tmp_path, ["b.jpg"])
    with pytest.raises(InputError, match=r"a\.png could be the mask of a\.jpg and of a\.tif"):
        Masks.find(tmp_path, ["a.jpg", "a.tif"])
    with pytest.raises(InputError, match="among the pictures"):
        Masks.find(tmp_path, ["a.jpg", "a.jpg.png"])
    for name in ("1/b.jpg.png", "2/b.jpg.png"):
        save(tmp_path / name, np.ones((4, 6), np.uint8))
    with pytest.raises(InputError, match="could both be the mask"):
        Masks.find(tmp_path, ["b.jpg"])


def test_folders_that_may_not_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.jpg.png", np.ones((4, 6), np.uint8))
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def guarded(path):
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    for folder in (tmp_path, tmp_path / "closed"):
        with pytest.raises(InputError, match=r"closed cannot be read \(Permission denied\)"):
            Masks.find(folder, ["a.jpg"])


def test_a_mask_has_the_shape_of_its_picture_and_can_be_read(tmp_path: Path) -> None:
    def read(width: int, height: int):
        return Masks.find(tmp_path, ["a.jpg"]).read(Source("a.jpg", width, height))

    save(tmp_path / "a.jpg.png", np.eye(30, 40, dtype=np.uint8))  # 1 is not black
    assert (read(4000, 3000) == np.eye(30, 40, dtype=bool)).all() and read(4001, 3000) is not None
    with pytest.raises(InputError, match=r"a\.jpg\.png has 40x30 pixels, a\.jpg has 400x400"):
        read(400, 400)
    save(tmp_path / "a.jpg.png", np.full((30, 40, 4), 99, np.uint8))
    with pytest.raises(InputError, match="transparent"):
        read(40, 30)
    (tmp_path / "a.jpg.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="cannot be read"):
        read(40, 30)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_follow_their_pictures_through_exif_crop_and_padding(tmp_path: Path, orientation: int) -> None:
    rng = np.random.default_rng(orientation)
    counts = np.kron(rng.random((9, 16)) < 0.6, np.ones((25, 25), bool))
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path / "photos" / "a.png", np.repeat(counts[..., None] * np.uint8(255), 3, 2), exif=exif)
    save(tmp_path / "photos" / "b.png", np.zeros((300, 200, 3), np.uint8))
    save(tmp_path / "masks" / "a.png.png", counts[::5, ::5] * np.uint8(255))
    views = load_views(tmp_path / "photos", resolution=128, patch=16).views
    assert views.mask is not None
    mask = views.mask[0].numpy()
    masks = Masks.find(tmp_path / "masks", [s.name for s in views.sources])
    of_network = masks.of_network(views.sources, mask)
    seen = views.images[0].mean(1).numpy() > 0.5  # the picture shows its own mask
    assert (of_network[0] == seen[0])[mask[0]].mean() > 0.93 and not of_network[0][~mask[0]].any()
    assert (of_network[1] == mask[1]).all()
    if orientation >= 5:  # it fits only the upright picture
        upright = Image.fromarray(masks.read(views.sources[0]))
        upright.save(tmp_path / "masks" / "a.png.png")
        assert (masks.of_network(views.sources, mask) == of_network).all()


def test_features_keep_out_of_masks(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (30, 40), np.uint8)
    picture = Image.fromarray(noise).resize((400, 300), Image.Resampling.BICUBIC)
    files = ["0/000000.bmp", "0/000001.bmp"]
    (tmp_path / PICTURES / "0").mkdir(parents=True)
    for file in files:
        picture.save(tmp_path / PICTURES / file)
    counts = np.zeros((300, 400), np.uint8)
    counts[:, :200] = 255
    save(tmp_path / "given" / "a.jpg.png", counts)
    sources = Source("a.jpg", 400, 300), Source("b.jpg", 400, 300)
    masks = Masks.find(tmp_path / "given", [s.name for s in sources])
    write_masks(masks, sources, RefineOptions().side, [tmp_path / "masks" / f"{file}.png" for file in files])
    pose = np.tile(np.eye(4), (2, 1, 1))
    group = Group(400, 300, "SIMPLE_PINHOLE", (400.0, 200.0, 150.0))
    views = tuple(View(0, 1.0, file) for file in files)
    job = Job(views, (group,), pose, np.ones((2, 4)), pose, np.zeros(2, bool), None, features=1000, threads=1)
    detect(job, tmp_path, tmp_path / "db", COARSE, Kept(job, tmp_path, COARSE))
    from lean3r.colmap_library import pycolmap

    with pycolmap.Database.open(tmp_path / "db") as opened:
        left, whole = (np.asarray(opened.read_keypoints(i))[:, 0] for i in (1, 2))
    assert len(left) > 50 and left.max() < 200 < whole.max()


def test_black_areas_have_no_depth_and_no_points(tmp_path: Path, data_dir: Path, capsys) -> None:
    photos = sorted((data_dir / "scenes" / "fountain_p11" / "images").iterdir())[3:6]
    counts = np.full((427, 640), 255, np.uint8)
    counts[:, 320:] = 0
    for photo in photos[:2]:
        save(tmp_path / "masks" / f"{photo.name}.png", counts)
    torch.set_num_threads(1)
    out = tmp_path / "out"
    command = ["reconstruct", *map(str, photos), "-o", str(out), "--masks", str(tmp_path / "masks"), "--mesh"]
    assert main(command) == 0
    assert "2 of 3 views have one" in capsys.readouterr().err
    manifest = json.loads((out / "manifest.json").read_text())
    used = manifest["masks"].pop("used")
    assert manifest["masks"] == {"folder": str(tmp_path / "masks"), "views": 2} and used == pytest.approx(0.5, abs=0.01)
    assert "masks" not in {warning["code"] for warning in manifest["warnings"]}
    assert manifest["refinement"]["status"] in ("refined", "fallback")
    with np.load(out / "predictions.npz") as stored:
        depth, conf, size = stored["depth"], stored["conf"], stored["depth"].shape[2]
    for view in (0, 1):
        assert (depth[view, :, size // 2 + 1 :] == 0).all() and (conf[view, :, size // 2 + 1 :] == 0).all()
        assert (depth[view, :, : size // 2 - 1] > 0).mean() > 0.9
    from lean3r.colmap_library import pycolmap

    model = pycolmap.Reconstruction(out / "sparse" / "0")
    for image in model.images.values():
        seen = [p.xy[0] for p in image.points2D if p.has_point3D()]
        assert seen and (image.name == photos[2].name or max(seen) < 322)


def test_masks_in_python(tmp_path: Path, data_dir: Path) -> None:
    """Those that leave hardly anything are told: white for what is to be left out made no camera certain, and none knew
    why."""
    photo = next(iter((data_dir / "scenes" / "fountain_p11" / "images").iterdir()))
    save(tmp_path / f"{photo.stem}.png", np.zeros((427, 640), np.uint8))
    model = lean3r.load("nano")
    scene = lean3r.reconstruct(model, photo, masks=tmp_path, refine="off")
    assert not scene.depth.any() and not len(scene.points.xyz)
    told = {warning["code"]: warning for warning in scene.info["warnings"]}
    assert scene.info["masks"]["used"] == 0 and told["masks"]["views"] == [photo.name]
    export(scene, tmp_path / "out")
    with pytest.raises(UsageError, match="no folder of masks"):
        lean3r.reconstruct(model, photo, masks=tmp_path / "none")


def test_frames_of_a_video_have_masks_by_the_names_of_their_views(tmp_path: Path, data_dir: Path) -> None:
    clip = data_dir / "bad_inputs" / "video" / "rotation_metadata_90.mp4"
    names = [s.name for s in load_views(clip, resolution=96, patch=16).views.sources]
    written = Pictures([clip]).write(names, tmp_path / "frames")
    width, height = Image.open(written[0]).size
    save(tmp_path / "masks" / names[0], np.zeros((height, width), np.uint8))
    scene = lean3r.reconstruct(lean3r.load("nano"), clip, masks=tmp_path / "masks", refine="off")
    assert not scene.depth[0].any() and scene.depth[1].any()
