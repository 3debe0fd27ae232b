"""`lean3r score` of files of any program: the truth in every form scores perfectly, and what is wrong shows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from data import tiny
from PIL import Image
from scipy.spatial.transform import Rotation

from lean3r.cli.main import run
from lean3r.data.sets.scenes import RawView
from lean3r.eval.protocols.items import Item
from lean3r.eval.runs.data import items_of

Write = Callable[[Path, Item, Sequence[RawView]], object]


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Item]]:
    root = tmp_path_factory.mktemp("truth") / "ROOT"
    tiny.write("colmap", root)
    return root, items_of("colmap@5", {"colmap": root})


def poses(views: Sequence[RawView]) -> np.ndarray:
    return np.linalg.inv(np.stack([view.cam_from_world for view in views]))


def kitti(place: Path, _: Item, views: Sequence[RawView]) -> None:
    place.mkdir()
    np.savetxt(place / "poses.txt", poses(views)[:, :3].reshape(-1, 12), fmt="%.9g")


def tum(place: Path, _: Item, views: Sequence[RawView]) -> None:
    """As the video models save them: the frame's number for its time, in another world and unit."""
    moved = poses(views)
    moved[:, :3, 3] *= 3.5
    turned = np.linalg.inv(moved[1]) @ moved
    quaternions = Rotation.from_matrix(turned[:, :3, :3]).as_quat()
    rows = np.column_stack([np.arange(len(views)), turned[:, :3, 3], quaternions])
    np.savetxt(place.with_name(f"{place.name}.txt"), rows, fmt="%.9g")


def model(place: Path, item: Item, views: Sequence[RawView]) -> None:
    """COLMAP's binary files, pictures in another order than the benchmark's."""
    from lean3r.colmap_library import pycolmap

    made = pycolmap.Reconstruction()
    for number in reversed(range(len(views))):
        height, width = views[number].image.shape[:2]
        k = views[number].intrinsics
        params = [k[0, 0], k[1, 1], k[0, 2], k[1, 2]]
        camera = pycolmap.Camera(camera_id=number + 1, model="PINHOLE", width=width, height=height, params=params)
        made.add_camera_with_trivial_rig(camera)
        image = pycolmap.Image(name=Path(item.names[number]).name, camera_id=number + 1, image_id=number + 1)
        made.add_image_with_trivial_frame(image, pycolmap.Rigid3d(views[number].cam_from_world[:3].copy()))
    (place / "sparse/0").mkdir(parents=True)
    made.write(place / "sparse/0")


def score(root: Path | None, folder: Path, benchmark: str, items: Sequence[Item], write: Write) -> dict:
    """The rows of scores.json, by item."""
    for item in items:
        place = folder / benchmark / item.id
        place.parent.mkdir(parents=True, exist_ok=True)
        write(place, item, item.read())
    data = ["--root", str(root)] if root else []
    code = run(["score", str(folder), "--benchmark", benchmark, *data, "--limit", str(len(items)), "--quiet"])
    rows = json.loads((folder / benchmark / "scores.json").read_text())["rows"]
    return {"code": code, **{row["id"]: row for row in rows}}


@pytest.mark.parametrize("write", [kitti, tum, model])
def test_true_cameras_in_any_form_are_perfect(truth, tmp_path, write):
    root, items = truth
    rows = score(root, tmp_path / "run", "colmap@5", items, write)
    for item in items:
        row = rows[item.id]
        assert row["error"] is None and row["figures"]["auc3"] == 100 and row["figures"]["rotation_deg"] < 1e-3
    assert rows["code"] == 0


def test_main_figures_are_printed_and_all_of_them_if_asked(truth, tmp_path, capsys):
    root, items = truth
    run_folder = tmp_path / "run"
    score(root, run_folder, "colmap@5", items[:1], kitti)
    capsys.readouterr()
    call = ["score", str(run_folder), "--benchmark", "colmap@5", "--root", str(root), "--limit", "1"]
    figures = json.loads((run_folder / "colmap@5/scores.json").read_text())["figures"]
    printed = {}
    for flag in ("-q", "-v"):
        assert run([*call, flag]) == 0
        printed[flag] = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in printed["-v"]] == [line.split()[0] for line in printed["-q"][:-1]] + [
        name for name in figures if name.endswith(("_pi3", "_da3"))
    ]
    assert printed["-q"][0].split() == ["auc3", "100", "%"]
    assert f"and 8 more, in other conventions: --verbose prints them, {run_folder}" in printed["-q"][-1]


def test_scenes_of_no_paper_are_scored_with_a_warning(tmp_path, capsys):
    tiny.write("tum", tmp_path / "tum")
    for place in sorted((tmp_path / "tum").iterdir()):
        place.rename(place.with_name(place.name.replace("freiburg3", "freiburg2")))
    items = items_of("tum-trajectory", {"tum": tmp_path / "tum"})
    for item in items:
        (tmp_path / "run/tum-trajectory").mkdir(parents=True, exist_ok=True)
        kitti(tmp_path / "run/tum-trajectory" / item.id, item, item.read())
    run(["score", str(tmp_path / "run"), "--benchmark=tum-trajectory", f"--root={tmp_path / 'tum'}"])
    said = capsys.readouterr().err
    notes = json.loads((tmp_path / "run/tum-trajectory/scores.json").read_text())["notes"]
    for text in (said, notes):
        assert "freiburg3_walking_*" in text and f"scored instead: {items[0].id}" in text


@pytest.mark.parametrize("lost", [1, 3])
def test_pictures_that_the_model_names_but_that_are_absent_are_a_problem_of_the_row(truth, tmp_path, lost):
    shutil.copytree(truth[0], tmp_path / "ROOT")
    for path in sorted((tmp_path / "ROOT/scene_0/images").iterdir())[:lost]:
        path.unlink()
    items = items_of("colmap", {"colmap": tmp_path / "ROOT"})
    rows = score(tmp_path / "ROOT", tmp_path / "run", "colmap", items, kitti)
    assert f"{lost} of {len(items[1].names)} pictures of" in rows[items[0].id]["problems"][0]
    assert not any("are missing" in problem for problem in rows[items[1].id]["problems"])


def test_shuffled_cameras_are_not(truth, tmp_path):
    root, items = truth
    rows = score(root, tmp_path / "run", "colmap@5", items, lambda place, item, views: kitti(place, item, views[::-1]))
    assert all(rows[item.id]["figures"]["auc3"] < 60 for item in items)


def test_a_scene_that_is_wrong_is_a_row(truth, tmp_path):
    """One scene has poses of other pictures, the other one's are right."""
    root, items = truth

    def write(place: Path, item: Item, views: Sequence[RawView]) -> None:
        kitti(place, item, views[:-1] if item is items[0] else views)

    rows = score(root, tmp_path / "run", "colmap@5", items, write)
    assert "4 frames without names; expected 5" in rows[items[0].id]["error"]
    assert rows[items[1].id]["figures"]["auc3"] == 100


@pytest.mark.parametrize("empty", ["folder", "array", "pictures"])
def test_poses_beside_empty_depth_are_scored(truth, tmp_path, empty):
    root, items = truth

    def write(place: Path, item: Item, views: Sequence[RawView]) -> None:
        kitti(place, item, views)
        if empty == "array":
            np.save(place / "depth.npy", np.zeros((0, 4, 6)))
            return
        (place / "depth").mkdir()
        if empty == "pictures":
            (place / "depth" / "preview.jpg").write_bytes(b"")

    rows = score(root, tmp_path / "run", "colmap@5", items, write)
    assert all(rows[item.id]["error"] is None and rows[item.id]["figures"]["auc3"] == 100 for item in items)
    assert "no depth, which this benchmark scores" in rows[items[0].id]["problems"]


def test_lost_pictures_count_as_misses(truth, tmp_path):
    root, items = truth

    def write(place: Path, item: Item, views: Sequence[RawView]) -> None:
        lost = poses(views)[:, :3].reshape(-1, 12)
        lost[2] = np.nan
        place.mkdir()
        np.savetxt(place / "poses.txt", lost)

    rows = score(root, tmp_path / "run", "colmap@5", items, write)
    lost, *lacking = rows[items[0].id]["problems"]
    assert lost == f"1 of 5 pictures have no pose (NaN): {items[0].names[2]}"
    assert [text.partition(",")[0] for text in lacking] == ["no depth", "no intrinsics"]
    # 4 of 10 pairs have the lost picture.
    assert all(rows[item.id]["figures"]["auc3"] == pytest.approx(60) for item in items)


def write_png(path: Path, depth: np.ndarray) -> None:
    Image.fromarray(np.round(depth * 5000).astype(np.uint16)).save(path.with_suffix(".png"))


def write_exr(path: Path, depth: np.ndarray) -> None:
    openexr = pytest.importorskip("OpenEXR")
    openexr.File({"type": openexr.scanlineimage}, {"Z": np.float32(depth)}).write(str(path.with_suffix(".exr")))


def write_pair_of_pixels(path: Path, depth: np.ndarray) -> None:
    """Every pixel twice in each direction, in another unit."""
    np.save(path, np.kron(3 * depth, np.ones((2, 2))))


@pytest.mark.parametrize("write_map", [write_png, write_exr, write_pair_of_pixels])
def test_true_depth_and_intrinsics_in_any_form_are_perfect(tmp_path, write_map):
    items = items_of("synthetic@2", {}, limit=1)

    def write(place: Path, item: Item, views: Sequence[RawView]) -> None:
        (place / "depth").mkdir(parents=True)
        np.savetxt(place / "K.txt", np.stack([view.intrinsics for view in views]).reshape(-1, 9))
        (place / "depth.json").write_text(json.dumps({"units_per_metre": 5000 if write_map is write_png else 1}))
        np.savetxt(place / "pred_traj.txt", poses(views)[:, :3].reshape(-1, 12))
        for name, view in zip(item.names, views, strict=True):
            depth = view.depth.copy()
            depth[: len(depth) // 4] = 0
            write_map(place / "depth" / Path(name).stem, depth)

    rows = score(None, tmp_path / "run", "synthetic@2", items, write)
    row = rows[items[0].id]
    assert row["error"] is None
    assert row["figures"]["abs_rel"] < 0.05 and row["figures"]["delta1"] == 100 and row["figures"]["focal"] < 1e-6
    assert row["figures"]["auc3"] == 100 and 5 < row["figures"]["depth_missing"] < 60
