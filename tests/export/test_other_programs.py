"""Files as other programs read them: COLMAP with lenses and tracks, splat trainers' folder, nerfstudio's transforms."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest
import trimesh
from PIL import Image, ImageCms

from export.scene import BOX, ROOM, cast, make_scene
from lean3r.errors import UsageError
from lean3r.export import EXPORTERS, ExportOptions, export
from lean3r.export.lenses import Camera, undistort_camera, written_names
from lean3r.export.tracks import sightings
from lean3r.geometry.fusion import fuse
from lean3r.geometry.lens import Optics, colmap_camera
from lean3r.inputs.cameras import read_given
from lean3r.inputs.pictures import Pictures
from lean3r.types import Lens, SparsePoints

SIZE = (320, 240)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LENSES = {
    "SIMPLE_RADIAL": (260.0, 161.0, 118.0, -0.11),
    "RADIAL": (260.0, 161.0, 118.0, -0.11, 0.02),
    "OPENCV": (260.0, 262.0, 161.0, 118.0, -0.11, 0.02, 0.002, -0.001),
    "OPENCV_FISHEYE": (260.0, 262.0, 161.0, 118.0, -0.05, 0.01, 0.002, -0.001),
    "FOV": (230.0, 231.0, 161.0, 118.0, 0.9),
}


def refined(model: str = "OPENCV", names=("b.jpg", "a.png", "c.heic.jpg"), shared: bool = True):
    """Three views of one lens (or three) with exact sparse points and measurements."""
    scene = make_scene(3, height=72, width=96, originals=[SIZE] * 3, names=list(names))
    params = LENSES[model]
    lenses = tuple(Lens(model, (params[0] + (0 if shared else v), *params[1:])) for v in range(3))
    xyz = scene.points.xyz[::50].astype(np.float64)
    optics = Optics(scene.sources, scene.intrinsics, lenses)
    point, view, xy = [], [], []
    for v in range(3):
        cam = xyz @ scene.cam_from_world[v, :3, :3].T + scene.cam_from_world[v, :3, 3]
        pixel = optics.project(v, cam) * (SIZE[0] / 96)
        seen = np.flatnonzero((pixel >= 0).all(1) & (pixel < SIZE).all(1))
        point.append(seen), view.append(np.full(len(seen), v)), xy.append(pixel[seen])
    point, view = np.concatenate(point).astype(np.int32), np.concatenate(view).astype(np.int32)
    colours = scene.points.rgb[::50]
    sparse = SparsePoints(xyz, colours, np.zeros(len(xyz)), point, view, np.concatenate(xy))
    return replace(scene, lenses=lenses, sparse=sparse, registration=("refined",) * 3)


def through_lenses(model: str):
    """The same with depth and points as the lenses see them, exactly."""
    scene = refined(model)
    optics = Optics.of(scene)
    shape = scene.depth.shape[1:]
    slopes = [optics.slopes(view, *shape) for view in range(3)]
    rays = [np.concatenate([s, np.ones((*shape, 1))], axis=-1) for s in slopes]
    depth, images = map(np.stack, zip(*map(cast, scene.cam_from_world, rays), strict=True))
    arrays = {"images": images, "depth": depth.astype(np.float32), "conf": (1 + 1 / depth).astype(np.float32)}
    fixed = {name: getattr(scene, name) for name in ("mask", "cam_from_world", "intrinsics")}
    return replace(scene, **arrays, points=fuse(**arrays, **fixed, conf_percentile=5, optics=optics))


def photos(scene, folder: Path) -> Pictures:
    """Pictures of the scene's names, in which red rises along x and green along y."""
    x, y = np.meshgrid(np.linspace(0, 255, SIZE[0]), np.linspace(0, 255, SIZE[1]))
    ramp = np.stack([x, y, 0 * x], axis=-1).astype(np.uint8)
    folder.mkdir()
    for name in scene.names:
        Image.fromarray(ramp).save(folder / name, quality=95, icc_profile=PROFILE)
    return Pictures([folder])


@pytest.mark.parametrize("model", LENSES)
def test_colmap_has_the_lens_and_the_measured_tracks(tmp_path, model):
    scene = refined(model)
    EXPORTERS.get("colmap")(scene, tmp_path, ExportOptions(colmap_points=0))
    found = pycolmap.Reconstruction(tmp_path / "sparse" / "0")
    assert found.num_cameras() == 1 and found.num_images() == 3
    camera = next(iter(found.cameras.values()))
    assert (camera.model.name, camera.width, camera.height) == (model, *SIZE)
    np.testing.assert_allclose(camera.params, LENSES[model])
    assert found.compute_mean_reprojection_error() < 1e-5
    seen = np.unique(scene.sparse.point)
    assert found.num_points3D() == len(seen) and found.compute_num_observations() == len(scene.sparse.point)
    views = json.loads(EXPORTERS.get("cameras")(scene, tmp_path, ExportOptions())[0].read_text())["views"]
    assert views[0]["lens"] == {"model": model, "params": list(LENSES[model])}


@pytest.mark.parametrize("model", LENSES)
def test_points_of_depth_lie_beside_the_triangulated_ones(tmp_path, model):
    scene = through_lenses(model)
    EXPORTERS.get("colmap")(scene, tmp_path / "sparse alone", ExportOptions(colmap_points=0))
    EXPORTERS.get("colmap")(scene, tmp_path / "both", ExportOptions(colmap_points=2000))
    alone, both = (pycolmap.Reconstruction(tmp_path / name / "sparse" / "0") for name in ("sparse alone", "both"))
    assert both.num_points3D() - alone.num_points3D() == 2000
    for number, point in alone.points3D.items():  # the first ones, as they were
        assert (both.points3D[number].xyz == point.xyz).all() and both.points3D[number].error == point.error
        places = [
            {(e.image_id, *m.images[e.image_id].points2D[e.point2D_idx].xy) for e in m.points3D[number].track.elements}
            for m in (alone, both)
        ]
        assert places[0] == places[1]
    dense = [both.points3D[number] for number in set(both.points3D) - set(alone.points3D)]
    views = [{e.image_id for e in point.track.elements} for point in dense]
    assert all(len(v) == point.track.length() >= 2 for v, point in zip(views, dense, strict=True))
    assert np.mean([len(v) == 3 for v in views]) > 0.5  # those that three views see come first
    assert np.mean([point.error for point in dense]) < 0.2 and np.median([point.error for point in dense]) < 0.02
    xyz = np.stack([point.xyz for point in dense])
    walls = np.minimum(np.abs(xyz - ROOM[0]), np.abs(xyz - ROOM[1])).min(axis=1)
    sides = np.minimum(np.abs(xyz - BOX[0]), np.abs(xyz - BOX[1])).min(axis=1)
    assert np.percentile(np.minimum(walls, sides), 95) < 0.01


@pytest.mark.parametrize("model", LENSES)
def test_a_sighting_is_where_that_views_own_depth_puts_the_point(model):
    """So reprojection errors show as parallax what depth maps disagree by; one view's depth is 0.6 % too large here."""
    scene = through_lenses(model)
    share = np.array([1, 1.006, 1])
    scene = replace(scene, depth=(scene.depth * share[:, None, None]).astype(np.float32))
    optics = Optics.of(scene)
    chosen = np.arange(0, len(scene.points.xyz), 3)
    seen = sightings(scene, chosen, 0.01)
    own_view, own_xy = scene.points.view[chosen][seen.point], scene.points.xy[chosen][seen.point]
    scale = SIZE[0] / 96
    for view in range(3):
        mine = np.flatnonzero((seen.view == view) & (own_view != view))
        assert len(mine) > 500
        camera, pose = colmap_camera(scene.lenses[view], *SIZE), scene.cam_from_world[view]
        slopes = np.asarray(camera.cam_from_img(seen.xy[mine] * scale))
        rays = np.concatenate([slopes, np.ones((len(mine), 1))], axis=1)
        world = (rays * cast(pose, rays[:, None])[0] * share[view] - pose[:3, 3]) @ pose[:3, :3]
        for other in {0, 1, 2} - {view}:
            of = own_view[mine] == other
            back = scene.cam_from_world[other]
            again = optics.project(other, world[of] @ back[:3, :3].T + back[:3, 3])
            assert np.median(np.linalg.norm(again - own_xy[mine[of]], axis=1)) < 0.02
        assert np.median(seen.along[mine]) == pytest.approx(1.006 if view == 1 else 1, abs=0.002)


def test_separate_lenses_stay_separate_and_refuse_a_shared_camera(tmp_path):
    scene = refined(shared=False)
    EXPORTERS.get("colmap")(scene, tmp_path, ExportOptions())
    assert pycolmap.Reconstruction(tmp_path / "sparse" / "0").num_cameras() == 3
    for name in ("colmap", "nerfstudio"):
        with pytest.raises(UsageError, match="the views have 3"):
            EXPORTERS.get(name)(scene, tmp_path / name, ExportOptions(shared_camera=True))


def test_double_measurements_and_points_without_any_are_left_out(tmp_path):
    scene = refined()
    s = scene.sparse
    doubled = replace(s, xyz=np.vstack([s.xyz, [[0, 0, 9]]]), rgb=np.vstack([s.rgb, [[1, 2, 3]]]),
                      error_px=np.zeros(len(s.xyz) + 1), point=np.append(s.point, s.point[0]),
                      view=np.append(s.view, s.view[0]), xy=np.vstack([s.xy, s.xy[:1] + 1]))  # fmt: skip
    EXPORTERS.get("colmap")(replace(scene, sparse=doubled), tmp_path, ExportOptions(colmap_points=0))
    found = pycolmap.Reconstruction(tmp_path / "sparse" / "0")
    assert found.compute_num_observations() == len(s.point)


@pytest.mark.parametrize("model", LENSES)
def test_undistorted_pictures_are_those_of_their_pinhole_cameras(tmp_path, model):
    scene = refined(model)
    options = ExportOptions(pictures=photos(scene, tmp_path / "photos"), undistort=True, colmap_points=0)
    out = export(scene, tmp_path / "out", "colmap,nerfstudio", options=options)
    found = pycolmap.Reconstruction(out / "sparse" / "0")
    camera = next(iter(found.cameras.values()))
    assert camera.model.name == "PINHOLE" and found.compute_mean_reprojection_error() < 1e-5
    assert sorted(p.name for p in (out / "images").iterdir()) == ["a.png", "b.jpg", "c_heic.jpg"]
    old = colmap_camera(scene.lenses[0], *SIZE)
    for name in ("a.png", "b.jpg", "c_heic.jpg"):
        with Image.open(out / "images" / name) as picture:
            assert picture.info["icc_profile"] == PROFILE
            pixels = np.asarray(picture.convert("RGB")).astype(float)
        assert pixels.shape == (camera.height, camera.width, 3)
        at = np.random.default_rng(0).integers([8, 8], [camera.width - 8, camera.height - 8], (200, 2))
        rays = np.asarray(camera.cam_from_img(at + 0.5))
        origin = np.asarray(old.img_from_cam(np.concatenate([rays, np.ones((200, 1))], axis=1)))
        expected = (origin - 0.5) / np.subtract(SIZE, 1) * 255
        assert np.abs(pixels[at[:, 1], at[:, 0], :2] - expected).max() < 6
        assert np.median(np.abs(pixels[at[:, 1], at[:, 0], :2] - expected)) < 1.5
    content = json.loads((out / "transforms.json").read_text())
    assert content["k1"] == content["p2"] == 0 and (content["w"], content["h"]) == (camera.width, camera.height)


@pytest.mark.parametrize("pinhole", [False, True])
def test_smaller_pictures_lie_beside_undistorted_ones(tmp_path, monkeypatch, pinhole):
    """As gsplat's parser goes about a factor: intrinsics are divided by it, sizes are whole parts, files one to one."""
    names = ("sub/b.jpg", "a.png", "c.JPG")
    scene = refined("SIMPLE_RADIAL", names=names)
    scene = replace(scene, lenses=(), sparse=None) if pinhole else scene
    (tmp_path / "photos").mkdir()
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8)).convert("RGB")
    picture = np.asarray(coarse.resize((SIZE[0] - 3, SIZE[1] - 1)))
    sources = tuple(replace(s, width=SIZE[0] - 3, height=SIZE[1] - 1) for s in scene.sources)
    scene = replace(scene, sources=sources)
    monkeypatch.setattr(Pictures, "read", lambda *_, **__: ((n, Image.fromarray(picture)) for n in names))
    options = ExportOptions(pictures=Pictures(picture), undistort=True, image_factors=(2, 8))
    out = export(scene, tmp_path / "out", "colmap", options=options)
    files = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert files == set(json.loads((out / "manifest.json").read_text())["files"])
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == ["images", "images_2", "images_8", "sparse"]
    camera = next(iter(pycolmap.Reconstruction(out / "sparse" / "0").cameras.values()))
    for factor in (2, 8):
        for name in ("sub_b.jpg", "a.png", "c.JPG"):  # nerfstudio drops folders from the names of smaller pictures
            with Image.open(out / "images" / name) as full, Image.open(out / f"images_{factor}" / name) as small:
                assert small.format == full.format and full.size == (camera.width, camera.height)
                assert small.size == (camera.width // factor, camera.height // factor)
                mine, other = np.asarray(small).astype(float), np.asarray(full).astype(float)
            rows, cols = mine.shape[:2]
            blocks = other[: rows * factor, : cols * factor].reshape(rows, factor, cols, factor, 3).mean((1, 3))
            assert np.abs(mine - blocks).mean() < (0.6 if name.endswith("png") else 2)
    export(scene, tmp_path / "none", "colmap", options=replace(options, image_factors=()))
    assert sorted(p.name for p in (tmp_path / "none").iterdir() if p.is_dir()) == ["images", "sparse"]


def test_undistorted_pictures_stay_apart_in_one_folder_and_as_png():
    """Trainers look for them by the last part of their names, convert them to PNG, and pair both by their order."""
    names = ["left/a.jpg", "right/a.jpg", "left_a.jpg", "b.jpg", "b.PNG", "B.heic", "clip 1/ü.tif", "b.new.JPG"]
    assert written_names(names, undistorted=False) == names
    flat = written_names(names, undistorted=True)
    assert flat == [
        "left_a.jpg", "right_a.jpg", "left_a_2.jpg", "b.jpg", "b_2.PNG", "B_3.png", "clip 1_ü.png", "b_new.JPG"
    ]  # fmt: skip
    as_png = {name: f"{Path(name).stem}.png" for name in flat}
    assert [as_png[name] for name in sorted(flat)] == sorted(as_png.values())


@pytest.mark.parametrize("factors", [(1,), (2, 2), (0,)])
def test_factors_of_pictures_are_whole_numbers_from_two(factors):
    with pytest.raises(UsageError, match="image_factors"):
        ExportOptions(image_factors=factors)


@pytest.mark.parametrize("model", LENSES)
def test_undistorted_sides_suit_every_factor_and_lose_the_same_on_either_side(model):
    lens = Camera(Lens(model, tuple(4 * p if p > 100 else p for p in LENSES[model])), 1283, 957)
    whole, cut = undistort_camera(lens), undistort_camera(lens, 8)
    assert cut.width % 8 == cut.height % 8 == 0
    assert 0 <= whole.width - cut.width < 8 and 0 <= whole.height - cut.height < 8
    middles = [np.subtract(c.lens.params[2:], [c.width / 2, c.height / 2]) for c in (whole, cut)]
    np.testing.assert_allclose(*middles, atol=1e-9)
    assert cut.lens.params[:2] == whole.lens.params[:2]


def test_undistorting_a_pinhole_changes_nothing(tmp_path):
    scene = make_scene(3, originals=[SIZE] * 3, names=["a.jpg", "b.jpg", "c.png"])
    originals = photos(scene, tmp_path / "photos")
    for undistort in (False, True):
        options = ExportOptions(pictures=originals, undistort=undistort)
        export(scene, tmp_path / f"{undistort}", "colmap", options=options)
    models = [pycolmap.Reconstruction(tmp_path / f"{u}" / "sparse" / "0") for u in (False, True)]
    assert [c.params.tolist() for c in models[0].cameras.values()] == [
        c.params.tolist() for c in models[1].cameras.values()
    ]
    with Image.open(tmp_path / "True" / "images" / "c.png") as a, Image.open(tmp_path / "photos" / "c.png") as b:
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def as_nerfstudio_reads(folder: Path) -> list[dict]:
    """Frames with what is fixed at the top of the file, as its data parser takes them: a value at the top wins, any
    distortion at the top hides those of the frames, and pictures must be where they are said to be."""
    content = json.loads((folder / "transforms.json").read_text())
    assert content["camera_model"] in {"OPENCV", "OPENCV_FISHEYE", "SIMPLE_PINHOLE", "PINHOLE"}
    distortion = ("k1", "k2", "k3", "k4", "p1", "p2")
    fixed = any(key in content for key in distortion)
    frames = []
    for frame in content["frames"]:
        found = {key: float(content.get(key, frame.get(key))) for key in ("fl_x", "fl_y", "cx", "cy", "w", "h")}
        found |= {key: float((content if fixed else frame).get(key, 0)) for key in distortion}
        with Image.open(folder / frame["file_path"]) as picture:
            assert picture.size == (found["w"], found["h"])
        pose = np.array(frame["transform_matrix"])
        assert pose.shape == (4, 4) and np.linalg.det(pose[:3, :3]) == pytest.approx(1)
        frames.append({**found, "name": Path(frame["file_path"]).name, "pose": pose})
    points = trimesh.load(folder / content["ply_file_path"])
    assert points.vertices.shape == points.colors[:, :3].shape
    assert "applied_transform" not in content and "applied_scale" not in content
    return frames


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("model", ["SIMPLE_RADIAL", "RADIAL", "OPENCV", "FOV"])
def test_nerfstudio_sees_points_where_they_were_measured(tmp_path, model, shared):
    scene = refined(model, shared=shared)
    options = ExportOptions(pictures=photos(scene, tmp_path / "photos"))
    out = export(scene, tmp_path / "out", "nerfstudio", options=options)
    for view, frame in enumerate(as_nerfstudio_reads(out)):
        assert frame["name"] == scene.names[view]
        mine = scene.sparse.view == view
        world = scene.sparse.xyz[scene.sparse.point[mine]]
        local = (world - frame["pose"][:3, 3]) @ frame["pose"][:3, :3]
        x, y = local[:, 0] / -local[:, 2], local[:, 1] / local[:, 2]  # y up, z backward
        r2 = x * x + y * y
        bend = 1 + frame["k1"] * r2 + frame["k2"] * r2**2
        if model == "FOV":  # of the angle, there
            angle = np.arctan(np.sqrt(r2))
            powers = [frame[f"k{i}"] * angle ** (2 * i) for i in range(1, 5)]
            bend = angle / np.sqrt(r2) * (1 + sum(powers))
        p1, p2 = frame["p1"], frame["p2"]
        u = frame["fl_x"] * (x * bend + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)) + frame["cx"]
        v = frame["fl_y"] * (y * bend + 2 * p2 * x * y + p1 * (r2 + 2 * y * y)) + frame["cy"]
        np.testing.assert_allclose(np.stack([u, v], 1), scene.sparse.xy[mine], atol=1e-6)


@pytest.mark.parametrize(
    ("formats", "asked", "said"),
    [
        ("colmap,nerfstudio", {"images": "always"}, 'images="always".*pictures=lean3r.Pictures'),
        ("colmap", {"undistort": True}, "undistort=True.*pictures=lean3r.Pictures"),
        ("ply", {"undistort": True}, "only with the formats colmap and nerfstudio"),
        ("colmap", {"pictures": "photos/"}, "expected the Pictures"),
    ],
)
def test_pictures_that_are_asked_for_must_be_passed(tmp_path, formats, asked, said):
    with pytest.raises(UsageError, match=said):
        export(refined(), tmp_path / "out", formats, options=ExportOptions(**asked))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("inputs", "names", "copied"),
    [
        (["left"], ["a.jpg", "b.jpg"], False),
        (["left/a.jpg", "left/b.jpg"], ["a.jpg", "b.jpg"], False),
        (["le*/*.jpg"], ["a.jpg", "b.jpg"], False),
        (["scene"], ["c.jpg"], False),  # in its images/
        (["left/a.jpg", "right/a.jpg"], ["left/a.jpg", "right/a.jpg"], False),
        (["left", "right"], ["left/a.jpg", "b.jpg", "right/a.jpg"], True),
        (["left/b.jpg", "scene"], ["b.jpg", "c.jpg"], True),
    ],
)
def test_pictures_that_no_single_folder_holds_under_their_names_are_written(tmp_path, inputs, names, copied):
    """COLMAP and trainers look for all of them below one folder."""
    for name in ("left/a.jpg", "left/b.jpg", "right/a.jpg", "scene/images/c.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(tmp_path / name)
    pictures = Pictures([tmp_path / name for name in inputs])
    assert list(pictures.names) == names
    sources = make_scene(len(names), originals=[(8, 6)] * len(names), names=names).sources
    assert (ExportOptions().with_pictures(pictures, {"beside"}, sources).pictures is pictures) == copied


def test_transforms_without_their_pictures_come_with_a_warning(tmp_path, caplog):
    scene, codes = refined(), []
    given = ExportOptions(pictures=photos(scene, tmp_path / "photos"))
    for number, options in enumerate([None, ExportOptions(images="never"), given]):
        out = export(scene, tmp_path / str(number), "nerfstudio,colmap", options=options)
        codes.append([w["code"] for w in json.loads((out / "manifest.json").read_text()).get("warnings", [])])
    assert codes == [["no-pictures"], [], []] and caplog.text.count("images/ is not written") == 1


def test_lean3r_reads_its_own_transforms(tmp_path):
    scene = refined("OPENCV")
    EXPORTERS.get("nerfstudio")(scene, tmp_path, ExportOptions())
    for camera, pose in zip(
        read_given(tmp_path / "transforms.json").match(scene.names), scene.cam_from_world, strict=True
    ):
        assert camera is not None
        np.testing.assert_allclose(camera.cam_from_world, pose, atol=1e-12)


def test_a_lens_that_nerfstudio_lacks_is_refused_unless_undistorted(tmp_path):
    full = Lens("FULL_OPENCV", (260.0, 262.0, 161.0, 118.0, -0.1, 0.02, 0, 0, 0, 0.01, 0, 0))
    scene = replace(refined(), lenses=(full,) * 3)
    with pytest.raises(UsageError, match="--undistort"):
        EXPORTERS.get("nerfstudio")(scene, tmp_path, ExportOptions())
    assert EXPORTERS.get("nerfstudio")(scene, tmp_path, ExportOptions(undistort=True))


@pytest.mark.parametrize("undistort", [False, True])
def test_splat_trainers_find_everything(tmp_path, undistort):
    """As gsplat's parser goes about it: names of the model sorted, files of images/ sorted, one to one."""
    scene = refined("SIMPLE_RADIAL", names=("z.jpg", "B.png", "a.jpg"))
    options = ExportOptions(pictures=photos(scene, tmp_path / "photos"), undistort=undistort)
    out = export(scene, tmp_path / "out", "colmap", options=options)
    model = pycolmap.Reconstruction(out / "sparse" / "0")
    assert sorted(image.name for image in model.images.values()) == sorted(p.name for p in (out / "images").iterdir())
    position = {point_id: i for i, point_id in enumerate(model.points3D)}
    for image in model.images.values():
        camera = model.cameras[image.camera_id]
        assert camera.model.name == ("PINHOLE" if undistort else "SIMPLE_RADIAL")
        with Image.open(out / "images" / image.name) as picture:
            assert picture.size == (camera.width, camera.height)
        index = np.array([position[p.point3D_id] for p in image.get_observation_points2D()])
        depth = np.array([p.xyz for p in model.points3D.values()])[index] @ image.cam_from_world().matrix()[2, :3]
        assert (depth + image.cam_from_world().matrix()[2, 3] > 0).all()
