"""Known cameras from the file to the result: network pixels, what each model reads, the user's world, the manifest."""

from __future__ import annotations

import copy
import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts.tiny import tiny
from export.scene import make_scene
from PIL import Image

import lean3r
from lean3r.cli.main import main
from lean3r.errors import InputError, UsageError
from lean3r.geometry.align import Similarity
from lean3r.geometry.lens import pinhole_part
from lean3r.geometry.pose import make_pose
from lean3r.geometry.rotation import so3_exp
from lean3r.inputs.cameras import GivenCamera, GivenCameras, open_colmap
from lean3r.inputs.pictures import Pictures
from lean3r.options import PointOptions
from lean3r.pipeline.known import Given, known_record, place_in_world, with_cameras, with_resolution
from lean3r.pipeline.options import CameraOptions, Part
from lean3r.types import Known, Lens, Prediction, Views

SIZES = [(120, 90), (120, 90), (80, 120), (160, 64)]
NAMES = [f"{index}.png" for index in range(4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Landscape, portrait and wide pictures."""
    path = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, size in zip(NAMES, SIZES, strict=True):
        small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
        small.resize(size, Image.Resampling.BICUBIC).save(path / name)
    return path


def poses(views: int = 4, seed: int = 3, size: float = 7.0) -> torch.Tensor:
    turn, shift = torch.randn(2, views, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return make_pose(so3_exp(0.5 * turn), size * shift)


def cameras(count: int = 4, offset: float = 0.0, **changes) -> GivenCameras:
    """A camera for each of the first pictures; `offset` moves the world's origin away."""
    moved = poses() @ make_pose(torch.eye(3).double(), torch.full((3,), offset, dtype=torch.float64))
    made = []
    for name, (width, height), pose in zip(NAMES, SIZES, moved.numpy(), strict=True):
        k = np.array([[100.0, 0, width / 2 + 3], [0, 101, height / 2 - 2], [0, 0, 1]])
        made.append(GivenCamera(name, width, height, k, pose))
    return GivenCameras(tuple(made[:count]), "mine", **changes)


def reconstruct(name: str, folder: Path, given: GivenCameras | None, known: Part = "both", **options):
    model, points = tiny(name), PointOptions(max_points=500)
    known_cameras = CameraOptions(cameras=given, known=known if given else "both")
    return lean3r.reconstruct(
        model, folder, cameras=known_cameras, resolution=6 * model.patch, points=points, **options
    )


def test_intrinsics_follow_resize_crop_and_padding(folder: Path) -> None:
    views = Pictures(folder).views(resolution=84, patch=14)
    assert views.mask is not None
    known = with_cameras(views, views.sources, CameraOptions(cameras=cameras()))[0].known
    assert known is not None and known.intrinsics is not None and known.has_intrinsics is None
    for source, matrix, camera in zip(views.sources, known.intrinsics[0], cameras().cameras, strict=True):
        np.testing.assert_allclose(source.original_intrinsics(matrix.numpy()), camera.intrinsics, rtol=1e-5)
    some, given = with_cameras(views, views.sources, CameraOptions(cameras=cameras(2), known="poses"))
    assert some.known is not None and some.known.intrinsics is None and given is not None
    assert some.known.has_pose is not None and some.known.has_pose.tolist() == [[True, True, False, False]]
    with pytest.raises(InputError, match="mine holds no intrinsics of these pictures"):
        bare = GivenCameras((GivenCamera("0.png", cam_from_world=np.eye(4)),), "mine")
        with_cameras(views, views.sources, CameraOptions(cameras=bare, known="intrinsics"))


def make_moved_cameras() -> tuple[Prediction, Given, Similarity]:
    """A prediction that is the given world through a similarity, and the similarity that brings it back."""
    back = Similarity(
        torch.tensor(2.5).double(), so3_exp(torch.tensor([0.3, -1.0, 0.4]).double()), torch.ones(3).double()
    )
    there = back.inverse().apply_to_poses(poses())
    depth = torch.rand(1, 4, 5, 6) + 1
    eye = torch.eye(3).expand(1, 4, 3, 3)
    return Prediction(there[None], eye, depth, depth), known([True] * 4), back


def known(has_pose: list[bool], has_intrinsics: tuple[bool, ...] = (False,) * 4, is_metric: bool = False) -> Given:
    """The true poses, and one pinhole, of the views that have them."""
    k = torch.tensor([[9.0, 0, 3], [0, 8, 2], [0, 0, 1]]).double().expand(4, 3, 3)
    return Given(poses(), torch.tensor(has_pose), k, torch.tensor(has_intrinsics), (None,) * 4, is_metric)


@pytest.mark.parametrize("is_metric", [True, False])
def test_predicted_cameras_move_into_the_given_world(is_metric: bool) -> None:
    found, _, back = make_moved_cameras()
    placed, scale, *_ = place_in_world(found, known([True, False, True, True], is_metric=is_metric))
    assert scale == ("metric" if is_metric else "aligned")
    torch.testing.assert_close(placed.cam_from_world[0], poses(), atol=1e-6, rtol=0)
    torch.testing.assert_close(placed.depth, found.depth * back.scale.float())


def test_a_small_scene_far_from_the_origin_has_the_given_scale() -> None:
    """Cameras a metre apart, in map coordinates."""
    found, _, back = make_moved_cameras()
    given = known([True, True, True, True])
    moved = given.cam_from_world.clone()
    moved[:, :3, 3] -= moved[:, :3, :3] @ torch.tensor([5e5, 5.4e6, 100.0]).double()
    placed, scale, *_ = place_in_world(found, replace(given, cam_from_world=moved))
    assert scale == "aligned" and torch.equal(placed.cam_from_world[0], moved)
    torch.testing.assert_close(placed.depth, found.depth * back.scale.float(), rtol=1e-4, atol=0)


def test_given_cameras_stay_exact_whatever_was_predicted() -> None:
    found, _, _ = make_moved_cameras()
    given = known([True, True, True, False], (True, True, False, True))
    noisy = Prediction(found.cam_from_world + 0.01, found.intrinsics, found.depth, found.conf, is_metric=True)
    placed, scale, *_ = place_in_world(noisy, given)
    assert scale == "aligned" and not placed.is_metric
    assert torch.equal(placed.cam_from_world[0, :3], poses()[:3])
    assert not torch.equal(placed.cam_from_world[0, 3], poses()[3])
    assert torch.equal(placed.intrinsics[0, 0], given.intrinsics[0])
    assert torch.equal(placed.intrinsics[0, 2], torch.eye(3).double())


def test_poses_in_one_place_set_the_frame_only() -> None:
    found, _, _ = make_moved_cameras()
    placed, scale, *_ = place_in_world(found, known([False, True, False, False]))
    assert scale == "relative" and torch.equal(placed.cam_from_world[0, 1], poses()[1])
    torch.testing.assert_close(placed.depth, found.depth)
    relative = placed.cam_from_world[0] @ torch.linalg.inv(placed.cam_from_world[0, 0])
    torch.testing.assert_close(relative, found.cam_from_world[0] @ torch.linalg.inv(found.cam_from_world[0, 0]))


READS = {
    "da3-small": {"intrinsics", "cam_from_world"},
    "da3nested-giant-large": {"intrinsics", "cam_from_world"},
    "pi3x": {"intrinsics", "cam_from_world"},
    "da3metric-large": {"intrinsics"},
    "vggt": set(),
    "pi3": set(),
    "nano": set(),
}


@pytest.mark.parametrize("name", READS)
def test_each_model_reports_which_parts_it_reads(name: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lean3r"):
        scene = reconstruct(name, folder, cameras())
    told = scene.info["known"]
    assert set(told["read"]) == READS[name] and told["views"] == {"intrinsics": 4, "cam_from_world": 4}
    for part in ("intrinsics", "cam_from_world"):
        assert told["used"][part] == ["read by the network"] * (part in READS[name]) + ["those of the result"]
    lines = [r.getMessage() for r in caplog.records if "does not read" in r.getMessage()]
    unread = " and ".join(
        t for p, t in {"intrinsics": "intrinsics", "cam_from_world": "poses"}.items() if p not in READS[name]
    )
    assert lines == ([f"the network of {tiny(name).name} does not read the known {unread}"] if unread else [])
    np.testing.assert_array_equal(scene.cam_from_world, poses().numpy())
    expected = [camera.intrinsics for camera in cameras().cameras]
    np.testing.assert_allclose(scene.original_intrinsics, expected, rtol=1e-12)
    assert scene.scale == "aligned"
    assert scene.info["stereo"]["status"] == "kept" and scene.info["config"]["depth_size"] is None
    assert (scene.depth[scene.mask] > 0).all()


@pytest.mark.parametrize("name", ["da3-small", "pi3x"])
def test_worlds_far_from_their_origin_give_the_same_depth(name: str, folder: Path) -> None:
    near, far = (reconstruct(name, folder, cameras(offset=offset)) for offset in (0.0, 4e6))
    np.testing.assert_allclose(far.depth, near.depth, rtol=2e-3)
    assert far.scale == near.scale == "aligned"


@pytest.mark.parametrize(("offset", "is_told"), [(0.0, False), (4e3, False), (4e7, True)])
def test_points_coarser_than_pixels_are_told(folder: Path, offset: float, is_told: bool) -> None:
    """Points are float32: the farther from the origin, the coarser."""
    scene = reconstruct("da3-small", folder, cameras(offset=offset), refine="off", dense="network")
    codes = [warning["code"] for warning in scene.info.get("warnings", [])]
    assert ("far-origin" in codes) is is_told


def test_a_stray_point_is_not_told_as_a_far_origin() -> None:
    scene = make_scene(3)
    xyz = scene.points.xyz.copy()
    xyz[0] = 1e9
    stray = replace(scene, points=replace(scene.points, xyz=xyz))
    assert "warnings" not in with_resolution(stray).info


def test_depth_anything_3_reads_cameras_only_if_all_are_known(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    scene = reconstruct("da3-small", folder, cameras(3))
    assert "3.png" in caplog.text and "1 of 4 views have no camera in mine" in caplog.text
    assert (
        "does not read the known intrinsics and poses (it takes intrinsics and poses together and for all"
        in caplog.text
    )
    told = scene.info["known"]
    assert told["views"] == {"intrinsics": 3, "cam_from_world": 3} and told["read"] == []
    plain = reconstruct("da3-small", folder, None)
    np.testing.assert_allclose(scene.intrinsics[3], plain.intrinsics[3])
    assert scene.scale == "aligned" and plain.scale == "relative", "moved into the given world all the same"
    caplog.clear()
    assert reconstruct("da3-small", folder, cameras(), known="poses").info["known"]["read"] == []
    assert "does not read the known poses (it takes" in caplog.text


def test_pi3x_reads_cameras_of_some_views_but_no_single_pose(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    scene = reconstruct("pi3x", folder, cameras(2))
    np.testing.assert_array_equal(scene.cam_from_world[:2], poses()[:2].numpy())
    assert scene.info["known"]["read"] == ["cam_from_world", "intrinsics"] and "does not read" not in caplog.text
    alone = reconstruct("pi3x", folder, cameras(1))
    assert alone.info["known"]["read"] == ["intrinsics"] and alone.scale == "metric"
    assert "pi3x does not read the known poses (too few views)" in caplog.text


def test_intrinsics_change_what_the_network_says(folder: Path) -> None:
    plain, given = (reconstruct("pi3x", folder, c, known="intrinsics") for c in (None, cameras()))
    assert given.scale == "metric" and not np.allclose(plain.depth, given.depth, rtol=1e-3)


def test_views_that_know_their_cameras_are_placed_too() -> None:
    model = tiny("da3-small")
    k = torch.tensor([[50.0, 0, 28], [0, 50, 28], [0, 0, 1]]).expand(1, 4, 3, 3)
    views = Views(torch.rand(1, 4, 3, 56, 56), known=Known(k, poses()[None].float()))
    scene = lean3r.reconstruct(model, views)
    assert scene.scale == "aligned"
    np.testing.assert_allclose(scene.cam_from_world, poses().numpy(), rtol=1e-6)


def test_metres_reach_the_manifest(folder: Path, tmp_path: Path) -> None:
    def stated(name: str, pictures: Path) -> str:
        scene = reconstruct(name, pictures, None)
        out = lean3r.export(scene, tmp_path / name, ["cameras"], overwrite=True)
        written = json.loads((out / "manifest.json").read_text())["scale"]
        assert json.loads((out / "cameras.json").read_text())["scale"] == written == scene.scale
        return written

    assert stated("pi3x", folder) == "metric"
    assert stated("da3nested-giant-large", folder) in ("metric", "relative")
    assert stated("pi3", folder) == stated("vggt", folder) == stated("da3metric-large", folder) == "relative"
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 28
    (tmp_path / "phone").mkdir()
    Image.open(folder / "0.png").save(tmp_path / "phone" / "a.jpg", exif=exif)
    assert stated("da3metric-large", tmp_path / "phone") == "metric"


@pytest.mark.parametrize("name", ["vggt", "da3-small", "da3nested-giant-large"])
def test_the_requested_reference_view_is_used(name: str, folder: Path) -> None:
    model = copy.deepcopy(tiny(name))
    for key, parameter in model.named_parameters():
        if key.endswith("_token"):  # those of the first and of the other views start out alike
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))

    def depth(choice: int | str, order: tuple[int, ...] = (0, 1, 2, 3)) -> np.ndarray:
        files = Pictures(folder).views(resolution=6 * model.patch, patch=model.patch)
        views = replace(files, images=files.images[:, order], mask=None, sources=())
        return lean3r.reconstruct(model, views, reference_view=choice).depth

    second = depth(2)
    np.testing.assert_array_equal(depth("middle"), second)
    first, turned = depth("first"), depth("first", (2, 0, 1, 3))[[1, 2, 0, 3]]
    np.testing.assert_allclose(turned, second, rtol=1e-4)
    assert np.abs(first / second - 1).max() > 10 * np.abs(turned / second - 1).max()
    if name == "vggt":
        np.testing.assert_array_equal(first, depth("auto"))
    with pytest.raises(UsageError, match="reference view 4 of 4 views; expected 0 to 3"):
        depth(4)


@pytest.mark.parametrize("name", ["nano", "pi3", "pi3x", "da3mono-large"])
def test_models_without_a_reference_view_refuse_the_choice(name: str, folder: Path) -> None:
    with pytest.raises(UsageError, match="has no reference view; it treats all views alike"):
        reconstruct(name, folder, None, reference_view="first")
    with pytest.raises(UsageError, match="has no reference view"):
        tiny(name)(Views(torch.rand(1, 2, 3, 64, 64)), reference=0)


def test_cameras_on_the_command_line(folder: Path, weights: Path, tmp_path: Path, capsys) -> None:
    command = ["reconstruct", str(folder), "--weights", str(weights), "--resolution", "96", "-f", "cameras", "-o"]
    first, second = tmp_path / "first", tmp_path / "second"
    assert main([*command, str(first)]) == 0
    (first / "cameras.json").write_text((first / "cameras.json").read_text().replace("4.png", "5.png"))
    assert main([*command, str(second), "--cameras", str(first), "--known", "poses"]) == 0
    said = capsys.readouterr().err
    assert "does not read" not in said and "known poses of 4 views: those of the result\n" in said
    manifest = json.loads((second / "manifest.json").read_text())
    used = {"cam_from_world": ["those of the result"]}
    assert manifest["scale"] == "aligned"
    assert manifest["known"] == {"views": {"cam_from_world": 4}, "read": [], "used": used}
    before, after = (json.loads((out / "cameras.json").read_text())["views"] for out in (first, second))
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(a["cam_from_world"], b["cam_from_world"], atol=1e-4)


@pytest.mark.parametrize(("arguments", "code", "says"), [
    (["--cameras", "nowhere.json"], 3, "no such file or folder: nowhere.json"),
    (["--known", "poses"], 2, "--known poses selects parts of --cameras"),
    (["--reference-view", "first"], 2, "nano has no reference view"),
    (["--reference-view", "sideways"], 2, "expected an index, auto, first, middle"),
    (["--offline", "--weights", "hf:no-such-owner/no-such-model"], 6, "offline mode forbids a download"),
])  # fmt: skip
def test_bad_use(arguments, code, says, folder: Path, weights: Path, tmp_path: Path, capsys) -> None:
    command = ["reconstruct", str(folder), "-o", str(tmp_path / "out"), "--weights", str(weights), "-q"]
    assert main([*command, *arguments]) == code
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1 and not (tmp_path / "out").exists()


def test_cameras_that_a_format_cannot_hold_are_refused_before_the_network_runs(
    folder: Path, weights: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr("lean3r.pipeline.predicted.predict", None)
    command = ["reconstruct", str(folder), "-o", str(tmp_path / "out"), "--weights", str(weights), "-q"]
    assert main([*command, "-f", "colmap", "--shared-camera"]) == 2
    assert "one shared camera needs pictures of one size" in capsys.readouterr().err
    lens = {"model": "DIVISION", "params": [90.0, 90.0, 60.0, 45.0, -0.1]}
    views = [{"name": name, "width": 120, "height": 90, "lens": lens, "K": np.eye(3).tolist()} for name in NAMES[:2]]
    (tmp_path / "cameras.json").write_text(json.dumps({"views": views}))
    assert main([*command, "-f", "nerfstudio", "--cameras", str(tmp_path / "cameras.json")]) == 2
    assert "nerfstudio has no lens model DIVISION" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_lenses_reach_every_file_without_refinement(folder: Path, weights: Path, tmp_path: Path) -> None:
    """A model with distortion for three of four pictures: its lens is in cameras.json, npz, COLMAP and nerfstudio."""
    lens = Lens("OPENCV", (100.0, 101.0, 60.0, 45.0, -0.1, 0.02, 0.001, -0.002))
    views = [{"name": name, "width": 120, "height": 90, "K": pinhole_part(lens).tolist()} for name in NAMES[:2]]
    for view, pose in zip(views, poses().tolist(), strict=False):
        view |= {"lens": {"model": lens.model, "params": lens.params}, "cam_from_world": pose}
    (tmp_path / "cameras.json").write_text(json.dumps({"views": views}))
    out = tmp_path / "out"
    command = ["reconstruct", *(str(folder / name) for name in NAMES), "--weights", str(weights), "--resolution", "96"]
    command += ["--refine", "off", "--cameras", str(tmp_path / "cameras.json"), "-o", str(out), "-q"]
    assert main([*command, "-f", "cameras,npz,colmap,nerfstudio"]) == 0
    written = json.loads((out / "cameras.json").read_text())["views"]
    assert [view["lens"]["model"] for view in written] == ["OPENCV", "OPENCV", "PINHOLE", "PINHOLE"]
    assert written[0]["lens"]["params"] == list(lens.params) and written[0]["cam_from_world"] == poses()[0].tolist()
    with np.load(out / "predictions.npz") as arrays:
        np.testing.assert_array_equal(arrays["lens_params"][1], lens.params)
    model = open_colmap(out / "sparse" / "0")
    cameras_of = {image.name: model.cameras[image.camera_id] for image in model.images.values()}
    assert cameras_of["0.png"].model.name == "OPENCV" and tuple(cameras_of["0.png"].params) == lens.params
    frames = json.loads((out / "transforms.json").read_text())["frames"]
    assert [frames[0][key] for key in ("k1", "k2", "p1", "p2")] == list(lens.params[4:])
    manifest = json.loads((out / "manifest.json").read_text())
    assert [view["registration"] for view in manifest["views"]] == ["given", "given", "predicted", "predicted"]
    assert manifest["known"]["views"] == {"intrinsics": 2, "distortion": 2, "cam_from_world": 2}
    command[command.index("-o") + 1] = str(tmp_path / "straight")
    assert main([*command, "-f", "colmap", "--undistort"]) == 0
    straight = open_colmap(tmp_path / "straight" / "sparse" / "0")
    assert {camera.model.name for camera in straight.cameras.values()} == {"PINHOLE"}


def test_one_set_of_intrinsics_is_for_pictures_of_one_size(folder: Path, weights: Path, tmp_path: Path, capsys) -> None:
    command = ["reconstruct", "--weights", str(weights), "--resolution", "96", "-f", "cameras", "--refine", "off"]
    assert main([*command, str(folder), "-o", str(tmp_path / "a"), "--intrinsics", "100,101,60,45"]) == 3
    assert "the pictures have 3 sizes (80x120, 120x90, 160x64)" in capsys.readouterr().err
    alike = [str(folder / name) for name in NAMES[:2]]
    assert main([*command, *alike, "-o", str(tmp_path / "b"), "--intrinsics", "1000,1000,600,450"]) == 3
    assert "principal point (600, 450) of the intrinsics lies outside the pictures" in capsys.readouterr().err
    (tmp_path / "k.json").write_text(
        json.dumps({"fx": 1000, "fy": 1010, "cx": 600, "cy": 450, "width": 1200, "height": 900})
    )
    for given in ("100,101,60,45", str(tmp_path / "k.json")):
        assert main([*command, *alike, "-o", str(tmp_path / "c"), "--overwrite", "--intrinsics", given]) == 0
        view = json.loads((tmp_path / "c" / "cameras.json").read_text())["views"][1]
        np.testing.assert_allclose(view["K"], [[100, 0, 60], [0, 101, 45], [0, 0, 1]])


def test_quiet_models_say_nothing_without_cameras(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "lean3r"):
        reconstruct("vggt", folder, None)
    assert not [r for r in caplog.records if "known" in r.getMessage()]


def test_a_stated_pinhole_counts_as_no_distortion() -> None:
    straight = Lens("PINHOLE", (100.0, 101.0, 60.0, 45.0))
    bent = Lens("OPENCV", (100.0, 101.0, 60.0, 45.0, -0.1, 0.0, 0.0, 0.0))
    unbent = Lens("OPENCV", (100.0, 101.0, 60.0, 45.0, 0.0, 0.0, 0.0, 0.0))
    has, eye = torch.ones(4, dtype=torch.bool), torch.eye(4).expand(4, 4, 4)
    given = Given(eye, ~has, eye[:, :3, :3], has, (straight, bent, unbent, None))
    known = Known(intrinsics=torch.eye(3).expand(1, 4, 3, 3))
    assert known_record(known, given, frozenset())["views"] == {"intrinsics": 4, "distortion": 1}
