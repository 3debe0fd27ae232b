"""Cameras that people have, from every form they come in; matching by name; what is refused."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pycolmap
import pytest
import torch
from export.scene import make_scene

from lean3r.errors import InputError, UsageError
from lean3r.export import ExportOptions, export, write_all
from lean3r.geometry.lens import colmap_camera
from lean3r.geometry.rotation import so3_exp
from lean3r.inputs.cameras import GivenCamera, GivenCameras, read_given, read_intrinsics
from lean3r.types import Lens

K = np.array([[900.0, 0, 480], [0, 910, 350], [0, 0, 1]])


def assert_same(given: GivenCameras, scene) -> None:
    assert [camera.name for camera in given.cameras] == list(scene.names)
    for camera, source, matrix, pose in zip(
        given.cameras, scene.sources, scene.original_intrinsics, scene.cam_from_world, strict=True
    ):
        assert (camera.width, camera.height) == (source.width, source.height)
        np.testing.assert_allclose(camera.intrinsics, matrix, rtol=1e-12)
        np.testing.assert_allclose(camera.cam_from_world, pose, atol=1e-12)


def transforms(scene, path: Path, **changes) -> Path:
    """The scene as nerfstudio writes it: camera-to-world, y up and z backwards."""
    frames = []
    for source, matrix, pose in zip(scene.sources, scene.original_intrinsics, scene.cam_from_world, strict=True):
        world_from_gl = np.linalg.inv(pose) @ np.diag([1.0, -1.0, -1.0, 1.0])
        frames.append(
            {
                "file_path": f"./images/{source.name}", "transform_matrix": world_from_gl.tolist(),
                "fl_x": matrix[0, 0], "fl_y": matrix[1, 1], "cx": matrix[0, 2], "cy": matrix[1, 2],
                "w": source.width, "h": source.height,
            }
            | changes
        )  # fmt: skip
    path.write_text(json.dumps({"camera_model": "OPENCV", "frames": frames}))
    return path


def test_our_own_results_and_colmap_models_come_back_exactly(tmp_path: Path) -> None:
    scene = make_scene(3, originals=[(4032, 3024), (1080, 1920), (800, 801)], height=96, width=96)
    out = export(scene, tmp_path / "out", ["cameras", "colmap"])
    assert_same(read_given(out), scene)
    assert_same(read_given(out / "cameras.json"), scene)
    assert_same(read_given(out / "sparse"), scene)
    text = tmp_path / "text"
    text.mkdir()
    pycolmap.Reconstruction(out / "sparse" / "0").write_text(text)
    for place in (out / "sparse" / "0", out / "sparse" / "0" / "images.bin", text, text / "cameras.txt"):
        assert_same(read_given(place), scene)
    assert not read_given(out).is_metric
    (out / "cameras.json").write_text((out / "cameras.json").read_text().replace('"relative"', '"metric"'))
    assert read_given(out).is_metric


@pytest.mark.parametrize("formats", [("cameras", "colmap"), ("cameras", "nerfstudio"), ("colmap",)])
def test_an_undistorted_result_gives_each_kind_of_picture_its_cameras(formats: tuple, tmp_path: Path) -> None:
    lens = Lens("SIMPLE_RADIAL", (3400.0, 2016.0, 1512.0, -0.02))
    scene = make_scene(3, originals=[(4032, 3024)] * 3)
    scene = replace(scene, lenses=(lens,) * 3, info={"config": {"undistort": True}}, scale="metric")
    write_all(scene, tmp_path, formats, ExportOptions(undistort=True))  # `export` would warp pictures, too
    given = read_given(tmp_path)
    after = given.kinds[-1].cameras[0]
    assert after.width is not None and after.height is not None
    size, names = (after.width, after.height), scene.names
    assert size != (4032, 3024) and abs(size[0] / size[1] * 3 / 4 - 1) < 0.01, "the shape does not tell"
    for pictures in (size, (size[0] // 8, size[1] // 8)):
        camera = given.for_sizes(names, [pictures] * 3).match(names)[0]
        assert camera is not None and camera.lens is not None and camera.lens.model == "PINHOLE"
        assert camera.cam_from_world is not None
    if "cameras" in formats:
        assert given.for_sizes(names, [(4032, 3024)] * 3).cameras[0].lens == lens
        assert given.for_sizes(names, [size] * 3).is_metric
    else:
        with pytest.raises(InputError, match=r"--undistort.*4032x3024"):
            given.for_sizes(names, [(4032, 3024)] * 3)
    with pytest.raises(InputError, match="--undistort"):
        given.for_sizes(names, [(2000, 1000)] * 3)
    if "cameras" in formats:
        with pytest.raises(InputError, match="both"):
            given.for_sizes(names, [(80, 60)] * 3)


def test_names_with_blanks_come_back_from_a_model_in_text(tmp_path: Path) -> None:
    names = ["My photo 1.jpg", "My photo 2.jpg", "left side/My photo 1.jpg"]
    export(make_scene(3), tmp_path, ["colmap"])
    model = pycolmap.Reconstruction(tmp_path / "sparse" / "0")
    for image_id, name in zip(sorted(model.images), names, strict=True):
        model.images[image_id].name = name
    text = tmp_path / "text"
    text.mkdir()
    model.write_text(text)
    assert [camera.name for camera in read_given(text).cameras] == names
    lines = (text / "images.txt").read_text().splitlines()
    heads = [line for line in lines if line.endswith(".jpg")]
    (text / "points3D.txt").write_text("")
    (text / "images.txt").write_text("\n\n".join(["# no points", *heads, ""]))
    assert [camera.name for camera in read_given(text).cameras] == names


def test_uncertain_views_of_our_own_results_have_no_pose(tmp_path: Path) -> None:
    scene = replace(make_scene(3), registration=("refined", "uncertain", "refined"))
    given = read_given(export(scene, tmp_path / "out", ["cameras"]))
    assert [camera.cam_from_world is None for camera in given.cameras] == [False, True, False]
    assert all(camera.intrinsics is not None for camera in given.cameras)


def test_nerfstudio(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scene = make_scene(3)
    given = read_given(transforms(scene, tmp_path / "transforms.json"))
    for camera, pose, matrix in zip(given.cameras, scene.cam_from_world, scene.original_intrinsics, strict=True):
        np.testing.assert_allclose(camera.cam_from_world, pose, atol=1e-9)
        np.testing.assert_allclose(camera.intrinsics, matrix)
    assert given.match(scene.names) == list(given.cameras) and not caplog.records
    assert [camera.lens for camera in given.cameras] == [None] * 3  # nothing is said of distortion
    for stated, model, more in (
        ({"k1": -0.1}, "OPENCV", (-0.1, 0, 0, 0)),
        ({"k1": -0.1, "p2": 0.01, "k3": 0.02}, "FULL_OPENCV", (-0.1, 0, 0, 0.01, 0.02, 0, 0, 0)),
        ({"k1": 0.0, "k2": 0.0}, "PINHOLE", ()),
        ({"camera_model": "PINHOLE"}, "PINHOLE", ()),
    ):
        lens = read_given(transforms(scene, tmp_path / "transforms.json", **stated)).cameras[0].lens
        assert lens is not None and lens.model == model and lens.params[4:] == more, stated
    with pytest.raises(InputError, match="OPENCV_FISHEYE, which is not supported"):
        read_given(transforms(scene, tmp_path / "transforms.json", camera_model="OPENCV_FISHEYE"))
    with pytest.raises(InputError, match=r"is OPENCV with k4 = 0\.1, which is not supported"):
        read_given(transforms(scene, tmp_path / "transforms.json", k4=0.1))
    angles = {"camera_angle_x": 0.7, "frames": [{"file_path": "./train/r_0", "transform_matrix": np.eye(4).tolist()}]}
    (tmp_path / "blender.json").write_text(json.dumps(angles))
    (only,) = read_given(tmp_path / "blender.json").cameras
    assert only.intrinsics is None and only.cam_from_world is not None
    assert GivenCameras((only,)).match(["r_0.png"]) == [only]


@pytest.mark.parametrize(("kind", "params"), [
    ("SIMPLE_RADIAL", [900, 480, 360, 0.1]),
    ("RADIAL", [900, 480, 360, 0.1, -0.05]),
    ("OPENCV", [900, 910, 480, 360, 0.1, -0.05, 0.01, 0.02]),
    ("FULL_OPENCV", [900, 910, 480, 360, 0.1, -0.05, 0.01, 0.02, 0.01, 0.02, 0.03, 0.04]),
    ("FOV", [900, 910, 480, 360, 0.9]),
    ("SIMPLE_DIVISION", [900, 480, 360, -0.1]),
    ("PINHOLE", [900, 910, 480, 360]),
])  # fmt: skip
def test_lenses_of_colmap_are_complete_and_follow_the_size(kind: str, params: list[float], tmp_path: Path) -> None:
    (camera,) = read_given(colmap(tmp_path, kind, params)).cameras
    assert camera.lens == Lens(kind, tuple(params))
    # The pinhole part is what the lens does near its axis, the scaled lens sees the same rays in a smaller picture.
    rays = np.array([[0.3, -0.2, 1], [1e-5, 1e-5, 1]])
    whole, half = (
        np.asarray(colmap_camera(lens, 1, 1).img_from_cam(rays))
        for lens in (camera.lens, camera.lens_of(480, 360))
        if lens is not None
    )
    np.testing.assert_allclose(half, whole / 2, rtol=1e-9)
    assert camera.intrinsics is not None
    np.testing.assert_allclose(whole[1], (camera.intrinsics @ rays[1])[:2], atol=1e-6)


def test_fisheyes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="which is not supported"):
        read_given(colmap(tmp_path, "OPENCV_FISHEYE", [900, 900, 480, 360, 0, 0, 0, 0]))


def test_other_models_beside_the_one_that_is_read_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for part in ("0", "1"):
        (tmp_path / "sparse" / part).mkdir(parents=True)
        colmap(tmp_path / "sparse" / part, "PINHOLE", [900, 900, 480, 360])
    read_given(tmp_path / "sparse" / "1")
    assert not caplog.text
    read_given(tmp_path)
    assert "0 is used, 1 not" in caplog.text


def colmap(folder: Path, kind: str, params: list[float]) -> Path:
    """A model of one picture a.jpg of 960 x 720 pixels."""
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(pycolmap.Camera(camera_id=1, model=kind, width=960, height=720, params=params))
    image = pycolmap.Image(name="a.jpg", keypoints=np.zeros((0, 2)), camera_id=1, image_id=1)
    model.add_image_with_trivial_frame(image, pycolmap.Rigid3d())
    model.write(folder)
    return folder


def test_a_lens_in_our_own_results_comes_back(tmp_path: Path) -> None:
    scene = make_scene(3)
    lenses = (Lens("OPENCV", (900.0, 901.0, 480.0, 350.0, 0.1, 0.0, 0.0, 0.01)),) * 3
    out = export(replace(scene, lenses=lenses), tmp_path / "out", ["cameras"])
    assert [camera.lens for camera in read_given(out).cameras] == list(lenses)


@pytest.mark.parametrize(("content", "lens"), [
    ({"fx": 900, "fy": 910, "cx": 480, "cy": 350}, None),
    ({"fx": 900, "fy": 910, "cx": 480, "cy": 350, "width": 960, "height": 720, "fps": 10, "frames": 200}, None),
    ({"fx": 900, "fy": 910, "cx": 480, "cy": 350, "k1": 0.1, "k2": 0.0, "p1": 0.0, "p2": 0.0}, "OPENCV"),
    ({"fx": 900, "fy": 910, "cx": 480, "cy": 350, "k1": 0.0, "k2": 0.0}, "PINHOLE"),
    ({"w": 960, "h": 720, "fl_x": 900, "fl_y": 910, "cx": 480, "cy": 350}, None),
    ({"w": 960, "h": 720, "fl_x": 900, "fl_y": 910, "cx": 480, "cy": 350, "frames": []}, None),
])  # fmt: skip
def test_intrinsics_alone_are_those_of_all_pictures(content: dict, lens: str | None, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps(content))
    first, second = read_given(tmp_path / "x.json").match(["a.jpg", "b.jpg"])
    assert first is not None and second is not None and first.cam_from_world is None
    assert (first.name, second.name, first.lens and first.lens.model) == ("a.jpg", "b.jpg", lens)
    np.testing.assert_array_equal(first.intrinsics, K)
    for given in ("900,910,480,350", (900, 910, 480, 350), str(tmp_path / "x.json"), tmp_path / "x.json"):
        np.testing.assert_array_equal(read_intrinsics(given).intrinsics, K)


def test_fields_of_view_give_both_focal_lengths(tmp_path: Path) -> None:
    (x, y) = (2 * np.arctan(size / 2 / focal) for size, focal in ((960, 900), (700, 910)))
    about = {"w": 960, "h": 700, "camera_angle_x": x, "camera_angle_y": y}
    (tmp_path / "x.json").write_text(json.dumps(about))
    np.testing.assert_allclose(read_intrinsics(tmp_path / "x.json").intrinsics, K)
    del about["camera_angle_y"]
    (tmp_path / "x.json").write_text(json.dumps(about))
    matrix = read_intrinsics(tmp_path / "x.json").intrinsics
    assert matrix is not None and matrix[1, 1] == matrix[0, 0]


def test_frames_without_poses_give_intrinsics(tmp_path: Path) -> None:
    path = transforms(make_scene(3), tmp_path / "transforms.json", transform_matrix=None)
    assert all(c.cam_from_world is None and c.intrinsics is not None for c in read_given(path).cameras)


@pytest.mark.parametrize("given", ["900,910,480", "900,910,480,x", "0,910,480,350", "nan,1,1,1", (1, 2, 3), "no.json"])
def test_invalid_intrinsics_are_refused(given: str | tuple) -> None:
    with pytest.raises(InputError):
        read_intrinsics(given)


def given(*names: str) -> GivenCameras:
    return GivenCameras(tuple(GivenCamera(name, 960, 720, K, np.eye(4)) for name in names), "x.json")


def test_rounded_rotations_keep_the_centre_far_from_the_origin() -> None:
    rotation, centre = so3_exp(torch.tensor([0.3, -1.1, 0.4]).double()).numpy(), np.array([5e5, 4e6, 100.0])
    for rounded in (rotation.astype(np.float32).astype(float), rotation.round(4)):
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = rounded, -rounded @ centre
        found = GivenCamera("a", cam_from_world=pose).cam_from_world
        assert found is not None
        np.testing.assert_allclose(found[:3, :3] @ found[:3, :3].T, np.eye(3), atol=1e-15)
        np.testing.assert_allclose(-found[:3, :3].T @ found[:3, 3], centre, atol=1e-6, rtol=0)
        np.testing.assert_allclose(found[:3, :3], rotation, atol=1e-4)
    exact = np.eye(4)
    exact[:3, :3] = rotation
    assert GivenCamera("a", cam_from_world=exact).cam_from_world is exact


def test_what_is_no_path_is_named() -> None:
    with pytest.raises(UsageError, match="got int as cameras; expected GivenCameras, or the path of"):
        read_given(cast(Any, 5))


def test_matching_by_the_ends_of_paths(caplog: pytest.LogCaptureFixture) -> None:
    found = given("images/a.jpg", "left/b.jpg", "right/b.jpg", "frame_3").match(["a.jpg", "right/b.jpg", "frame_3.png"])
    assert [camera.name for camera in found if camera] == ["images/a.jpg", "right/b.jpg", "frame_3"]
    with caplog.at_level(logging.INFO, "lean3r"):
        assert given("a.jpg", "z.jpg").match(["a.jpg", "b.jpg", "A.JPG"])[1:] == [None, None]
    assert "2 of 3 views have no camera in x.json: b.jpg, A.JPG" in caplog.text
    assert "1 cameras of x.json match no view: z.jpg" in caplog.text
    with pytest.raises(InputError, match=r"b\.jpg matches several cameras of x\.json: left/b\.jpg, right/b\.jpg"):
        given("left/b.jpg", "right/b.jpg").match(["b.jpg"])
    with pytest.raises(InputError, match=r"x\.json lists images/b\.jpg 2 times; leave one of them"):
        given("images/b.jpg", "a.jpg", "images/b.jpg").match(["b.jpg"])
    with pytest.raises(InputError, match=r"one camera b\.jpg for both left/b\.jpg and right/b\.jpg"):
        given("b.jpg").match(["left/b.jpg", "right/b.jpg"])
    with pytest.raises(InputError, match=r"Pictures: b\.jpg, c\.jpg; cameras: a\.jpg\. Rename one or the other"):
        given("a.jpg").match(["b.jpg", "c.jpg"])


def test_pictures_that_were_converted_keep_their_cameras() -> None:
    """HEIC to JPEG, or a picture in memory, which is called .png."""
    names = ["a.png", "photos/b.JPG", "c.jpg", "c.png", "d.txt"]
    found = given("images/a.HEIC", "b.jpg", "c.jpg", "d.jpg").match(names)
    assert [camera and camera.name for camera in found] == ["images/a.HEIC", "b.jpg", "c.jpg", None, None]
    with pytest.raises(InputError, match=r"a\.png matches several cameras of x\.json: a\.jpg, a\.webp"):
        given("a.jpg", "a.webp").match(["a.png"])


def test_intrinsics_follow_the_size_of_the_picture() -> None:
    camera = given("a.jpg").cameras[0]
    np.testing.assert_allclose(camera.intrinsics_of(480, 360), np.diag([0.5, 0.5, 1]) @ K)
    with pytest.raises(InputError, match=r"for 960x720 pixels, the picture has 720x960 \(turned"):
        camera.intrinsics_of(720, 960)
    with pytest.raises(InputError, match="cropped"):
        camera.intrinsics_of(700, 700)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "none of `views`"),
        ('{"views": []}', "holds no camera"),
        ('{"views": [{"K": [[1]], "name": "a"}]}', "lacks 'width'"),
        (
            '{"views": [{"name": "a", "width": 9, "height": 9, "K": [[1]]}]}',
            "intrinsics of a are not those",
        ),
        ('{"views": [{"name": "a", "cam_from_world": [[1, 2], [3, 4]]}]}', "pose of a is not a rotation"),
        ('{"views": [{"name": "a", "cam_from_world": [[1], [3, 4]]}]}', "in a form that lean3r cannot read"),
        ('{"views": 3}', "in a form that lean3r cannot read"),
        ('{"axes": "opengl", "views": []}', "expected opencv"),
        ('{"frames": [{"transform_matrix": []}]}', "lacks 'file_path'"),
        ('{"frames": [{"file_path": "a", "transform_matrix": [[0, 0, 0, 0]]}]}', "pose of a is not a rotation"),
    ],
)
def test_json_that_holds_no_cameras(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "cameras.json"
    path.write_text(content)
    with pytest.raises(InputError, match=said) as caught:
        read_given(path)
    assert "\n" not in str(caught.value)


def test_cameras_without_lenses_need_no_torch(tmp_path: Path) -> None:
    """It takes seconds to load, and a pose whose rotation is rounded had needed it."""
    pose = np.eye(4)
    pose[0, 1] = 5e-4
    path = tmp_path / "cameras.json"
    path.write_text(json.dumps({"views": [{"name": "a.jpg", "cam_from_world": pose.tolist()}]}))
    code = "import sys; from lean3r.inputs.cameras import read_given; assert read_given(sys.argv[1]).cameras"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules", str(path)], check=True)


def test_other_files_that_hold_no_cameras(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("hello")
    for place, said in (
        (tmp_path / "absent", "no such file"), (tmp_path, "holds no cameras"), (tmp_path / "x.txt", "holds no cameras"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            read_given(place)
    for name in ("cameras.bin", "images.bin", "points3D.bin"):
        (tmp_path / name).write_bytes(b"\x01\x02\x03")
    with pytest.raises(InputError, match="no readable COLMAP model"):
        read_given(tmp_path)
    with pytest.raises(InputError, match="pose of a is not a rotation"):
        GivenCamera("a", cam_from_world=np.diag([-1.0, 1, 1, 1]))
    assert ExportOptions().pictures is None
