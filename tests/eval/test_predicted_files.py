"""Each form of predictions, written by other programs or by hand, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trimesh
from eval.predicted_samples import (
    DEPTH,
    KITTI,
    MAPS,
    NAMES,
    PLACE,
    RNG,
    TIMES,
    TUM,
    WORLD_FROM_CAM,
    euroc,
    is_truth,
    ply_by_hand,
    png16,
    write_colmap,
    write_depth,
)
from PIL import Image

from lean3r.errors import InputError
from lean3r.eval.predicted.reading import read


@pytest.mark.parametrize(
    ("name", "text"),
    [("poses.txt", TUM), ("CameraTrajectory.txt", KITTI), ("x.csv", euroc()), ("a.tum", "# x\n" + TUM)],
)
def test_trajectories_are_told_apart_by_their_content(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert is_truth(read(tmp_path, NAMES).cam_from_world)
    beside = tmp_path / "items" / "scene.0"
    beside.parent.mkdir()
    beside.with_name(f"scene.0{Path(name).suffix}").write_text(text)
    assert is_truth(read(beside, NAMES).cam_from_world) and is_truth(read(tmp_path / name, NAMES).cam_from_world)
    with pytest.raises(InputError, match="3 frames without names; expected 2"):
        read(tmp_path, NAMES[:2])


def test_real_trajectories(data_dir):
    folder = data_dir / "formats"
    kitti = read(folder / "trajectories_kitti/KITTI_00_ORB.txt")
    assert kitti.cam_from_world is not None and kitti.problems() == []
    first = np.fromstring((folder / "trajectories_kitti/KITTI_00_ORB.txt").read_text().splitlines()[9], sep=" ")
    assert np.allclose(np.linalg.inv(kitti.cam_from_world[9])[:3], first.reshape(3, 4), atol=1e-5)

    truth = read(folder / "trajectories_tum/freiburg1_xyz-groundtruth.txt")
    slam = read(folder / "trajectories_tum/freiburg1_xyz-rgbdslam.txt")
    assert truth.times_s is not None and slam.times_s is not None and truth.problems() == slam.problems() == []
    matched = slam.at_times(truth.times_s, 0.01)
    assert matched.cam_from_world is not None
    known = np.isfinite(matched.cam_from_world).all((1, 2))
    gap = np.abs(slam.times_s[None] - truth.times_s[:, None]).min(1)
    assert 500 < known.sum() <= len(slam.times_s) and not known[gap > 0.01].any()
    away = np.linalg.norm(
        (np.linalg.inv(matched.cam_from_world[known]) - np.linalg.inv(truth.cam_from_world[known]))[:, :3, 3], axis=1
    )
    assert np.median(away) < 0.05  # rgbdslam is within centimetres of the truth

    csv = read(folder / "trajectories_euroc/V102_groundtruth.csv")
    assert csv.times_s is not None and csv.times_s[0] == pytest.approx(1403715524.907143168, abs=1e-6)
    assert csv.problems() == []


def test_poses_by_time_and_by_count(tmp_path):
    (tmp_path / "poses.txt").write_text(TUM)
    late = TIMES + np.array([0.004, 1.0, -0.003])
    predicted = read(tmp_path, NAMES, late)
    assert predicted.cam_from_world is not None and predicted.times_s is not None
    assert np.isnan(predicted.cam_from_world[1]).all() and np.array_equal(predicted.times_s, late)
    assert np.allclose(predicted.cam_from_world[[0, 2]] @ WORLD_FROM_CAM[[0, 2]], np.eye(4), atol=1e-6)
    assert predicted.problems() == ["1 of 3 pictures have no pose (NaN): rgb/a.jpg"]
    # Of two poses near one picture the nearer counts, whatever their order.
    for shift in (0.001, -0.001):
        one = read(tmp_path / "poses.txt").at_times([TIMES[:2].mean() + shift], 0.1).cam_from_world
        assert one is not None and np.allclose(one[0] @ WORLD_FROM_CAM[int(shift > 0)], np.eye(4), atol=1e-6)
    with pytest.raises(InputError, match=r"within 0\.02 s of a picture.*expected 5\.000 to 6\.000"):
        read(tmp_path, times_s=[5, 6])
    counted = "\n".join(f"{i} {line.split(' ', 1)[1]}" for i, line in enumerate(TUM.splitlines()))
    (tmp_path / "poses.txt").write_text(counted)
    assert is_truth(read(tmp_path, NAMES, TIMES).cam_from_world)
    with pytest.raises(InputError, match="has no timestamps"):
        read(write_colmap(tmp_path / "model")).at_times([0.0])


def test_poses_of_kitti_with_times(tmp_path):
    (tmp_path / "pred_poses.txt").write_text(KITTI)
    (tmp_path / "times.txt").write_text("".join(f"{t:.6f}\n" for t in TIMES))
    assert is_truth(read(tmp_path, NAMES).cam_from_world)
    assert np.allclose(read(tmp_path).times_s, TIMES)
    one = read(tmp_path, NAMES[1:2], TIMES[1:2] + 0.001)
    assert one.cam_from_world is not None and np.allclose(one.cam_from_world @ WORLD_FROM_CAM[1], np.eye(4))
    (tmp_path / "times.txt").write_text("1\n2\n")
    with pytest.raises(InputError, match=r"times\.txt has 2 lines; expected 3, like pred_poses\.txt"):
        read(tmp_path)


def test_a_picture_without_a_pose_is_nan(tmp_path):
    rows = [line.split() for line in KITTI.splitlines()]
    rows[1] = ["nan"] * 12
    (tmp_path / "poses.txt").write_text("\n".join(map(" ".join, rows)))
    predicted = read(tmp_path, NAMES)
    assert predicted.cam_from_world is not None and np.isnan(predicted.cam_from_world[1]).all()
    rows[1] = ["0"] * 12
    (tmp_path / "poses.txt").write_text("\n".join(map(" ".join, rows)))
    assert read(tmp_path, NAMES).problems() == ["1 of 3 pictures have no pose (NaN): rgb/a.jpg"]
    (tmp_path / "poses.txt").write_text(TUM.splitlines()[0])
    assert read(tmp_path, NAMES[:1]).problems() == ["poses need at least two pictures, 1 of 1 has one"]


@pytest.mark.parametrize("form", ["binary", "text"])
@pytest.mark.parametrize("where", [".", "sparse/0", "sparse"])
def test_colmap_models_with_rigs(tmp_path, form, where):
    from lean3r.colmap_library import pycolmap

    write_colmap(tmp_path / "item" / where, form)
    model = pycolmap.Reconstruction(str(tmp_path / "item" / where))
    images = {image.name: image for image in model.images.values()}
    names = [*sorted(images, reverse=True)[:5], "never/registered.png"]
    predicted = read(tmp_path / "item", names)
    assert predicted.cam_from_world is not None and predicted.intrinsics is not None and predicted.cloud is not None
    for i, name in enumerate(names[:5]):
        assert np.allclose(predicted.cam_from_world[i, :3], images[name].cam_from_world().matrix())
        assert np.allclose(predicted.intrinsics[i], model.cameras[images[name].camera_id].calibration_matrix())
    assert np.isnan(predicted.cam_from_world[5]).all() and predicted.names == tuple(names)
    points = np.array([point.xyz for point in model.points3D.values()])
    assert np.allclose(np.sort(predicted.cloud, 0), np.sort(points, 0))
    with pytest.raises(InputError, match="predictions for other frames"):
        read(tmp_path / "item", ["x.png", "y.png"])


@pytest.mark.parametrize("kind", MAPS)
def test_depth_maps_of_any_size(tmp_path, kind):
    write, tolerance = MAPS[kind]
    folder = tmp_path / "depth"
    folder.mkdir()
    for name, depth in zip("bac", DEPTH, strict=True):
        write(folder / f"{name}.x", depth)
    predicted = read(tmp_path, NAMES)
    assert predicted.depth is not None and predicted.names == tuple(NAMES)
    for have, depth in zip(predicted.depth, DEPTH, strict=True):
        assert have.dtype == np.float32 and have.shape == depth.shape and np.abs(have - depth).max() <= tolerance


def test_depth_maps_in_folders_like_their_pictures(tmp_path):
    names = ["cam0/001", "cam0/002", "cam1/001", "cam1/002"]
    for number, name in enumerate(names):
        path = tmp_path / "depth" / f"{name}_depth.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.full((4, 6), number + 1.0, np.float32))
    found = read(tmp_path, names[::-1]).depth
    assert found is not None and [depth[0, 0] for depth in found] == [4, 3, 2, 1]


@pytest.mark.parametrize("where", ["depth.json", "depth/depth.json"])
def test_the_unit_of_depth_can_be_stated(tmp_path, where):
    (tmp_path / "depth").mkdir()
    for name, depth in zip("bac", DEPTH, strict=True):
        png16(tmp_path / "depth" / f"{name}.png", depth, 5000)
    (tmp_path / where).write_text('{"units_per_metre": 5000}')
    predicted = read(tmp_path, NAMES)
    assert predicted.depth is not None and np.abs(predicted.depth[1] - DEPTH[1]).max() < 1.1e-4
    (tmp_path / where).write_text('{"units_per_metre": 0}')
    with pytest.raises(InputError, match=r"states 0\.0 units per metre"):
        read(tmp_path, NAMES)


@pytest.mark.parametrize("stem", ["{:05d}", "frame_{:04d}", "frame_{:04d}_depth", "depth_{:03d}"])
@pytest.mark.parametrize("first", [0, 1])
def test_numbered_maps_are_in_order(tmp_path, stem, first):
    (tmp_path / "depth").mkdir()
    for i in range(12):
        np.save(tmp_path / "depth" / f"{stem.format(i + first)}.npy", np.full((2, 3), i + 1, np.float32))
    predicted = read(tmp_path, [f"IMG_{9 * i}.png" for i in range(12)])
    assert predicted.depth is not None and [int(m[0, 0]) for m in predicted.depth] == list(range(1, 13))
    # Numbers that are names of pictures are names; other frames are refused.
    own = [f"{(i * 5) % 12 + first:05d}.jpg" for i in range(12)]
    if stem == "{:05d}":
        predicted = read(tmp_path, own)
        assert predicted.depth is not None and [int(m[0, 0]) for m in predicted.depth] == [
            i * 5 % 12 + 1 for i in range(12)
        ]
    for other in ([*own[:4], "z.jpg"], [f"IMG_{i}.png" for i in range(11)]):
        with pytest.raises(InputError, match="predictions for other frames"):
            read(tmp_path, other)


def test_the_depth_folder_of_lean3r_is_read_with_its_own_scale(tmp_path):
    (tmp_path / "depth" / "preview").mkdir(parents=True)
    Image.fromarray(np.full((4, 6), 200, np.uint16)).save(tmp_path / "depth" / "b_2.png")
    view = {
        "file": "b_2.png",
        "name": "b.jpg",
        "network_offset": [3, 2],
        "original_from_network": [2.0, 3.0, -1.0, -2.0],
    }
    (tmp_path / "depth" / "scale.json").write_text(json.dumps({"scale": 0.01, "views": [view]}))
    predicted = read(tmp_path, NAMES[:1])
    assert predicted.original_from_depth is not None and np.allclose(predicted.original_from_depth, [[2, 3, 5, 4]])
    known = predicted.depth_at(0, 20, 20) > 0
    assert predicted.depth_at(0, 20, 20)[known] == pytest.approx(2.0)
    assert known[4:16, 5:17].all() and known.sum() == 12 * 12


@pytest.mark.parametrize("order", ["a", "<", ">"])
def test_clouds_in_any_order(tmp_path, order):
    points = RNG.normal(size=(11, 3)) * 1000
    ply_by_hand(tmp_path / "fused.ply", points, order)
    cloud = read(tmp_path, NAMES).cloud
    assert cloud is not None and np.array_equal(cloud, points)
    assert read(tmp_path).views == 0 and read(tmp_path).problems() == []


def test_clouds_of_another_program(tmp_path):
    box = trimesh.creation.icosphere(1)
    box.export(tmp_path / "scene.ply")
    cloud = read(tmp_path / "scene").cloud
    assert cloud is not None and np.allclose(cloud, box.vertices, atol=1e-6)
    trimesh.PointCloud(box.vertices, colors=np.full((len(box.vertices), 4), 9, np.uint8)).export(tmp_path / "scene.ply")
    assert np.allclose(read(tmp_path / "scene").cloud, box.vertices, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 3])
def test_intrinsics(tmp_path, rows):
    matrices = np.stack([np.diag([500.0 + i, 510, 1]) for i in range(rows)])
    write_depth(tmp_path)
    np.save(tmp_path / "K.npy", matrices[0] if rows == 1 else matrices)
    predicted = read(tmp_path, NAMES)
    assert predicted.intrinsics is not None and np.array_equal(predicted.intrinsics, np.resize(matrices, (3, 3, 3)))
    (tmp_path / "K.npy").unlink()
    np.savetxt(tmp_path / "intrinsics.txt", matrices[0] if rows == 1 else matrices.reshape(rows, 9))
    assert np.array_equal(read(tmp_path, NAMES).intrinsics, np.resize(matrices, (3, 3, 3)))
    assert read(tmp_path).views == 3
    np.savetxt(tmp_path / "intrinsics.txt", np.zeros((3, 3)))
    assert read(tmp_path, NAMES).problems()[0].startswith("3 of 3 pictures have no valid intrinsics: rgb/b.jpg")


def test_cameras_in_json(tmp_path):
    k = [[80.0, 0, 48.0], [0, 80.0, 36.0], [0, 0, 1]]
    views = [
        {"name": f"{n}.jpg", "width": 96, "height": 72, "K": k, "cam_from_world": np.linalg.inv(pose).tolist()}
        for n, pose in zip("bac", WORLD_FROM_CAM, strict=True)
    ]
    views[1]["uncertain"] = True
    (tmp_path / "cameras.json").write_text(json.dumps({"axes": "opencv", "scale": "metric", "views": views[::-1]}))
    predicted = read(tmp_path, NAMES)
    assert predicted.intrinsics is not None and np.array_equal(predicted.intrinsics, [k] * 3)
    assert predicted.cam_from_world is not None and np.isnan(predicted.cam_from_world[1]).all()
    assert np.allclose(predicted.cam_from_world[[0, 2]] @ WORLD_FROM_CAM[[0, 2]], np.eye(4))


def test_parts_from_several_files_are_one(tmp_path):
    write_depth(tmp_path)
    (tmp_path / "poses.txt").write_text(TUM)
    (tmp_path / "intrinsics.json").write_text('{"fx": 80, "fy": 81, "cx": 40, "cy": 30}')
    ply_by_hand(tmp_path / "points.ply", PLACE, "<")
    (tmp_path / "log.txt").write_text("done in 3 s\n")
    predicted = read(tmp_path, NAMES, TIMES)
    assert is_truth(predicted.cam_from_world) and predicted.depth is not None and predicted.cloud is not None
    assert all(map(np.array_equal, predicted.depth, DEPTH)) and predicted.names == tuple(NAMES)
    assert predicted.intrinsics is not None and (predicted.intrinsics[:, 1, 1] == 81).all()
    assert predicted.problems() == []


def test_a_model_without_some_pictures_beside_depth_of_all(tmp_path):
    write_colmap(tmp_path / "sparse/0")
    model = read(tmp_path)
    assert model.names is not None and len({Path(name).stem for name in model.names}) == model.views == 12
    (tmp_path / "depth").mkdir()
    for name in model.names[:11]:
        np.save(tmp_path / "depth" / f"{Path(name).stem}.npy", np.ones((2, 2)))
    with pytest.raises(InputError, match="predictions for other frames: 1 of 12"):  # depth of all is expected
        read(tmp_path)
    for name in (model.names[11], "lost.png"):
        np.save(tmp_path / "depth" / f"{Path(name).stem}.npy", np.ones((2, 2)))
    assert read(tmp_path).problems() == ["1 of 13 pictures have no pose (NaN): lost"]
    ply_by_hand(tmp_path / "fused.ply", PLACE, "<")  # rather than the points of the model
    cloud = read(tmp_path).cloud
    assert cloud is not None and np.array_equal(cloud, PLACE)


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (
        lambda f: (f / "notes.md").write_text("x"),
        r"has no predictions among notes\.md\. Expected any of: pred",
    ),
    "two trajectories": (
        lambda f: [(f / name).write_text(TUM) for name in ("CameraTrajectory.txt", "poses.txt")],
        r"CameraTrajectory\.txt and .*poses\.txt both have times_s",
    ),
    "a trajectory and a model": (
        lambda f: [write_colmap(f / "sparse/0", rigs=1), (f / "poses.txt").write_text(KITTI)],
        r"sparse/0 and .*poses\.txt both have cam_from_world; expected one",
    ),
    "poses of two, depth of three": (
        lambda f: [write_depth(f), (f / "poses.txt").write_text(KITTI.split("\n", 1)[1])],
        r"different numbers of pictures \(.*depth: 3, .*poses\.txt: 2\)",
    ),
    "two kinds of maps": (
        lambda f: [write_depth(f), png16(f / "depth" / "a.png", DEPTH[0], 1000)],
        r"has depth twice, as \.npy and \.png",
    ),
    "coloured maps": (
        lambda f: [(f / "depth").mkdir(), Image.new("RGB", (8, 6)).save(f / "depth" / "a.png")],
        "uint8 of the shape .*not a coloured picture",
    ),
    "8-bit maps": (
        lambda f: [(f / "depth").mkdir(), Image.new("L", (8, 6)).save(f / "depth" / "a.png")],
        "not a coloured picture",
    ),
    "pickled maps": (
        lambda f: [(f / "depth").mkdir(), np.save(f / "depth" / "a.npy", np.array([{}], object), allow_pickle=True)],
        "damaged or of another format",
    ),
    "no trajectory": (lambda f: (f / "poses.txt").write_text("1 2 3 4 5 6 7\n"), "expected 8 numbers a line"),
    "words": (lambda f: (f / "pred_traj.txt").write_text("failed\n"), "holds no predictions that lean3r reads"),
    "a cut line": (lambda f: (f / "poses.txt").write_text(TUM[:-150]), r"line 3 of .* has \d numbers; expected 8"),
    "no unit quaternion": (
        lambda f: (f / "poses.txt").write_text("0 0 0 0 0 0 0 1\n1 0 0 0 0 0 0 0\n"),
        "pose 1 of .* has a quaternion of length 0",
    ),
    "seconds in a csv": (lambda f: (f / "x.csv").write_text(TUM.replace(" ", ",")), "expected nanoseconds"),
    "a cut cloud": (
        lambda f: [ply_by_hand(f / "a.ply", PLACE, "<"), (f / "a.ply").write_bytes((f / "a.ply").read_bytes()[:-9])],
        r"a\.ply is damaged",
    ),
    "a cut ascii cloud": (
        lambda f: [ply_by_hand(f / "a.ply", PLACE, "a"), (f / "a.ply").write_bytes((f / "a.ply").read_bytes()[:-80])],
        r"a\.ply is damaged",
    ),
    "half a model": (lambda f: [write_colmap(f), (f / "images.bin").unlink()], "holds no readable COLMAP model"),
    "no matrix": (lambda f: np.savetxt(f / "K.txt", np.eye(2)), r"has the shape \(1, 2, 2\); expected one 3 x 3"),
    "an npz of other things": (lambda f: np.savez(f / "predictions.npz", x=1), "neither cam_from_world nor depth"),
    "an npz of words": (
        lambda f: np.savez(f / "predictions.npz", cam_from_world=np.full((2, 4, 4), "x")),
        "cam_from_world of .* has the shape",
    ),
    "an npz of two counts": (
        lambda f: np.savez(f / "predictions.npz", depth=np.ones((2, 3, 3)), names=["a"]),
        "different numbers of views",
    ),
    "an npz with another mask": (
        lambda f: np.savez(f / "predictions.npz", depth=np.ones((2, 3, 3)), mask=np.ones((2, 3, 1))),
        r"mask of .* has the shape \(2, 3, 1\)",
    ),
    "an npz without scale": (
        lambda f: np.savez(f / "predictions.npz", depth=np.ones((1, 3, 3)), original_from_network=[[0, 1, 0, 0]]),
        "a scale that is not positive",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_refused(tmp_path, case):
    write, message = WRONG[case]
    write(tmp_path)
    with pytest.raises(InputError, match=message):
        read(tmp_path)


def test_previews_in_colour_beside_maps_and_the_output_of_lean3r(tmp_path):
    write_depth(tmp_path)
    Image.new("RGB", (8, 6)).save(tmp_path / "depth" / "a.png")
    assert read(tmp_path).views == 3
    np.savez(tmp_path / "predictions.npz", cam_from_world=np.tile(np.eye(4), (2, 1, 1)))
    with pytest.raises(InputError, match="different numbers"):
        read(tmp_path)
    write_colmap(tmp_path / "sparse/0")
    (tmp_path / "manifest.json").write_text("{}")  # a folder of lean3r: depth/ is made of predictions.npz
    assert read(tmp_path).views == 2


def test_problems(tmp_path):
    poses = np.tile(np.eye(4), (4, 1, 1))
    poses[1] *= 2
    depth = np.zeros((4, 2, 2))
    depth[0], depth[1], depth[2] = 1, -1, np.nan
    np.savez(tmp_path / "predictions.npz", names=list("abcd"), cam_from_world=poses, depth=depth)
    assert read(tmp_path).problems() == [
        "1 of 4 pictures have a pose that is no rigid motion: b",
        "all cameras are at one place: the scale of the trajectory is zero",
        "3 of 4 pictures have no positive depth at all: b; c; d",
    ]
