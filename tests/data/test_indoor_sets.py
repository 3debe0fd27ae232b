"""ETH3D, Tanks and Temples, 7-Scenes and NRGBD: variants of their formats, clouds, and half-downloaded copies."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from data import tiny
from data.test_sets_b import check_agreement
from data.tiny import eth3d, sevenscenes, tanks

from lean3r.data import DATASETS
from lean3r.data.sets.eth3d import Eth3d
from lean3r.data.sets.nrgbd import Nrgbd
from lean3r.data.sets.roots import report
from lean3r.data.sets.scenes import SceneSet, is_rotation
from lean3r.data.sets.sevenscenes import COLOUR_CAMERA, COLOUR_FROM_DEPTH, DEPTH_CAMERA, SevenScenes, seen_from_colour
from lean3r.data.sets.tanks import FOCAL, Tanks, inside_volume, moved, read_log
from lean3r.errors import InputError, UsageError
from lean3r.eval.runs.data import items_of
from lean3r.export.ply import ply_bytes

NAMES = ("eth3d", "tanks", "sevenscenes", "nrgbd")


def check_cloud(found: SceneSet, made: Sequence[tiny.TinyScene]) -> None:
    """The cloud of a scene is the surface that its views see, in the world of its cameras."""
    for scene, content in enumerate(made):
        cloud, surface = found.cloud(scene), eth3d.surface(content)
        assert cloud is not None and cloud.dtype == np.float64 and cloud.shape == surface.shape
        assert np.abs(np.sort(cloud, 0) - np.sort(surface, 0)).max() < 1e-5


def test_eth3d_undistorts_the_original_pictures(tmp_path: Path) -> None:
    eth3d.write_originals(tmp_path, tiny.scenes())
    found = Eth3d(tmp_path)
    assert found.problems(tmp_path) == [] and found.view_name(0, 1) == "DSC_0287"
    check_agreement(found)


def test_eth3d_has_its_scans_as_cloud(tmp_path: Path) -> None:
    made = tiny.write("eth3d", tmp_path)
    check_cloud(Eth3d(tmp_path), made)
    scans = tmp_path / "courtyard_0" / "dslr_scan_eval"
    (scans / "scan2.ply").unlink()
    assert any("scan2.ply is missing" in what for what in Eth3d.problems(tmp_path))
    with pytest.raises(InputError, match=r"scan2\.ply is missing"):
        Eth3d(tmp_path).cloud(0)
    for content in ("<MeshLabProject>", "<MeshLabProject/>", '<a><MLMesh filename="../../x.ply"/></a>'):
        (scans / "scan_alignment.mlp").write_text(content)
        with pytest.raises(InputError):
            Eth3d(tmp_path).cloud(0)
    shutil.rmtree(scans)
    assert Eth3d(tmp_path).cloud(0) is None
    # A square in the mesh of Depth Anything 3's benchmark.
    corners, faces = np.array([[0, 0, 5], [1, 0, 5], [1, 1, 5], [0, 1, 5.0]]), np.array([[0, 1, 2], [0, 2, 3]])
    (scans.parent / "combined_mesh.ply").write_bytes(ply_bytes(corners, np.zeros((4, 3), np.uint8), faces))
    cloud, again = Eth3d(tmp_path).cloud(0), Eth3d(tmp_path).cloud(0)
    assert cloud is not None and again is not None and cloud.shape == (1_000_000, 3)
    np.testing.assert_array_equal(cloud, again)
    np.testing.assert_allclose(cloud.mean(0), (0.5, 0.5, 5), atol=2e-3)


def test_eth3d_depth_needs_the_lens_of_the_original_pictures(tmp_path: Path) -> None:
    tiny.write("eth3d", tmp_path)
    place = tmp_path / "courtyard_0"
    path = place / "ground_truth_depth" / "dslr_images" / "DSC_0286.JPG"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InputError, match=r"DSC_0286\.JPG is damaged"):
        Eth3d(tmp_path).view(0, 0)
    path.unlink()
    assert not Eth3d(tmp_path).view(0, 0).depth.any() and Eth3d(tmp_path).view(0, 1).depth.any()
    assert any("1 of 6 files" in what and "DSC_0286.JPG" in what for what in Eth3d.problems(tmp_path))
    shutil.rmtree(place / "dslr_calibration_jpg")
    assert not Eth3d(tmp_path).view(0, 1).depth.any()
    assert any("depth is for the original pictures" in what for what in Eth3d.problems(tmp_path))


def test_tanks_clouds_are_cropped_to_the_scored_volume(tmp_path: Path) -> None:
    made, found = tiny.write("tanks", tmp_path), Tanks(tmp_path)
    surface, cloud = eth3d.surface(made[0]), found.cloud(0)
    left = surface[surface[:, 0] < np.median(surface[:, 0])]
    assert cloud is not None and found.is_metric and abs(len(cloud) - len(left)) < 0.01 * len(left)
    assert cloud[:, 0].max() <= np.median(surface[:, 0]) + 1e-5
    np.testing.assert_array_equal(found.in_volume(0, surface[:5]), surface[:5, 0] < np.median(surface[:, 0]))
    (tmp_path / "Barn" / "Barn.json").unlink()
    assert found.in_volume(0, surface).all()
    (tmp_path / "Barn" / "Barn_trans.txt").unlink()
    assert Tanks(tmp_path).cloud(0) is None and not Tanks(tmp_path).is_metric
    assert any("cannot be aligned" in what for what in Tanks.problems(tmp_path))


@pytest.mark.parametrize("pictures", [".", "image_sets"])
def test_tanks_with_pictures_and_poses_apart_say_what_to_copy_where(pictures: str, tmp_path: Path) -> None:
    """As the two downloads unpack: Barn/ with pictures, trainingdata/Barn/ with the rest."""
    tiny.write("tanks", tmp_path / "trainingdata", count=1)
    poses, own = tmp_path / "trainingdata" / "Barn", (tmp_path / pictures / "Barn").resolve()
    own.mkdir(parents=True)
    shutil.rmtree(poses / "sparse")
    for picture in poses.glob("*.jpg"):
        picture.rename(own / picture.name)
    with pytest.raises(InputError, match=re.escape(f"copy those of {own} to {poses / 'images'}")):
        items_of("tanks", {"tanks": poses.parent})
    with pytest.raises(InputError, match=re.escape(f"copy the files of {poses} to {own}")):
        items_of("tanks", {"tanks": own.parent})
    for path in poses.iterdir():
        shutil.copy(path, own)
    assert len(items_of("tanks", {"tanks": own.parent})) == 1


def test_tanks_without_a_model_take_the_usual_focal_length(tmp_path: Path) -> None:
    scene = tiny.scenes()[0]
    tanks.write_log(tmp_path / "Truck", scene)
    found, width = Tanks(tmp_path), scene.depth.shape[2]
    assert found.problems(tmp_path) == [] and found.scene(0).views == len(scene.images)  # one was not posed
    assert found.camera(0, 0).intrinsics[0, 0] == FOCAL * width
    assert Tanks(tmp_path, focal=0.5).camera(0, 0).intrinsics[1, 1] == 0.5 * width
    # Where pictures are missing, their names tell which pose is whose.
    (tmp_path / "Truck" / "000002.jpg").unlink()
    assert any("has 6 pictures, but" in what for what in Tanks.problems(tmp_path))
    found = Tanks(tmp_path)
    assert [found.view_name(0, v) for v in range(found.scene(0).views)] == [f"{n:06}" for n in (1, 3, 4, 5, 6)]
    np.testing.assert_allclose(found.camera(0, 1).cam_from_world, scene.cam_from_world[2], atol=1e-6)
    (tmp_path / "Truck" / "000003.jpg").rename(tmp_path / "Truck" / "left.jpg")
    with pytest.raises(InputError, match=r"names are not numbers"):
        Tanks(tmp_path).scene(0)


def test_tanks_without_a_log_have_the_poses_of_a_model(tmp_path: Path) -> None:
    made = tiny.write("tanks", tmp_path)
    for path in [*tmp_path.glob("*/*_COLMAP_SfM.log"), *tmp_path.glob("*/*_trans.txt")]:
        path.unlink()
    found = Tanks(tmp_path)
    assert found.scene(0).views == len(made[0].images) and found.cloud(0) is None
    np.testing.assert_allclose(found.camera(0, 2).cam_from_world, made[0].cam_from_world[2], atol=1e-9)


def test_tanks_files_as_published_are_read(data_dir: Path) -> None:
    folder = data_dir / "formats" / "tanks_and_temples"
    if not folder.is_dir():
        pytest.skip(f"no files of Tanks and Temples in {folder}")
    sampled = int((folder / "mapping.txt").read_text().split()[0])
    assert [pose.number for pose in read_log(folder / "test.log")] == list(range(sampled))
    poses, similarity = read_log(folder / "Barn_COLMAP_SfM.log"), np.loadtxt(folder / "Barn_trans.txt")
    assert [pose.number for pose in poses] == list(range(410))
    cameras = np.stack([moved(similarity, pose.world_from_cam) for pose in poses if pose.world_from_cam is not None])
    assert len(cameras) == 410 and all(is_rotation(camera[:3, :3]) for camera in cameras)
    # The barn is some ten metres wide, and all around it stand cameras that look at its volume, from outside.
    inside = inside_volume(folder / "Barn.json", cameras[:, :3, 3])
    assert not inside.any() and 10 < np.ptp(cameras[:, :2, 3], axis=0).min() < 100
    ahead = cameras[:, :3, 3, None] + cameras[:, :3, 2, None] * np.arange(1, 60)
    meets = inside_volume(folder / "Barn.json", ahead.transpose(0, 2, 1).reshape(-1, 3)).reshape(410, -1)
    assert meets.any(1).mean() > 0.95


def test_damaged_logs_and_volumes_are_named(tmp_path: Path) -> None:
    tiny.write("tanks", tmp_path)
    log = tmp_path / "Barn" / "Barn_COLMAP_SfM.log"
    log.write_text(log.read_text()[:-60])
    assert any("Barn_COLMAP_SfM.log is damaged" in what for what in Tanks.problems(tmp_path))
    (tmp_path / "Ignatius" / "Ignatius.json").write_text('{"orthogonal_axis": "W"}')
    with pytest.raises(InputError, match=r"Ignatius\.json is damaged"):
        Tanks(tmp_path).cloud(1)
    (tmp_path / "Ignatius" / "Ignatius_trans.txt").write_text("1 0 0 0 0 1 0 0 0 0 -1 0 0 0 0 1")
    with pytest.raises(InputError, match=r"Ignatius_trans\.txt is not a similarity"):
        Tanks(tmp_path).camera(1, 0)


def test_raw_depth_of_7_scenes_has_the_intrinsics_of_its_camera(tmp_path: Path) -> None:
    made = sevenscenes.write_raw(tmp_path, tiny.scenes())
    found = SevenScenes(tmp_path, depth="raw")
    view = found.view(0, 1)
    assert found.scene(0).views == len(made[0].images)
    np.testing.assert_array_equal(view.intrinsics, DEPTH_CAMERA)
    np.testing.assert_allclose(view.depth, made[0].depth[1], atol=6e-4)
    np.testing.assert_array_equal(SevenScenes(tmp_path).view(0, 1).intrinsics, COLOUR_CAMERA)
    with pytest.raises(UsageError, match="projected or raw"):
        SevenScenes(tmp_path, depth="registered")


def test_raw_depth_of_7_scenes_is_seen_from_the_colour_camera() -> None:
    depth = np.zeros((480, 640), np.float32)
    depth[100, 200], depth[101, 200], depth[300, 500] = 2.0, 8.0, 1.5
    seen = seen_from_colour(depth)
    for y, x in ((100, 200), (300, 500)):
        ray = np.array([(x + 0.5 - 320) / 585, (y + 0.5 - 240) / 585, 1])
        there = COLOUR_FROM_DEPTH @ (*(ray * depth[y, x]), 1)
        # SimpleRecon rounds 525 x / z + 320 to the number of a pixel.
        column, row = (round(525 * there[i] / there[2] + (320, 240)[i]) for i in (0, 1))
        assert seen[row, column] == pytest.approx(there[2], rel=1e-6)
    assert (seen > 0).sum() in (2, 3)
    flat = seen_from_colour(np.full((480, 640), 3, np.float32))
    assert np.abs(flat[flat > 0] - 3).max() < 0.06 and (flat > 0).mean() > 0.5


def test_7_scenes_are_projected_unless_simplerecon_has_done_it(tmp_path: Path) -> None:
    sevenscenes.write_raw(tmp_path, tiny.scenes())
    found, raw = SevenScenes(tmp_path).view(0, 0).depth, SevenScenes(tmp_path, depth="raw").view(0, 0).depth
    np.testing.assert_array_equal(found, seen_from_colour(raw))


def test_sequences_of_7_scenes_are_chosen_by_split(tmp_path: Path) -> None:
    tiny.write("sevenscenes", tmp_path)
    ids = {split: SevenScenes(tmp_path, split=split).ids for split in ("all", "train", "test")}
    assert ids == {"all": ["chess/seq-01", "heads/seq-01"], "train": ["chess/seq-01"], "test": ["heads/seq-01"]}
    shutil.rmtree(tmp_path / "heads")
    with pytest.raises(InputError, match="7-Scenes"):
        SevenScenes(tmp_path, split="test")
    assert SevenScenes(tmp_path).cloud(0) is None
    (tmp_path / "meshes").mkdir()
    (tmp_path / "meshes" / "chess.ply").write_bytes(ply_bytes(np.eye(3), np.zeros((3, 3), np.uint8)))
    np.testing.assert_array_equal(SevenScenes(tmp_path).cloud(0), np.eye(3))


def test_nrgbd_has_noisy_depth_and_its_mesh(tmp_path: Path) -> None:
    made = tiny.write("nrgbd", tmp_path)
    exact, noisy = (Nrgbd(tmp_path, depth=depth).view(0, 0).depth for depth in ("depth", "depth_with_noise"))
    near = (exact > 0) & (1.5 * exact < 10)
    np.testing.assert_allclose(noisy[near], 1.5 * exact[near], atol=2e-3)
    cloud = Nrgbd(tmp_path).cloud(0)
    assert cloud is not None and cloud.shape == (1_000_000, 3)
    surface = eth3d.surface(made[0])
    assert (cloud.min(0) >= surface.min(0) - 1e-5).all() and (cloud.max(0) <= surface.max(0) + 1e-5).all()
    with pytest.raises(UsageError, match="depth_with_noise"):
        Nrgbd(tmp_path, depth="noise")
    with pytest.raises(InputError, match="depth_filtered"):
        Nrgbd(tmp_path, depth="depth_filtered").scene(0)


def test_depth_beyond_ten_metres_is_unknown(tmp_path: Path) -> None:
    tiny.write("nrgbd", tmp_path)
    for number, value in ((0, 10_000), (1, 10_001), (2, 65_535)):
        tiny.save_png(tmp_path / "kitchen" / "depth" / f"depth{number}.png", np.full((46, 62), value, np.uint16))
    found = Nrgbd(tmp_path)
    assert [found.view(0, v).depth.max() for v in range(3)] == [10, 0, 0]


HALF = {
    "eth3d": ("images/dslr_images_undistorted", "dslr_calibration_undistorted/images.txt", "ground_truth_depth"),
    "tanks": ("000002.jpg", "*_trans.txt"),
    "sevenscenes": ("frame-000002.pose.txt", "frame-000003.color.png", "frame-*.depth.png"),
    "nrgbd": ("focal.txt", "poses.txt", "images/img2.png", "depth/depth3.png"),
}


@pytest.mark.parametrize(("name", "part"), [(name, part) for name, parts in HALF.items() for part in parts])
def test_half_downloaded_scenes_are_listed(name: str, part: str, tmp_path: Path) -> None:
    tiny.write(name, tmp_path)
    assert report(tmp_path, name).problems == []
    place = tmp_path / DATASETS.get(name)(tmp_path).ids[1]
    for path in list(place.glob(part)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    found = report(tmp_path, name)
    assert found.problems and all(str(place) in what for what in found.problems) and found.scenes >= 1


def test_archives_and_listed_sequences_of_7_scenes_are_reported(tmp_path: Path) -> None:
    tiny.write("sevenscenes", tmp_path)
    (tmp_path / "chess" / "seq-02.zip").write_bytes(b"PK")
    (tmp_path / "chess" / "TestSplit.txt").write_text("sequence2\nsequence3\n")
    packed, absent = report(tmp_path, "sevenscenes").problems
    assert packed.endswith("seq-02.zip is not unpacked") and absent.endswith("seq-03 is missing")


@pytest.mark.parametrize("name", NAMES)
def test_missing_data_says_where_to_get_it(name: str, tmp_path: Path) -> None:
    kind = DATASETS.get(name)
    for root in (tmp_path, tmp_path / "absent"):
        for read in (kind, lambda root: report(root, name)):
            with pytest.raises(InputError) as caught:
                read(root)
            assert kind.layout in str(caught.value) and kind.source in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_damaged_poses_are_named(name: str, tmp_path: Path) -> None:
    tiny.write(name, tmp_path)
    path = next(iter(sorted(next(tmp_path.rglob(p)) for p in POSES[name])))
    path.write_bytes(b"\xff\xfe not numbers\n" * 3)
    found = report(tmp_path, name)
    assert any(path.name in what or str(path.parent) in what for what in found.problems)


POSES = {"eth3d": ["images.txt"], "tanks": ["*.log"], "sevenscenes": ["*.pose.txt"], "nrgbd": ["poses.txt"]}
