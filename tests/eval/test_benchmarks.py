"""Every benchmark on a tiny copy of its data: perfect files score perfectly, wrong ones as computed by hand."""

from __future__ import annotations

import contextlib
import math
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import truth
from data import tiny
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from lean3r.data.sets.roots import sets
from lean3r.data.sets.scenes import Camera, FolderSet, Frame, RawView
from lean3r.errors import InputError, UsageError
from lean3r.eval.papers import PAPERS
from lean3r.eval.pose_errors import pose_auc
from lean3r.eval.predicted.base import Predicted
from lean3r.eval.protocols import BENCHMARKS
from lean3r.eval.protocols.base import AbsentPart
from lean3r.eval.protocols.cameras import focal_length
from lean3r.eval.protocols.geometry import one_scale
from lean3r.eval.protocols.items import Item
from lean3r.eval.protocols.resolving import resolve
from lean3r.eval.runs.data import items_of
from lean3r.eval.runs.scores import pool
from lean3r.eval.runs.scoring import score_benchmark, score_item

SCORED = [name for name in BENCHMARKS if resolve(name).measures]
METRIC = ("chamfer", "fscore_5cm")
SCENES = {"blendedmvs": 4, "dtu64": 4}  # Lite3R's recipes leave out a quarter of the scenes; two elsewhere
LITE3R = [name for name in SCORED if name.startswith("lite3r")]
FOLDERS: list[TemporaryDirectory[str]] = []


@cache
def root_of(data: str) -> Path:
    """A tiny copy of a data set; removed when the tests end."""
    folder = TemporaryDirectory(prefix=data)
    FOLDERS.append(folder)
    tiny.write(data, Path(folder.name), count=SCENES.get(data, 2))
    return Path(folder.name)


@cache
def items(name: str) -> tuple[Item, ...]:
    """An item of a benchmark on tiny data: of the views that the protocol takes, or of three if it takes too few."""
    data = resolve(name).data
    roots = {data: root_of(data)} if data in sets() else {}
    for few in (name, f"{name}@3"):
        with contextlib.suppress(InputError):
            found = items_of(few, roots, limit=1)
            if len(found[0].names) >= min(3, resolve(name).count):
                return tuple(found)
    return tuple(items_of(name, roots, {sets()[data](roots[data]).scene(0).id: [0, 2, 4]}))


def perfect(figure: str, value: float, direction: str) -> bool:
    """Whether a figure is that of a perfect prediction: the best there is, up to rounding in the files."""
    if direction == "higher":
        return math.isclose(value, 1.0 if value <= 1.001 else 100.0, abs_tol=0.05 if value > 1.001 else 1e-3)
    return abs(value) < 0.05


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("name", SCORED)
def test_perfect_predictions_score_perfectly(name: str, scale: float, tmp_path: Path) -> None:
    for item in items(name):
        is_at_the_truth = "depth" in name or name.startswith("synthetic") or name == "dtu-points" or name in LITE3R
        columns = None if is_at_the_truth else 64  # of smaller maps, where these are scored in their own pixels
        in_unit = name in LITE3R and scale == 1  # its points are not aligned
        truth.write(item, tmp_path / name / item.id, scale, columns=columns, in_unit=in_unit)
    scores = score_benchmark(name, items(name), tmp_path)
    assert scores["failed"] == 0, [row["error"] for row in scores["rows"]]
    assert scores["figures"]
    is_placed = scale == 1 and not name.endswith("da3-released")  # which inverts poses: see below
    for figure, value in scores["figures"].items():
        if figure.endswith("_da3") or figure in (
            "depth_missing",
            "lost_frames",
            *(() if is_placed else METRIC),
        ):
            continue  # the second is no error, the first no relative pose
        if ("_metric" in figure and scale != 1) or "_shift" in figure or math.isnan(value):
            continue
        assert perfect(figure, value, scores["directions"][figure]), (figure, value)


@pytest.mark.parametrize("name", LITE3R)
def test_shuffled_and_scaled_pairs_as_computed_by_hand(name: str, tmp_path: Path) -> None:
    """Lite3R's pairs with the two cameras exchanged, in a world of 1.5 times the unit."""
    [item] = items(name)
    views = truth.write(item, tmp_path / item.id, 1.5, cameras=[1, 0], in_unit=True)
    figures = score_item(resolve(name), item, tmp_path)["figures"]
    second_from_first = views[1].cam_from_world @ np.linalg.inv(views[0].cam_from_world)
    second_from_first[:3, 3] /= truth.unit_of(views)
    first_from_second = np.linalg.inv(second_from_first)
    turn, t, swapped = second_from_first[:3, :3], second_from_first[:3, 3], first_from_second[:3, 3]
    angle_deg = np.degrees(np.linalg.norm(Rotation.from_matrix(turn @ turn).as_rotvec()))
    assert figures["rot_err_deg"] == pytest.approx(angle_deg / 2, rel=1e-3)  # the mean includes the first view
    sine = math.sqrt(1 - (swapped @ t / (t @ t)) ** 2)  # what the best scale leaves
    assert figures["trans_err"] == pytest.approx(np.linalg.norm(t) * sine / 2, rel=1e-3)
    if "dtu64" in name:  # which has no depth
        return
    assert figures["abs_rel"] < 1e-5 and figures["delta1"] == 1
    in_the_world = [first_from_second, np.eye(4)]
    in_the_first = [np.eye(4), first_from_second if name.endswith("da3-released") else second_from_first]
    ours = 1.5 * points(views, in_the_first if "da3" in name else in_the_world)
    true = points(views, [np.eye(4), first_from_second])
    there, back = (KDTree(b[::4]).query(a[::20])[0] for a, b in ((ours, true), (true, ours)))
    assert figures["chamfer"] == pytest.approx(((there**2).mean() + (back**2).mean()) / 2, rel=0.05)


def points(views: tuple[RawView, ...], world_from_cams: list[np.ndarray]) -> np.ndarray:
    """Known pixels [N, 3] of a pair in the unit of Lite3R's evaluation, some of them."""
    found = []
    for view, world_from_cam in zip(views, world_from_cams, strict=True):
        y, x = np.nonzero(view.depth > 0)
        y, x = y[::3], x[::3]
        local = np.linalg.inv(view.intrinsics) @ np.stack([x + 0.5, y + 0.5, np.ones(len(x))]) * view.depth[y, x]
        found.append((world_from_cam[:3, :3] @ local).T / truth.unit_of(views) + world_from_cam[:3, 3])
    return np.concatenate(found)


def test_poses_the_wrong_way_round_place_points_right_as_released(tmp_path: Path) -> None:
    """Lite3R's evaluation of Depth Anything 3 as released takes poses for their inverses: inverses are perfect."""
    name = "lite3r-blendedmvs-da3-released"
    [item] = items(name)
    truth.write(item, tmp_path / item.id, in_unit=True)
    path = tmp_path / item.id / "predictions.npz"
    upright = score_item(resolve(name), item, tmp_path)["figures"]
    arrays = dict(np.load(path))
    np.savez(path, **arrays | {"cam_from_world": np.linalg.inv(arrays["cam_from_world"])})
    inverted = score_item(resolve(name), item, tmp_path)["figures"]
    assert inverted["chamfer"] < 1e-3 < upright["chamfer"] and inverted["fscore_5cm"] > 0.999 > upright["fscore_5cm"]
    assert upright["rot_err_deg"] < 1e-3 < inverted["rot_err_deg"]


def test_a_turned_camera_as_computed_by_hand(tmp_path: Path) -> None:
    """Three views, the second turned by 10.5 degrees about its axis: two of three pairs have this error."""
    [item] = items_of("synthetic@3", {}, limit=1)
    views = item.read()
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("z", 10.5, degrees=True).as_matrix()
    poses = np.stack([view.cam_from_world for view in views])
    poses[1] = turn @ poses[1]
    place = tmp_path / item.id
    place.mkdir()
    np.savez(place / "predictions.npz", cam_from_world=poses)
    row = score_item(resolve("synthetic@3"), item, tmp_path)
    assert row["error"] is None
    assert row["figures"]["rotation_deg"] == pytest.approx(10.5, abs=1e-4)
    assert row["figures"]["rra15"] == 100 and row["figures"]["rra5"] == pytest.approx(100 / 3)
    # Turned about the optical axis, directions are off by at most the angle: 20 of 30 bins have both.
    assert row["figures"]["auc30"] == pytest.approx(100 * (1 / 3 + 2 / 3 * 20 / 30))
    assert "abs_rel" not in row["figures"], "no depth was predicted, so none is scored"


def test_swapped_cameras_are_those_of_the_metric(tmp_path: Path) -> None:
    [item] = items_of("colmap@4", {"colmap": root_of("colmap")}, limit=1)
    views = truth.write(item, tmp_path / item.id, 2.0, cameras=[1, 0, 2, 3])
    row = score_item(resolve("colmap@4"), item, tmp_path)
    poses = torch.from_numpy(np.stack([view.cam_from_world for view in views]))
    expected = pose_auc(poses[[1, 0, 2, 3]], poses)
    assert {t: row["figures"][f"auc{t}"] for t in expected} == pytest.approx({t: 100 * v for t, v in expected.items()})
    assert row["figures"]["auc30"] < 90


WRONG = {
    "other frames": ({"names": np.array(["a", "b", "c"])}, "other frames"),
    "one pose": (
        {"cam_from_world": np.stack([np.eye(4), np.full((4, 4), np.nan), np.full((4, 4), np.nan)])},
        "1 finite",
    ),
    "NaN poses": ({"cam_from_world": np.full((3, 4, 4), np.nan)}, "0 finite"),
    "too few": ({"cam_from_world": np.stack([np.eye(4)] * 2)}, "different numbers"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_predictions_are_a_row_with_the_reason(wrong: str, tmp_path: Path) -> None:
    item = items_of("synthetic@3", {}, limit=2)[1]
    truth.write(item, tmp_path / item.id)
    path = tmp_path / item.id / "predictions.npz"
    change, reason = WRONG[wrong]
    np.savez(path, **{**np.load(path), **change})
    row = score_item(resolve("synthetic@3"), item, tmp_path)
    assert row["error"] is not None and reason in row["error"] and not row["figures"], row["error"]


NO_DEPTH = {
    "zeros": {"depth": np.zeros((3, 208, 272))},
    "NaN": {"depth": np.full((3, 208, 272), np.nan)},
    "no pixel": {"depth": np.zeros((3, 0, 0))},
    "an empty mask": {"mask": np.zeros((3, 208, 272), bool)},
    "absent": {"depth": None},
}


@pytest.mark.parametrize("size", [(12, 16), (48, 64), (96, 128), (480, 640)])
def test_sparse_truth_counts_at_its_own_pixels_whatever_the_size_of_the_maps(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(0, 96, 40), rng.integers(0, 128, 40)
    depth = np.zeros((96, 128), np.float32)
    depth[rows, columns] = np.where(columns < 64, 2.0, 4.0)
    view = RawView(np.zeros((96, 128, 3), np.uint8), depth, np.eye(3), np.eye(4))
    found = np.where(np.arange(size[1]) < size[1] // 2, 1.0, 3.0) * np.ones((size[0], 1))
    item = items_of("synthetic@2", {}, limit=1)[0]
    figures = one_scale(Predicted(path=Path("x"), depth=(found,)), item, (view,)).figures
    ratio = np.where(depth[depth > 0] < 3, 2 / 1, 4 / 3)
    scale = np.sort(ratio)[(len(ratio) - 1) // 2]
    assert figures["abs_rel"] == pytest.approx(100 * np.abs(scale / ratio - 1).mean(), rel=1e-5)
    assert figures["depth_missing"] == 0


@pytest.mark.parametrize("what", NO_DEPTH)
def test_poses_without_depth_keep_their_figures(what: str, tmp_path: Path) -> None:
    """The depth figures are absent, and what is there but unknown is counted in depth_missing; the row says why."""
    item = items_of("synthetic@3", {}, limit=2)[1]
    truth.write(item, tmp_path / item.id)
    path = tmp_path / item.id / "predictions.npz"
    arrays = {**np.load(path), **NO_DEPTH[what]}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    row = score_item(resolve("synthetic@3"), item, tmp_path)
    assert row["error"] is None and "abs_rel" not in row["figures"]
    assert row["figures"]["auc3"] == 100 and row["figures"]["focal"] == 0
    assert row["figures"].get("depth_missing") == (None if what in ("absent", "no pixel") else 100)
    assert any("depth, which" in p or "no positive depth" in p for p in row["problems"]), row["problems"]
    good = tmp_path / "good"
    truth.write(item, good / item.id)
    (good / item.id / "predictions.npz").rename(path)
    found = pool("synthetic@3", [row, score_item(resolve("synthetic@3"), item, tmp_path)])
    assert found["auc3"] == 100 and found["abs_rel"] < 1e-3


@pytest.mark.parametrize("unknown", [0.0, np.nan])
def test_a_video_without_a_known_depth_is_a_failure(unknown: float, tmp_path: Path) -> None:
    """Its figures were NaN, which means leave out: the failure was not counted."""
    [item] = items("bonn-depth")
    views = truth.write(item, tmp_path / item.id)
    path = tmp_path / item.id / "predictions.npz"
    np.savez(path, **{**np.load(path), "depth": np.full((len(views), *views[0].depth.shape), unknown)})
    row = score_item(resolve("bonn-depth"), item, tmp_path)
    assert row["error"] == "no pixel has both a predicted and a true depth" and not row["figures"]


@pytest.mark.parametrize("benchmark", ["eth3d", "lite3r-blendedmvs-released", "lite3r-dtu64-released"])
def test_pose_figures_of_every_benchmark_need_no_depth(benchmark: str, tmp_path: Path) -> None:
    [item] = items(benchmark)
    views = truth.write(item, tmp_path / item.id, in_unit=benchmark.startswith("lite3r"))
    path = tmp_path / item.id / "predictions.npz"
    perfect_row = score_item(resolve(benchmark), item, tmp_path)
    arrays = dict(np.load(path))
    del arrays["depth"]
    np.savez(path, **arrays)
    row = score_item(resolve(benchmark), item, tmp_path)
    assert row["error"] is None
    for figure in ("auc3", "rot_err_deg", "trans_err"):
        assert row["figures"].get(figure) == perfect_row["figures"].get(figure)
    has_truth = any((view.depth > 0).any() for view in views)
    assert not has_truth or not {"abs_rel", "chamfer", "fscore"} & set(row["figures"])
    assert (row["problems"] == ["no depth, which this benchmark scores"]) == has_truth


def test_rows_of_depth_alone_are_pooled_with_rows_of_poses(tmp_path: Path) -> None:
    both = items_of("synthetic@3", {}, limit=2)
    for item, left_out in zip(both, ("cam_from_world", "depth"), strict=True):
        truth.write(item, tmp_path / item.id)
        path = tmp_path / item.id / "predictions.npz"
        arrays = dict(np.load(path))
        del arrays[left_out]
        np.savez(path, **arrays)
    rows = [score_item(resolve("synthetic@3"), item, tmp_path) for item in both]
    assert [row["problems"] for row in rows] == [
        [f"no {part}, which this benchmark scores"] for part in ("cameras", "depth")
    ]
    for some in (rows, rows[::-1]):
        found = pool("synthetic@3", some)
        assert found["auc3"] == 100 and found["abs_rel"] < 1e-3


def test_cameras_at_one_point_have_no_scale(tmp_path: Path) -> None:
    item = items("tum-trajectory")[0]
    place = tmp_path / item.id
    place.mkdir(parents=True)
    np.savez(place / "predictions.npz", cam_from_world=np.stack([np.eye(4)] * len(item.names)))
    row = score_item(resolve("tum-trajectory"), item, tmp_path)
    assert row["error"] is not None and "at one point" in row["error"]


def test_every_table_of_a_paper_names_benchmarks_and_figures_that_exist() -> None:
    for name in PAPERS:
        table = PAPERS.get(name)
        assert table.benchmarks and all(len(row) == len(table.columns) for row in table.rows.values()), name
        for benchmark in table.benchmarks:
            resolve(benchmark)
        head, lines = table.printed({}, "ours")
        assert len(head) == len(lines[-1]) and lines[-1][0] == "ours (measured)"


@pytest.mark.parametrize(
    ("benchmark", "there", "scored"),
    [
        ("sintel-trajectory", "training/clean/alley_2 training/final/alley_1 training/final/alley_2", [2]),
        ("sintel-depth", "training/clean/alley_2 training/final/alley_1 training/final/alley_2", [1, 2]),
        ("tum-trajectory", "rgbd_dataset_freiburg1_xyz rgbd_dataset_freiburg3_walking_xyz", [1]),
        ("bonn-depth", "rgbd_bonn_balloon rgbd_bonn_balloon2 rgbd_bonn_crowd2", [1, 2]),
        ("7scenes-points", "chess/seq-01 chess/seq-03 heads/seq-01 redkitchen/seq-14 stairs/seq-02", [1, 2, 3]),
        ("7scenes-points-dense", "chess/seq-01 chess/seq-02", [0, 1]),
        ("nrgbd-points", "morning_apartment kitchen", [0, 1]),
        ("scannet-trajectory", "scene0707_00", [0]),
        ("kitti-depth", "2011_09_26_drive_0002_sync_02", [0]),
    ],
)
def test_a_whole_download_is_scored_on_the_scenes_of_the_papers(benchmark: str, there: str, scored: list[int]) -> None:
    """The other renderings of Sintel, the static sequences of TUM, the training sequences of 7-Scenes are not; all are
    where none is of the papers."""
    names = there.split()
    found = resolve(benchmark).select(Listed("root", names))
    assert [item.id for item in found] == [names[place] for place in scored]
    other = [name for name in names if name not in {item.id for item in found}]
    assert not resolve(benchmark).departure(found) or len(found) == len(names)
    if other:
        said = resolve(benchmark).departure(resolve(benchmark).select(Listed("root", other)))
        assert "None of the scenes that the papers score" in said and f"scored instead: {other[0]}" in said


class Listed(FolderSet[Frame]):
    """Scenes of 600 views by their names alone."""

    title = "listed"

    def frames(self, scene: str) -> list[Frame]:
        """Views of a file that is there, and not read."""
        return [Frame(Path(__file__), Camera(np.eye(3), np.eye(4), 1, 1)) for _ in range(600)]


def test_names_of_benchmarks() -> None:
    assert resolve("synthetic@5").count == 5
    for wrong in ("synthetic@1", "synthetic@", "synthetic@two"):
        with pytest.raises(UsageError, match="at least 2"):
            resolve(wrong)
    with pytest.raises(UsageError, match="Perhaps you meant"):
        resolve("syntetic")


@pytest.mark.parametrize("name", ["synthetic@2", "lite3r-blendedmvs"])
def test_own_lists_are_refused_where_a_protocol_draws_its_views(name: str) -> None:
    with pytest.raises(UsageError, match="--views-from does not go with"):
        resolve(name).select(None, {"scene": [0, 1]})


@pytest.mark.parametrize("views", [[0, 0, 1], [0], [0, 99], [0, 1.0], [False, True]])
def test_own_lists_hold_different_views_of_the_scene(views: list[Any]) -> None:
    root = root_of("tum")
    with pytest.raises(InputError, match=r"expected two or more different ones from 0 to \d+"):
        items_of("tum-trajectory", {"tum": root}, {sets()["tum"](root).scene(0).id: views})


def test_the_focal_length_is_that_of_the_pictures_that_have_one() -> None:
    truth_of_views: Any = tuple(SimpleNamespace(intrinsics=np.diag([f, f, 1.0])) for f in (100.0, 110, 120))
    found: Any = SimpleNamespace(intrinsics=np.stack([np.diag([f, f, 1.0]) for f in (100.0, np.nan, 132)]))
    item = items_of("synthetic@3", {}, limit=1)[0]
    assert focal_length(found, item, truth_of_views).figures["focal"] == pytest.approx(5)
    found.intrinsics[:] = np.nan
    with pytest.raises(AbsentPart, match="no intrinsics of any"):
        focal_length(found, item, truth_of_views)
