"""`--model none`: known cameras in, depth from stereo alone out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lean3r
from lean3r.cli.main import main
from lean3r.data.base import SceneBatch
from lean3r.data.world.showroom import phone_photos
from lean3r.errors import UsageError
from lean3r.inputs.cameras import GivenCamera, GivenCameras, open_colmap

HEIGHT, WIDTH = 144, 192


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SceneBatch]:
    """Photos of a room, and what is true of it."""
    folder = tmp_path_factory.mktemp("photos")
    return folder, phone_photos(folder, 4, seed=1, height=HEIGHT, width=WIDTH)


def cameras(taken: tuple[Path, SceneBatch]) -> GivenCameras:
    """The true ones."""
    folder, truth = taken
    names = [path.name for path in sorted(folder.glob("*.jpg"))]
    poses, matrices = truth.cam_from_world[0].double().numpy(), truth.intrinsics[0].double().numpy()
    made = (GivenCamera(n, WIDTH, HEIGHT, k, pose) for n, k, pose in zip(names, matrices, poses, strict=True))
    return GivenCameras(tuple(made), "mine")


def test_a_folder_with_cameras_has_depth_without_a_network(taken: tuple[Path, SceneBatch]) -> None:
    given = cameras(taken)
    found = lean3r.reconstruct(lean3r.load("none"), taken[0], cameras=given, refine="off", dense="auto")
    np.testing.assert_array_equal(found.cam_from_world, [camera.cam_from_world for camera in given.cameras])
    assert found.info["stereo"]["status"] == "measured" and found.scale == "aligned" and len(found.points.xyz) > 1000
    rows, cols = ((np.arange(size) + 0.5) / size for size in found.depth.shape[1:])
    at = np.ix_((rows * HEIGHT).astype(int), (cols * WIDTH).astype(int))
    true = np.stack([depth[at] for depth in taken[1].depth[0].numpy()])
    known = (found.depth > 0) & (true > 0)
    assert known.mean() > 0.2 and np.median(np.abs(found.depth[known] / true[known] - 1)) < 0.01


def test_what_is_missing_is_said_by_name(taken: tuple[Path, SceneBatch]) -> None:
    model, given = lean3r.load("none"), cameras(taken)
    names = [camera.name for camera in given.cameras]
    bare = replace(given.cameras[1], intrinsics=None)
    partly = GivenCameras((given.cameras[0], bare, *given.cameras[3:]), "mine")
    with pytest.raises(UsageError, match=f"the intrinsics of {names[1]}, {names[2]}, and the pose of {names[2]}"):
        lean3r.reconstruct(model, taken[0], cameras=partly, dense="stereo")
    with pytest.raises(UsageError, match="give two or more"):
        lean3r.reconstruct(model, taken[0] / names[0], cameras=given, dense="stereo")
    with pytest.raises(UsageError, match="intrinsics and the pose of every view must be known"):
        lean3r.reconstruct(model, taken[0], dense="stereo")
    with pytest.raises(UsageError, match="has no network to predict depth"):
        lean3r.reconstruct(model, taken[0], cameras=given, dense="network")
    with pytest.raises(UsageError, match="leave --memory out"):
        lean3r.reconstruct(model, taken[0], cameras=given, dense="stereo", memory="4GB")
    with pytest.raises(UsageError, match="has no weights"):
        lean3r.load("none", "some.safetensors")
    of_network: dict[str, Any] = {"dtype": "float16", "compile": True, "cuda_graphs": True, "memory": "4GB"}
    for name, value in of_network.items():
        with pytest.raises(UsageError, match=f"has no network; leave {name} out"):
            lean3r.load("none", **{name: value})
    assert not lean3r.load("none", dtype="auto").SEES


@pytest.fixture
def command(taken: tuple[Path, SceneBatch], tmp_path: Path) -> list[str]:
    """A run without a network on the command line."""
    rows = [
        {"name": c.name, "width": WIDTH, "height": HEIGHT, "K": k.tolist(), "cam_from_world": pose.tolist()}
        for c in cameras(taken).cameras
        if (k := c.intrinsics) is not None and (pose := c.cam_from_world) is not None
    ]
    (tmp_path / "cameras.json").write_text(json.dumps({"views": rows}))
    given = ["--cameras", str(tmp_path / "cameras.json"), "--model", "none", "-o", str(tmp_path / "out")]
    return ["reconstruct", str(taken[0]), *given]


def test_on_the_command_line(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """With points from matches."""
    assert main([*command, "--dense", "stereo", "-f", "ply,depth"]) == 0
    said = capsys.readouterr().err
    assert "no network" in said and "stereo in " in said and "read by the network" not in said
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["model"] == "none" and manifest["stereo"]["share"] > 0.2


def test_cameras_and_points_without_depth(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([*command, "--dense", "off", "-f", "ply,depth"]) == 2
    assert "the format depth shows depth, which --dense off leaves out" in capsys.readouterr().err
    assert main([*command, "--dense", "off"]) == 0
    out = tmp_path / "out"
    assert not (out / "depth").exists() and (out / "scene.glb").is_file() and (out / "preview.jpg").is_file()
    with np.load(out / "predictions.npz") as arrays:
        assert not arrays["depth"].any() and not arrays["conf"].any()
    model = open_colmap(out / "sparse" / "0")
    points = [point.track.length() for point in model.points3D.values()]
    assert model.num_images() == 4 and len(points) > 20 and min(points) >= 2
    assert f"element vertex {len(points)}\n".encode() in (out / "points.ply").read_bytes()
