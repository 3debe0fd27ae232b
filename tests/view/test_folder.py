"""Results of any state can be shown as far as they go, with a line for what is missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from export.scene import make_scene
from PIL import Image

from lean3r.errors import InputError
from lean3r.export import ExportOptions, export
from lean3r.export.ply import ply_bytes
from lean3r.inputs.pictures import Pictures
from lean3r.types import Lens
from lean3r.view import html
from lean3r.view.compare import packages_of
from lean3r.view.content import Content, of_scene
from lean3r.view.folder import read_content
from lean3r.view.packing import Package
from view.conftest import FORMATS, small_scene


@pytest.fixture
def copy(result: Path, tmp_path: Path) -> Path:
    """The result again, to be changed."""
    return Path(shutil.copytree(result, tmp_path / "copy"))


def change(path: Path, by: Callable[[dict], object]) -> None:
    """Change a JSON file."""
    content = json.loads(path.read_text())
    by(content)
    path.write_text(json.dumps(content))


def shown(content: Content) -> dict:
    """The header of its page, which must be JSON without NaN; every part is there."""
    package = Package(content, in_one_file=True)
    assert all(isinstance(package.part(name), bytes) for name in package.names())
    return json.loads(json.dumps(package.header, allow_nan=False))


def test_a_folder_says_what_the_scene_did(result: Path) -> None:
    scene = small_scene()
    ours, theirs = read_content(result), of_scene(scene)
    assert ours.notes == () and [c.registration for c in ours.cameras] == list(scene.registration)
    assert np.array_equal(ours.points.view, scene.points.view), "each point knows its view again"
    assert np.array_equal(ours.points.xyz, theirs.points.xyz)
    for a, b in zip(ours.cameras, theirs.cameras, strict=True):
        assert np.allclose(a.rays, b.rays) and np.allclose(a.pose, b.pose) and np.isclose(a.footprint, b.footprint)
    assert np.array_equal(ours.album.depth(1), theirs.album.depth(1))
    assert ours.album.photo(1, 99).size == theirs.album.photo(1, 99).size


@pytest.mark.parametrize("keys", [("registration", "uncertain"), ("lens",)])
def test_a_result_of_an_older_version(copy: Path, keys: tuple[str, ...]) -> None:
    change(copy / "manifest.json", lambda about: about.update(layout_version=0, lean3r="0.0.1"))
    change(copy / "cameras.json", lambda about: [view.pop(key, 0) for view in about["views"] for key in keys])
    content = read_content(copy)
    assert "layout 0 (lean3r 0.0.1)" in content.notes[0] and len(shown(content)["cameras"]) == 4


@pytest.mark.parametrize(
    ("gone", "said", "cameras"),
    [
        (["manifest.json"], "manifest.json is missing", 4),
        (["predictions.npz"], "Missing files: predictions.npz", 4),
        (["cameras.json"], "Missing files: cameras.json", 4),
        (["points.ply"], "points.ply is missing", 4),
        (["cameras.json", "predictions.npz"], "Missing files: cameras.json, predictions.npz", 0),
        (["manifest.json", "predictions.npz", "points.ply", "images"], "pictures were not found", 4),
    ],
)
def test_a_half_deleted_result(copy: Path, gone: list[str], said: str, cameras: int) -> None:
    for name in gone:
        shutil.rmtree(copy / name) if (copy / name).is_dir() else (copy / name).unlink()
    content = read_content(copy)
    assert any(said in note for note in content.notes) and len(content.cameras) == cameras
    header = shown(content)
    assert bool(header["points"]["count"]) == ("points.ply" not in gone)


@pytest.mark.parametrize("formats", [["html"], ["html", "mesh"]])
def test_the_page_of_a_run_has_its_mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, formats: list[str]) -> None:
    made: list[Package] = []
    monkeypatch.setattr(html, "Package", lambda *a, **k: made.append(Package(*a, **k)) or made[-1])
    export(make_scene(3), tmp_path / "out", formats)
    assert bool(made[0].header["mesh"]) == ("mesh" in formats)


def test_some_pictures_are_missing(copy: Path) -> None:
    (copy / "images" / "IMG_001.jpg").unlink()
    notes = read_content(copy).notes
    assert "1 of 4 pictures were not found (IMG_001.jpg). Say with --stored where they are now." in notes


@pytest.mark.parametrize(
    "name", ["manifest.json", "predictions.npz", "cameras.json", "points.ply", "images/IMG_001.jpg"]
)
@pytest.mark.parametrize("share", [0.0, 0.6])
def test_files_that_are_cut_off(copy: Path, name: str, share: float) -> None:
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: int(share * len(content))])
    shown(read_content(copy))


@pytest.mark.parametrize("damage", [{"width": 0}, {"K": [[0, 0, 9], [0, 90, 9], [0, 0, 1]]}], ids=["size", "focal"])
def test_cameras_that_are_none_leave_the_cloud(copy: Path, damage: dict[str, object]) -> None:
    change(copy / "cameras.json", lambda about: about["views"][1].update(damage))
    content = read_content(copy)
    assert len(content.points) > 1000 and "IMG_001.jpg has no size or no focal length" in " ".join(content.notes)
    json.dumps(Package(content).header, allow_nan=False)


def test_cameras_in_formats_that_are_not_read_are_told(copy: Path) -> None:
    about = json.loads((copy / "manifest.json").read_text())
    for name in ("cameras.json", "predictions.npz"):
        (copy / name).unlink()
        about["files"].remove(name)
    (copy / "manifest.json").write_text(json.dumps(about))
    notes = read_content(copy).notes
    assert "Cameras are in neither cameras.json nor predictions.npz: add cameras to --format." in notes


@pytest.mark.parametrize("formats", ["colmap", "nerfstudio", "colmap,nerfstudio"])
@pytest.mark.parametrize("undistort", [False, True])
def test_files_for_other_programs_are_shown(tmp_path: Path, formats: str, undistort: bool) -> None:
    scene = small_scene(4, names=["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg"])
    for name, image in zip(scene.names, scene.images, strict=True):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "photos" / name)
    scene = replace(scene, lenses=(Lens("RADIAL", (300.0, 48.0, 36.0, -0.2, 0.02)),) * 4)
    options = ExportOptions(undistort=undistort, pictures=Pictures([tmp_path / "photos" / n for n in scene.names]))
    content = read_content(export(scene, tmp_path / "out", formats, options=options))
    assert [camera.registration for camera in content.cameras] == ["refined", "fallback", "predicted"]  # the certain
    for camera, pose in zip(content.cameras, scene.cam_from_world[:3], strict=True):
        np.testing.assert_allclose(camera.pose, pose, atol=1e-9)
    assert len(content.points) > 100 and content.album.photo(2, 50) is not None
    assert len(shown(content)["cameras"]) == 3 and not any("add cameras" in note for note in content.notes)


def test_a_damaged_model_is_told(tmp_path: Path) -> None:
    out = export(small_scene(), tmp_path / "out", "colmap,ply")
    (out / "sparse" / "0" / "images.bin").write_bytes(b"damaged")
    content = read_content(out)
    assert len(content.points) and any("holds no readable COLMAP model" in note for note in content.notes)


def test_cameras_of_other_programs_that_are_not_whole_are_left_out(tmp_path: Path) -> None:
    """Those of Blender's data sets state an angle, and neither a size nor a focal length in pixels."""
    frames = [{"file_path": f"./train/r_{n}", "transform_matrix": np.eye(4).tolist()} for n in range(2)]
    whole = frames[1] | {"w": 96, "h": 72, "fl_x": 90.0, "cx": 48, "cy": 36}
    for last, count in ((frames[1], 0), (whole, 1)):
        (tmp_path / "transforms.json").write_text(json.dumps({"camera_angle_x": 0.7, "frames": [frames[0], last]}))
        (tmp_path / "points.ply").write_bytes(ply_bytes(np.eye(3, dtype=np.float32), np.zeros((3, 3), np.uint8)))
        assert len(read_content(tmp_path).cameras) == count


def test_nothing_to_show(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        read_content(tmp_path / "none")
    with pytest.raises(InputError, match="neither cameras nor points"):
        read_content(tmp_path)


def test_one_view_and_no_depth(tmp_path: Path) -> None:
    assert shown(read_content(export(small_scene(1), tmp_path / "one", FORMATS)))["points"]["hasViews"]
    scene = small_scene(2)
    nothing = np.zeros_like(scene.depth)
    cameras = read_content(export(replace(scene, depth=nothing, conf=nothing), tmp_path / "flat", FORMATS))
    assert cameras.album.depth(0) is None or not cameras.album.depth(0).any()
    assert shown(cameras)["points"]["hasViews"] is False


@pytest.mark.parametrize("factor", [1e-25, 1e25])
def test_absurd_extents(tmp_path: Path, factor: float) -> None:
    scene = small_scene()
    poses = scene.cam_from_world.copy()
    poses[:, :3, 3] *= factor
    points = replace(scene.points, xyz=(scene.points.xyz * np.float32(factor)).astype(np.float32))
    points.xyz[0] = 3e38
    depth = (scene.depth * np.float32(factor)).astype(np.float32)
    content = of_scene(replace(scene, points=points, cam_from_world=poses, depth=depth))
    header = shown(content)
    assert header["unit"] == pytest.approx(shown(of_scene(scene))["unit"] * factor, rel=0.05)
    assert np.abs(header["home"]["sample"]).max() < 10
    assert all(np.abs(camera["pose"]).max() < 10 for camera in header["cameras"])


def test_a_stream_that_runs_follows_its_keyframes(copy: Path) -> None:
    (copy / "predictions.npz").unlink()
    shutil.rmtree(copy / "images")
    (copy / "stream.json").write_text("{}")
    (copy / "keyframes").mkdir()
    change(copy / "manifest.json", lambda about: about.update(is_complete=False, files=["manifest.json"]))
    scene = small_scene()
    for view, source in enumerate(scene.sources):
        np.savez(
            copy / "keyframes" / f"{Path(source.name).stem}.npz", depth=scene.depth[view], conf=scene.conf[view],
            image=scene.images[view], original_from_network=np.array(source.original_from_network),
        )  # fmt: skip
    content = read_content(copy)
    assert not content.is_done and "not complete: 4 keyframes so far" in content.notes[-1]
    assert content.album.photo(2, 99) is not None and content.album.conf(2).any()
    shown(content)
    names = [f'{Path(source.name).stem} "IMG_{view + 1:03}.jpg"\n' for view, source in enumerate(scene.sources)]
    (copy / "names.txt").write_text("".join(names)[:-5])  # one is being written
    album = read_content(copy).album
    assert album.photo(2, 99) == content.album.photo(1, 99) and album.photo(0, 99) is None, "by the names in that file"


def test_pictures_that_were_added_are_those_of_their_own_folder(tmp_path: Path) -> None:
    """The scene's first folder has others of their names, which were not taken."""
    names = ["a.png", "b.png", "a~2.png"]
    for folder, name, value in [
        ("photos", "a.png", 10),
        ("photos", "b.png", 20),
        ("more", "b.png", 200),
        ("more", "a.png", 100),
    ]:
        (tmp_path / folder).mkdir(exist_ok=True)
        Image.fromarray(np.full((72, 96, 3), value, np.uint8)).save(tmp_path / folder / name)
    scene = make_scene(3, originals=[(96, 72)] * 3, names=names)
    info = {**scene.info, "config": {**scene.info["config"], "inputs": [str(tmp_path / "photos")]}}
    out = export(replace(scene, info=info), tmp_path / "out", FORMATS)
    added = [{"inputs": [str(tmp_path / "more")], "views": {"b.png": "b.png", "a~2.png": "a.png"}}]
    change(out / "manifest.json", lambda about: about.update(added=added))

    def seen(*stored: str) -> list[int | None]:
        album = read_content(out, [tmp_path / folder for folder in stored]).album
        photos = [album.photo(view, 96) for view in range(3)]
        return [None if photo is None else photo.getpixel((9, 9))[0] for photo in photos]

    assert seen() == [10, 200, 100]
    (tmp_path / "more").rename(tmp_path / "moved")
    assert seen() == [10, None, None]
    assert seen("photos", "moved") == [None, None, None], "which of two is not known without memory.npz"
    (tmp_path / "moved" / "a.png").rename(tmp_path / "moved" / "c.png")
    assert seen("photos", "moved")[0] == 10


@pytest.mark.parametrize("views", [None, [0, 3, -1, 4, 2**31 - 1]])
def test_points_that_say_their_view_and_those_of_older_streams(copy: Path, views: list[int] | None) -> None:
    (copy / "predictions.npz").unlink()
    (copy / "stream.json").write_text("{}")
    xyz, rgb = np.random.default_rng(0).normal(size=(5, 3)), np.full((5, 3), 99, np.uint8)
    view = None if views is None else np.array(views, np.int32)
    (copy / "points.ply").write_bytes(ply_bytes(xyz, rgb, normals=0 * xyz, confidence=np.ones(5), view=view))
    content = read_content(copy)
    assert content.points.view.tolist() == ([-1] * 5 if views is None else [0, 3, -1, -1, -1])
    assert shown(content)["points"]["hasViews"] == (views is not None)


def test_pictures_elsewhere(copy: Path, tmp_path: Path) -> None:
    (copy / "images").rename(tmp_path / "moved")
    assert any("--stored" in note for note in read_content(copy).notes)
    content = read_content(copy, [tmp_path / "moved"])
    assert content.notes == () and content.album.photo(0, 50) is not None
    (tmp_path / "moved" / "IMG_000.jpg").rename(tmp_path / "moved" / "renamed.jpg")
    (note,) = read_content(copy, [tmp_path / "moved"]).notes
    assert note.endswith("moved (IMG_000.jpg). Their files must have these names.")


@pytest.mark.parametrize("kind", ["jpg", "webp"])
def test_undistorted_pictures_are_shown_as_their_lens_saw_them(tmp_path: Path, kind: str) -> None:
    """Whatever their kind is in images/."""
    scene = small_scene(2, names=[f"1.{kind}", f"2.{kind}"])
    x, y = np.meshgrid(np.linspace(0, 255, 960), np.linspace(0, 255, 720))
    ramp = np.stack([x, y, np.full_like(x, 99)], axis=-1).astype(np.uint8)
    for name in scene.names:
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(ramp).save(tmp_path / "photos" / name, quality=95)
    lenses = (Lens("RADIAL", (760.0, 480.0, 360.0, -0.2, 0.02)),) * 2
    options = ExportOptions(undistort=True, image_factors=(2, 4), pictures=Pictures(tmp_path / "photos"))
    out = export(replace(scene, lenses=lenses), tmp_path / "out", FORMATS + ",colmap", options=options)
    shutil.rmtree(tmp_path / "photos")  # as of a video, whose frames are in images/ only
    photo = read_content(out).album.photo(0, 240)
    assert photo is not None and photo.size == (240, 180)
    away = np.abs(np.asarray(photo).astype(int) - np.asarray(Image.fromarray(ramp).resize((240, 180))))
    assert away[20:-20, 20:-20].max() < 6


@pytest.mark.parametrize(
    ("inputs", "title"),
    [
        ([], "reconstruction"),
        (["/holiday/left"], "holiday/left"),
        (["/a/left", "/a/right"], "a/left, a/right"),
        ([f"/a/{number}.jpg" for number in range(9)], "a/0.jpg, a/1.jpg, a/2.jpg and 6 more"),
    ],
)
def test_a_scene_is_named_after_all_its_inputs(inputs: list[str], title: str) -> None:
    scene = make_scene(1)
    assert of_scene(replace(scene, info={"config": {"inputs": inputs}})).title == title


def test_an_undistorted_picture_is_not_that_of_an_uncertain_view_of_a_like_name(tmp_path: Path) -> None:
    scene = replace(small_scene(2, names=["a/1.jpg", "a_1.jpg"]), registration=("uncertain", "refined"))
    (tmp_path / "photos" / "a").mkdir(parents=True)
    for name, grey in zip(scene.names, (20, 200), strict=True):
        Image.new("RGB", (96, 72), (grey,) * 3).save(tmp_path / "photos" / name)
    pictures = Pictures([tmp_path / "photos" / "a_1.jpg"])
    options = ExportOptions(undistort=True, pictures=pictures)
    album = read_content(export(scene, tmp_path / "out", FORMATS + ",colmap", options=options)).album
    photo = album.photo(1, 50)
    assert album.photo(0, 50) is None and photo is not None and photo.getpixel((9, 9))[0] > 190


def test_undistorted_pictures_of_older_results_are_in_folders(tmp_path: Path) -> None:
    scene = small_scene(2, names=["a/1.jpg", "b/1.jpg"])
    for name in scene.names:
        (tmp_path / "photos" / name).parent.mkdir(parents=True)
        Image.new("RGB", (960, 720)).save(tmp_path / "photos" / name)
    pictures = Pictures([tmp_path / "photos" / name for name in scene.names])
    out = export(scene, tmp_path / "out", FORMATS, options=ExportOptions(images="never"))
    (out / "config.toml").write_text("undistort = true\n")
    pictures.write(pictures.names, out / "images")
    shutil.rmtree(tmp_path / "photos")
    content = read_content(out)
    assert all(content.album.photo(view, 50) for view in (0, 1)) and not any("--stored" in n for n in content.notes)


def test_names_lead_nowhere_else(copy: Path) -> None:
    secret = copy.parent / "secret.jpg"
    (copy / "images" / "IMG_000.jpg").rename(secret)
    change(copy / "cameras.json", lambda about: about["views"][0].update(name="../../secret.jpg"))
    assert read_content(copy).album.photo(0, 50) is None


def test_two_results_that_share_nothing_are_shown_each_by_itself(result: Path, tmp_path: Path) -> None:
    other = export(small_scene(2, names=["a.jpg", "b.jpg"]), tmp_path / "other", FORMATS)
    packages, text = packages_of([read_content(result), read_content(other)])
    assert "no two sure cameras in common" in text and [package.header["world"] for package in packages] == [0, 1]


def test_cameras_in_one_place_do_not_bring_two_results_together() -> None:
    scene = small_scene()
    turning = scene.cam_from_world.copy()
    turning[:, :3, 3] = 0
    packages, text = packages_of([of_scene(small_scene(cam_from_world=turning)), of_scene(scene)])
    assert "in one place, which tells no size" in text and packages[1].world == 1


def test_a_camera_that_is_wrong_in_one_result_does_not_move_the_whole() -> None:
    scene = make_scene(10)
    poses = scene.cam_from_world.copy()
    poses[:, :3, 3] *= 3
    poses[4, :3, 3] += (0, 0, 18)
    packages, text = packages_of([of_scene(scene), of_scene(replace(scene, cam_from_world=poses))])
    assert "9 of 10 cameras in common; these then differ by 0.0%" in text
    first, second = (package.frame for package in packages)
    np.testing.assert_allclose(second.place(3 * scene.points.xyz), first.place(scene.points.xyz), atol=1e-6)
