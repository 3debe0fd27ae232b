"""The demo's photographs and its comparison with the truth."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lean3r.cli.main import main
from lean3r.data.world.showroom import phone_photos
from lean3r.eval.reconstruction import compare, network_depth
from lean3r.inputs.pictures import Pictures
from lean3r.types import PointCloud, Reconstruction


def test_photos_carry_the_focal_length_and_the_truth_scores_perfectly(tmp_path: Path) -> None:
    truth = phone_photos(tmp_path, seed=2, height=96, width=128)
    views = Pictures(tmp_path).views(resolution=80, patch=16)
    assert [source.name for source in views.sources] == [f"IMG_{i:04d}.jpg" for i in range(1, 9)]
    for source, camera in zip(views.sources, truth.intrinsics[0], strict=True):
        assert source.focal_px == pytest.approx(float(camera[0, 0]), rel=0.05)

    count, _, height, width = views.images.shape[1:]
    nothing = np.zeros((0, 3), np.float32)
    to_network = []
    for source, camera in zip(views.sources, truth.intrinsics[0].double().numpy(), strict=True):
        sx, sy, ox, oy = source.original_from_network
        to_network.append(np.linalg.inv([[sx, 0, ox], [0, sy, oy], [0, 0, 1]]) @ camera)
    empty = np.zeros((count, height, width), np.float32)
    scene = Reconstruction(
        sources=views.sources,
        images=np.zeros((count, height, width, 3), np.uint8),
        mask=np.ones((count, height, width), bool),
        depth=empty,
        conf=empty,
        cam_from_world=truth.cam_from_world[0].double().numpy(),
        intrinsics=np.stack(to_network),
        points=PointCloud(
            nothing, nothing.astype(np.uint8), nothing[:, 0], nothing[:, 0].astype(int), nothing[:, :2], nothing
        ),
    )
    depth = network_depth(scene, 3.0 * truth.depth[0].numpy())
    assert depth.shape == empty.shape and torch.from_numpy(depth).isfinite().all()
    perfect = compare(Reconstruction(**{**vars(scene), "depth": depth}), truth)
    assert perfect["rotation"].startswith("0.0 degrees") and perfect["direction of motion"].startswith("0.0 degrees")
    assert perfect["pose AUC at 5, 15, 30"] == "100, 100, 100 of 100"
    assert perfect["depth"].startswith("0.0 %") and perfect["focal length"].startswith("0.0 %")


def test_own_photos(photos: Path, weights: Path, tmp_path: Path, capsys) -> None:
    arguments = ["demo", "--out", str(tmp_path), "--weights", str(weights), "--photos"]
    assert main([*arguments, str(photos)]) == 0
    assert (tmp_path / "own" / "scene.glb").is_file() and (tmp_path / "own" / "preview.jpg").is_file()
    assert capsys.readouterr().out == f"{tmp_path / 'own'}\n"
    assert main([*arguments, str(tmp_path / "nowhere")]) == 3


def test_the_demo_overwrites_only_earlier_demos(weights: Path, tmp_path: Path, monkeypatch) -> None:
    def photographed(directory: Path, views: int, *, seed: int) -> None:
        for view in range(views):
            shutil.copy(photo, directory / f"IMG_{view + 1:04d}.jpg")

    photo = tmp_path / "one.jpg"
    Image.effect_noise((120, 90), 64).convert("RGB").save(photo)
    monkeypatch.setattr("lean3r.data.world.showroom.phone_photos", photographed)
    monkeypatch.setattr("lean3r.eval.reconstruction.compare", lambda *_: {"nothing": "compared"})
    mine = tmp_path / "out" / "photos" / "IMG_0001.jpg"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    arguments = ["demo", "--out", str(tmp_path / "out"), "--weights", str(weights)]
    assert main(arguments) == 2 and mine.read_text() == "mine" and len(list(mine.parent.iterdir())) == 1
    mine.rename(mine.parent.parent / "mine.jpg")
    assert main(arguments) == main(arguments) == 0
    assert (tmp_path / "out" / "mine.jpg").exists() and len(list(mine.parent.iterdir())) == 9
