"""Published camera files: what is read from them agrees with known facts about the sets."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from data.tiny import numbers, save_jpeg, save_png

from lean3r.data.sampling.choosing import estimate
from lean3r.data.sets.colmap import ColmapFolder
from lean3r.data.sets.dtu import DTU, FULL, SMALL
from lean3r.data.sets.formats.files import write_pfm
from lean3r.data.sets.formats.timed import associate, read_poses
from lean3r.data.sets.kitti import Kitti
from lean3r.data.sets.realestate10k import RealEstate10K
from lean3r.data.sets.roots import kind_of
from lean3r.data.sets.scannet import ScanNet
from lean3r.data.sets.scannet1500 import ScanNet1500
from lean3r.data.sets.scenes import SceneSet, invert
from lean3r.data.sets.tum import Tum
from lean3r.errors import InputError
from lean3r.eval.trajectory import trajectory_errors


@pytest.fixture(scope="session")
def formats(data_dir: Path) -> Path:
    """Folder of published files."""
    folder = data_dir / "formats"
    if not folder.is_dir():
        pytest.skip(f"no published files at {folder}")
    return folder


def dtu(root: Path, formats: Path, size: tuple[int, int], views: int = 49) -> DTU:
    """All published cameras, with black pictures and flat depth 650 mm away."""
    shutil.copytree(formats / "dtu_cameras_full", root / "Cameras")
    save_png(root / "black.png", np.zeros((*size[::-1], 3), np.uint8))
    (root / "Rectified" / "scan1_train").mkdir(parents=True)
    (root / "Depths").mkdir()
    maps = root / "Depths" / "scan1_train"
    maps.mkdir()
    write_pfm(root / "depth.pfm", np.full((SMALL[1] // 4, SMALL[0] // 4), 650, np.float32))
    for v in range(views):
        (root / "Rectified" / "scan1_train" / f"rect_{v + 1:03}_3_r5000.png").hardlink_to(root / "black.png")
        (maps / f"depth_map_{v:04}.pfm").hardlink_to(root / "depth.pfm")
    return DTU(root)


def test_dtu_cameras_look_at_one_object_and_overlap_as_their_pairs_state(formats: Path, tmp_path: Path) -> None:
    scans = dtu(tmp_path, formats, SMALL)
    assert scans.scene(0).views == 49 and DTU.problems(tmp_path) == []
    cameras = [scans.camera(0, v) for v in range(49)]
    assert cameras[0].intrinsics[0, 0] == pytest.approx(2892.33 / 2)
    assert cameras[0].intrinsics[0, 2] == pytest.approx(823.205 / 2 - 80 + 0.5)
    world = np.stack([invert(c.cam_from_world) for c in cameras])
    centres, axes = world[:, :3, 3], world[:, :3, 2]
    # The point nearest to all optical axes: the object, two thirds of a metre away from every camera.
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    object_at = np.linalg.solve(across.sum(0), (across @ centres[..., None]).sum(0)[:, 0])
    away = np.linalg.norm(centres - object_at, axis=1)
    assert away.min() > 0.5 and away.max() < 0.85
    assert all((c.cam_from_world[:3, :3] @ object_at + c.cam_from_world[:3, 3])[2] > 0.4 for c in cameras)
    stated, guessed = scans.covisibility(0), estimate(scans, 0)
    assert stated is not None
    upper = np.triu_indices(49, 1)
    listed = stated[upper] > 0
    assert guessed[upper][listed].mean() > 1.2 * guessed[upper][~listed].mean()
    depth = scans.view(0, 0).depth
    assert np.unique(depth[::4, ::4]) == pytest.approx([0.65]) and np.count_nonzero(depth) == depth.size // 16


def test_dtu_of_full_size_and_of_an_invalid_size(formats: Path, tmp_path: Path) -> None:
    full = dtu(tmp_path / "full", formats, FULL, views=1).camera(0, 0)
    assert full.intrinsics[0, 2] == pytest.approx(823.205 + 0.5) and (full.width, full.height) == FULL
    with pytest.raises(InputError, match="640 x 480"):
        dtu(tmp_path / "other", formats, (640, 480), views=1).scene(0)


def test_realestate10k_paths_are_smooth(formats: Path, tmp_path: Path) -> None:
    texts = sorted((formats / "realestate10k").glob("*.txt"))
    for text in texts:
        (tmp_path / "cameras").mkdir(exist_ok=True)
        shutil.copy(text, tmp_path / "cameras")
        stamps = [line.split()[0] for line in text.read_text().splitlines()[1:]]
        for stamp in stamps[:40]:
            save_jpeg(tmp_path / "frames" / text.stem / f"{stamp}.jpg", np.zeros((36, 64, 3), np.uint8))
    clips = RealEstate10K(tmp_path)
    assert len(clips) == len(texts)
    for i in range(len(clips)):
        cameras = [clips.camera(i, v) for v in range(clips.scene(i).views)]
        centres = np.stack([invert(c.cam_from_world)[:3, 3] for c in cameras])
        steps = np.linalg.norm(np.diff(centres, axis=0), axis=1)
        assert steps.max() < 0.5 and steps.sum() > 0
        k = cameras[0].intrinsics
        assert k[0, 0] == pytest.approx(k[1, 1], rel=0.03) and (k[0, 2], k[1, 2]) == (32, 18)
    # The first line of the first file, by hand.
    row = [float(x) for x in texts[0].read_text().splitlines()[1].split()]
    np.testing.assert_allclose(clips.camera(0, 0).intrinsics[[0, 1], [0, 1]], (row[1] * 64, row[2] * 36))
    np.testing.assert_allclose(clips.camera(0, 0).cam_from_world[:3].ravel(), row[7:], atol=1e-6)


def test_realestate10k_with_missing_clips(formats: Path, tmp_path: Path) -> None:
    shutil.copytree(formats / "realestate10k", tmp_path / "test")
    with pytest.raises(InputError, match="6 of 6 clips have no frames"):
        RealEstate10K(tmp_path)
    assert RealEstate10K.looks_like(tmp_path)


def test_scannet_frames_move_as_the_published_pairs_do(formats: Path, tmp_path: Path) -> None:
    pairs = (formats / "scannet_pairs" / "pairs_with_gt.txt").read_text().splitlines()
    kept = []
    for line in pairs[:5]:
        words = line.split()
        k, there_from_here = np.array(words[4:13], float).reshape(3, 3), np.array(words[22:], float).reshape(4, 4)
        folder = tmp_path / "scans" / f"scene{len(kept):04}_00"
        for name in ("pose", "intrinsic"):
            (folder / name).mkdir(parents=True)
        padded = np.eye(4)
        padded[:3, :3] = k
        (folder / "intrinsic" / "intrinsic_color.txt").write_text(numbers(padded))
        (folder / "intrinsic" / "intrinsic_depth.txt").write_text(numbers(np.diag([577.0, 577.0, 1, 1])))
        for v, pose in enumerate((np.eye(4), np.linalg.inv(there_from_here))):
            (folder / "pose" / f"{v}.txt").write_text(numbers(pose))
            save_jpeg(folder / "color" / f"{v}.jpg", np.zeros((480, 640, 3), np.uint8))
            save_png(folder / "depth" / f"{v}.png", np.ones((480, 640), np.uint16))
        kept.append((k, there_from_here))
    walks = ScanNet(tmp_path)
    for i, (k, there_from_here) in enumerate(kept):
        here, there = walks.camera(i, 0), walks.camera(i, 1)
        np.testing.assert_allclose(there.cam_from_world @ invert(here.cam_from_world), there_from_here, atol=1e-4)
        # Intrinsics are scaled with pictures that were exported smaller than the sensor's.
        view = walks.view(i, 0)
        assert view.image.shape[:2] == (480, 640)
        assert view.intrinsics[0, 0] == pytest.approx(k[0, 0] * 640 / 1296)
        assert view.intrinsics[1, 2] == pytest.approx((k[1, 2] + 0.5) * 480 / 968)


@pytest.mark.parametrize("are_scaled", [False, True])
@pytest.mark.parametrize(
    "size", [(1296, 968), (1280, 956), (1024, 768), (960, 720), (864, 648), (640, 480), (320, 240)], ids=str
)
def test_scannet_pictures_of_any_size_have_the_intrinsics_of_their_sensor(
    size: tuple[int, int], are_scaled: bool, tmp_path: Path
) -> None:
    """The published intrinsics of scene0000_00 are for 1296 x 968; others export them for the size of the pictures."""
    folder, (width, height) = tmp_path / "scene0000_00", size
    scale = np.diag([width / 1296, height / 968, 1, 1]) if are_scaled else np.eye(4)
    color = np.eye(4)
    color[:2, :3] = [[1169.621094, 0, 646.295044], [0, 1167.105103, 489.927032]]
    depth = np.eye(4)
    depth[:2, :3] = [[577.590698, 0, 318.905426], [0, 578.729797, 242.683609]]
    for name in ("pose", "intrinsic"):
        (folder / name).mkdir(parents=True)
    (folder / "intrinsic" / "intrinsic_color.txt").write_text(numbers(scale @ color))
    (folder / "intrinsic" / "intrinsic_depth.txt").write_text(numbers(depth))
    (folder / "pose" / "0.txt").write_text(numbers(np.eye(4)))
    save_jpeg(folder / "color" / "0.jpg", np.zeros((height, width, 3), np.uint8))
    save_png(folder / "depth" / "0.png", np.full((480, 640), 2000, np.uint16))
    view = ScanNet(tmp_path).view(0, 0)
    k = view.intrinsics / [[width / 1296], [height / 968], [1]]
    np.testing.assert_allclose(k[[0, 1], [0, 1]], (1169.621094, 1167.105103), rtol=1e-6)
    # Centres of pixels are half a pixel of the larger or of the smaller picture from their corners.
    np.testing.assert_allclose(k[:2, 2], (646.795044, 490.427032), atol=1.6)
    assert (view.depth > 0).mean() > 0.95


def link(target: Path, *paths: Path) -> None:
    """The same file at several paths; folders are made."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(target)


def errors_of(found: SceneSet, times_s: np.ndarray, world_from_cam: np.ndarray, apart_s: float) -> np.ndarray:
    """Distances in metres of another program's trajectory from the views of the first scene, after a rigid alignment;
    matched by times."""
    views = range(found.scene(0).views)
    own_s = np.array([found.time_s(0, v) for v in views], float)
    match = associate(own_s, times_s, apart_s)
    pred = torch.from_numpy(np.linalg.inv(world_from_cam[match[match >= 0]]))
    truth = torch.from_numpy(np.stack([found.camera(0, v).cam_from_world for v in views])[match >= 0])
    assert len(truth) > 0.9 * len(views)
    return trajectory_errors(pred, truth, "se3").ate


def test_tum_is_associated_as_by_its_own_tools_and_scores_as_published(formats: Path, tmp_path: Path) -> None:
    files = formats / "trajectories_tum"
    xyz: list[list[str]] = []
    for name in ("fr3_office", "fr1_xyz"):
        xyz = [line.split() for line in (files / f"{name}_associations.txt").read_text().splitlines()]
        pictures, maps = (np.array([float(row[i]) for row in xyz]) for i in (0, 2))
        np.testing.assert_array_equal(associate(pictures, maps, 0.02), np.arange(len(xyz)))
    walk = tmp_path / "rgbd_dataset_freiburg1_xyz"
    walk.mkdir()
    shutil.copy(files / "freiburg1_xyz-groundtruth.txt", walk / "groundtruth.txt")
    save_png(tmp_path / "black.png", np.zeros((480, 640, 3), np.uint8))
    save_png(tmp_path / "map.png", np.full((480, 640), 5000, np.uint16))
    for kind, column, target in (("rgb", 0, "black.png"), ("depth", 2, "map.png")):
        (walk / f"{kind}.txt").write_text("# comment\n" + "\n".join(f"{r[column]} {r[column + 1]}" for r in xyz))
        link(tmp_path / target, *(walk / row[column + 1] for row in xyz))
    found = Tum(tmp_path)
    assert found.problems(tmp_path) == [] and found.scene(0).views == 790  # the last two are later than the poses
    assert found.view_name(0, 0) == "1305031102.175304" and found.time_s(0, 0) == 1305031102.175304
    view = found.view(0, 5)
    assert view.depth.max() == view.depth.min() == 1 and view.image.shape[:2] == view.depth.shape != (480, 640)
    # RGB-D SLAM on this walk, 0.013473 m by the benchmark's evaluate_ate.py, which matches both trajectories directly;
    # by the poses of our views, which are those of other times, a little more.
    times, poses, lost = read_poses(walk / "groundtruth.txt")
    theirs_s, theirs, _ = read_poses(files / "freiburg1_xyz-rgbdslam.txt")
    match = associate(times, theirs_s, 0.02)
    pred, truth = (torch.from_numpy(np.linalg.inv(p)) for p in (theirs[match[match >= 0]], poses[match >= 0]))
    ate = trajectory_errors(pred, truth, "se3").ate
    assert lost == 0 and np.sqrt((ate**2).mean()) == pytest.approx(0.013473, abs=1e-6)
    assert np.sqrt((errors_of(found, theirs_s, theirs, 0.02) ** 2).mean()) == pytest.approx(0.0141, abs=1e-4)


def test_kitti_has_the_published_poses_and_times(formats: Path, tmp_path: Path) -> None:
    files, drive = formats / "trajectories_kitti", tmp_path / "sequences" / "00"
    (tmp_path / "poses").mkdir()
    shutil.copy(files / "KITTI_00_gt.txt", tmp_path / "poses" / "00.txt")
    drive.mkdir(parents=True)
    shutil.copy(files / "KITTI_00_gt_times.txt", drive / "times.txt")
    (drive / "calib.txt").write_text(
        "P0: 718.856 0 607.1928 0 0 718.856 185.2157 0 0 0 1 0\n"
        "P2: 7.188560000000e+02 0.000000000000e+00 6.071928000000e+02 4.538225000000e+01 0.000000000000e+00 "
        "7.188560000000e+02 1.852157000000e+02 -1.130887000000e-01 0.000000000000e+00 0.000000000000e+00 "
        "1.000000000000e+00 3.779761000000e-03\n"
    )
    save_png(tmp_path / "black.png", np.zeros((376, 1241, 3), np.uint8))
    link(tmp_path / "black.png", *(drive / "image_2" / f"{number:06}.png" for number in range(1500)))
    found = Kitti(tmp_path)
    assert found.problems(tmp_path) == [] and found.scene(0).views == 1500
    assert found.time_s(0, 1) == pytest.approx(0.1037359)
    first = found.camera(0, 0)
    assert first.intrinsics[0, 2] == pytest.approx(607.6928) and (first.width, first.height) == (1241, 376)
    # Camera 2 is 6 cm to the left of camera 0.
    np.testing.assert_allclose(first.cam_from_world[:3, 3], [0.05994, -0.00113, 0.00378], atol=1e-5)
    rows = np.loadtxt(files / "KITTI_00_ORB.txt").reshape(-1, 3, 4)
    theirs = np.tile(np.eye(4), (len(rows), 1, 1))
    theirs[:, :3] = rows
    times = np.loadtxt(files / "KITTI_00_gt_times.txt")
    assert np.sqrt((errors_of(found, times, theirs, 0.01) ** 2).mean()) < 2  # of 1.2 km


def test_scannet_1500_is_the_published_list(formats: Path, tmp_path: Path) -> None:
    save_jpeg(tmp_path / "black.jpg", np.zeros((48, 64, 3), np.uint8))
    arrays = np.load(formats / "scannet_1500" / "test.npz")
    names = arrays["name"].astype(int)
    kept = np.flatnonzero(names[:, 0] <= 711)
    for root in (tmp_path / "loftr", tmp_path / "superglue"):
        frames = {(scene, frame) for scene, _, *both in names[kept] for frame in both}
        link(tmp_path / "black.jpg", *(root / f"scene{scene:04}_00" / "color" / f"{n}.jpg" for scene, n in frames))
    for name in ("test.npz", "intrinsics.npz"):
        shutil.copy(formats / "scannet_1500" / name, tmp_path / "loftr")
    found = ScanNet1500(tmp_path / "loftr")
    assert len(found) == len(kept) and found.scene(0).id == "scene0707_00/15-585" and found.scene(0).views == 2
    (problem,) = found.problems(tmp_path / "loftr")
    assert problem.startswith(f"{1500 - len(kept)} of 1500 pairs lack pictures")
    for i, row in enumerate(kept):
        np.testing.assert_array_equal(found.camera(i, 0).cam_from_world, np.eye(4))
        change = found.camera(i, 1).cam_from_world[:3]
        np.testing.assert_allclose(change, arrays["rel_pose"][row].reshape(3, 4), atol=2e-5)
    assert kind_of(tmp_path / "loftr") == "scannet1500"
    # The same pair in SuperGlue's list, with the intrinsics of the full pictures.
    text = (formats / "scannet_pairs" / "pairs_with_gt.txt").read_text()
    (tmp_path / "superglue" / "scannet_test_pairs_with_gt.txt").write_text(text)
    other = ScanNet1500(tmp_path / "superglue")
    assert other.ids == ["scene0711_00/1680-1995"]
    same = found.ids.index(other.ids[0])
    for view in range(2):
        one, two = found.camera(same, view), other.camera(0, view)
        np.testing.assert_allclose(one.cam_from_world, two.cam_from_world, atol=1e-5)
        np.testing.assert_allclose(one.intrinsics, two.intrinsics, atol=2e-3)
        assert two.intrinsics[0, 2] == pytest.approx((653.626 + 0.5) * 64 / 1296)


def test_pictures_of_colmap_are_undistorted(data_dir: Path) -> None:
    """Points of real models project to where they were measured, after undistortion."""
    import pycolmap

    root = data_dir / "scenes" / "sceaux_castle"
    scenes = ColmapFolder(root)
    model = pycolmap.Reconstruction(str(root / "gt"))
    camera = next(iter(model.cameras.values()))
    assert camera.model.name == "SIMPLE_RADIAL" and abs(camera.params[3]) > 1e-3
    image = min(model.images.values(), key=lambda image: image.name)
    plain = scenes.camera(0, 0)
    seen = [(p.xy, model.points3D[p.point3D_id].xyz) for p in image.points2D if p.has_point3D()]
    rays = camera.cam_from_img(np.array([xy for xy, _ in seen]))
    measured = np.concatenate([rays, np.ones((len(rays), 1))], 1) @ plain.intrinsics[:2].T
    there = np.array([xyz for _, xyz in seen]) @ plain.cam_from_world[:3, :3].T + plain.cam_from_world[:3, 3]
    straight = there / there[:, 2:] @ plain.intrinsics[:2].T
    assert np.median(np.linalg.norm(straight - measured, axis=1)) < 0.5
    view = scenes.view(0, 0)
    assert view.image.shape[:2] == (plain.height, plain.width) and np.count_nonzero(view.depth) > 200
    assert view.image[[0, -1]].any() and view.image[:, [0, -1]].any(), "no empty corners"
