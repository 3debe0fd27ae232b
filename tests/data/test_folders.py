"""Data sets on disk: files in a set's format are read back, and bad roots are recognised."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from data import tiny
from data.tiny import colmap
from PIL import Image

from lean3r.data import DATASETS
from lean3r.data.sets.blendedmvs import BlendedMVS
from lean3r.data.sets.colmap import ColmapFolder
from lean3r.data.sets.roots import kind_of
from lean3r.data.sets.scenes import FolderSet, SceneSet
from lean3r.data.sets.shards import Shards, pack
from lean3r.errors import InputError, UsageError
from lean3r.train.config import Stage
from lean3r.train.losses.distillation import good_surfaces
from lean3r.train.recipes.sources import Data, Source

each_set = pytest.mark.parametrize("name", list(tiny.WRITERS))


Copy = tuple[Path, tuple[tiny.TinyScene, ...]]


@pytest.fixture(scope="session")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Copy]:
    """name -> (root of its tiny copy, content of the copy)."""

    @cache
    def copy(name: str) -> Copy:
        root = tmp_path_factory.mktemp(name)
        return root, tiny.write(name, root)

    return copy


def open_set(name: str, root: Path) -> SceneSet:
    return DATASETS.get(name)(root, **tiny.WRITERS[name].options)


@each_set
def test_reading_returns_what_was_written(name: str, copies: Callable[[str], Copy]) -> None:
    row, (root, made) = tiny.WRITERS[name], copies(name)
    found = open_set(name, root)
    assert len(found) == len(made) and found.looks_like(root) and found.problems(root) == []
    assert found.name == name
    for i, scene in enumerate(made):
        assert found.scene(i).views == len(scene.images)
        for v in range(len(scene.images)):
            view, camera = found.view(i, v), found.camera(i, v)
            assert (camera.height, camera.width) == view.image.shape[:2] == scene.images[v].shape[:2]
            np.testing.assert_allclose(view.intrinsics, scene.intrinsics[v], atol=row.pixel_error)
            np.testing.assert_allclose(camera.intrinsics, view.intrinsics, atol=1e-9)
            np.testing.assert_array_equal(camera.cam_from_world, view.cam_from_world)
            np.testing.assert_allclose(view.cam_from_world, scene.cam_from_world[v], atol=row.pose_error)
            assert np.abs(view.image.astype(int) - scene.images[v]).mean() < 6
            check_depth(view.depth, scene.depth[v], row)
            assert (view.normals is not None) == found.has_normals


def check_depth(read: np.ndarray, written: np.ndarray, row: tiny.Tiny) -> None:
    assert read.dtype == np.float32 and read.shape == written.shape
    known = read > 0
    if row.depth == "none":
        assert not known.any()
    elif row.depth in ("dense", "spread"):
        if row.depth == "spread":
            every = np.zeros_like(written)
            every[::4, ::4] = written[::4, ::4]
            written = every
        np.testing.assert_array_equal(known, written > 0)
        np.testing.assert_allclose(read[known], written[known], rtol=row.depth_error)
    else:
        assert known.sum() > 20 and known[written > 0].sum() == known.sum()
        # A point may be anywhere in its pixel.
        assert np.median(np.abs(read[known] / written[known] - 1)) < 0.02


@each_set
def test_each_set_is_recognised_among_all(name: str, copies: Callable[[str], Copy], tmp_path: Path) -> None:
    root, _ = copies(name)
    assert kind_of(root) == kind_of(root, name) == name
    with pytest.raises(InputError, match="is empty"):
        kind_of(tmp_path, name)
    with pytest.raises(InputError, match=r"Expected:|is missing"):
        open_set(name, tmp_path)
    assert not DATASETS.get(name).looks_like(tmp_path) and DATASETS.get(name).problems(tmp_path)


@each_set
def test_hidden_files_are_no_part_of_a_set(name: str, copies: Callable[[str], Copy], tmp_path: Path) -> None:
    """macOS puts a file ._NAME next to each that it copies to another file system."""
    root = shutil.copytree(copies(name)[0], tmp_path / "copy")
    own = (views_of(open_set(name, root)), DATASETS.get(name).problems(root))
    for path in [path for path in root.rglob("*") if path.is_file()]:
        (path.parent / f"._{path.name}").write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X        ")
    assert (views_of(open_set(name, root)), DATASETS.get(name).problems(root)) == own


@each_set
def test_views_whose_files_are_missing_are_left_out(name: str, copies: Callable[[str], Copy], tmp_path: Path) -> None:
    """A sample of 24 views, of which one in ten cannot be read, would hardly ever be found."""
    root = shutil.copytree(copies(name)[0], tmp_path / "copy")
    scenes = open_set(name, root)
    if not isinstance(scenes, FolderSet) or scenes.scene(0).views < 6:
        pytest.skip("no folders of many views")
    _, no_picture, no_map, *_ = scenes._frames_of(0)
    no_picture.image.unlink()
    if no_map.depth is not None:
        no_map.depth.unlink()
    rest = open_set(name, root)
    assert rest.scene(0).views in (4, 5), "some sets have pictures without depth"
    assert all(rest.view(0, view).image.size for view in range(rest.scene(0).views))
    left_out = len(rest.frames(rest.ids[0])) > rest.scene(0).views
    with mock.patch.object(type(rest), "frames", side_effect=AssertionError("read a second time")):
        assert not left_out or rest.gaps(0), "a benchmark says that its views are others"


def views_of(scenes: SceneSet) -> list[int]:
    return [scenes.scene(i).views for i in range(len(scenes))]


@each_set
def test_covisible_views_are_reported(name: str, copies: Callable[[str], Copy]) -> None:
    found = open_set(name, copies(name)[0])
    score = found.covisibility(0)
    if score is not None:
        views = found.scene(0).views
        assert score.shape == (views, views) and np.isfinite(score).all() and (score >= 0).all() and score.max() > 0


def test_shards_hold_scenes_of_one_kind_and_are_read_by_webdataset(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    tiny.write("colmap", tmp_path / "set")
    scenes = ColmapFolder(tmp_path / "set")
    (tmp_path / "set" / "scene_1" / "images" / "002.png").write_bytes(b"not a picture")
    out = tmp_path / "shards"
    out.mkdir()
    index = pack(scenes, out, max_side=32, shard_mb=1, scene_views=4)
    assert len(index["skipped"]) == 1 and "002.png" in index["skipped"][0]
    packed = Shards(out)
    assert [packed.scene(i).views for i in range(len(packed))] == [4, 2, 3, 2]
    assert sorted(index["shards"]) == ["landscape-0002-00000.tar", "landscape-0004-00000.tar"]
    assert packed.view(0, 1).image.shape == (24, 32, 3) and packed.licence == scenes.licence
    # A rank requests scenes of the batch's length.
    fitting = packed.candidates(3, 24, 32)
    assert fitting is not None and list(fitting) == [0, 2] and packed.candidates(5, 24, 32) is None
    stated, whole = packed.covisibility(1), scenes.covisibility(0)
    assert stated is not None and whole is not None
    np.testing.assert_array_equal(stated, whole[4:, 4:])
    files = [str(out / name) for name in index["shards"]]
    samples = list(webdataset.WebDataset(files, shardshuffle=False))
    assert {s["__key__"] for s in samples} == {"000000-0000", "000000-0001", "000001-0000", "000001-0001"}
    assert all({"cameras.json", "0000.jpg", "0000.depth.png"} <= set(s) for s in samples)
    # An incomplete download is reported; complete samples are read.
    cut = out / "landscape-0004-00000.tar"
    cut.write_bytes(cut.read_bytes()[:3000])
    assert "download is incomplete" in Shards.problems(out)[0]
    with pytest.raises(InputError, match=r"download is incomplete|damaged"):
        [Shards(out).view(2, v) for v in range(3)]
    cut.unlink()
    assert "is missing" in Shards.problems(out)[0] and len(Shards(out)) == 2


def packed(scenes: SceneSet, out: Path, **options: Any) -> Shards:
    pytest.importorskip("webdataset")
    out.mkdir()
    pack(scenes, out, **options)
    return Shards(out)


def test_smaller_copies_of_sparse_maps_keep_their_points_whatever_stands_for_unknown(tmp_path: Path) -> None:
    colmap.write(tmp_path / "set", tiny.scenes()[:1])
    known = {}
    for unknown in (0.0, np.nan, np.inf, -1.0):
        folder = tmp_path / "set" / "scene_0" / f"maps{unknown}"
        folder.mkdir()
        for v, depth in enumerate(tiny.scenes()[0].depth):
            is_known = (np.random.default_rng(v).random(depth.shape) < 0.02) & (depth > 0)
            np.save(folder / f"{v:03}.npy", np.where(is_known, depth, unknown))
        shards = packed(ColmapFolder(tmp_path / "set", depth=folder.name), tmp_path / folder.name, max_side=32)
        known[unknown] = [shards.view(0, v).depth for v in range(6)]
    assert sum(int((depth > 0).sum()) for depth in known[0.0]) > 6 * 40
    for depths in known.values():
        np.testing.assert_array_equal(depths, known[0.0])


@pytest.mark.parametrize(("scene_views", "runs"), [(6, [6]), (5, [6]), (4, [4, 2]), (3, [3, 3]), (2, [2, 2, 2])])
def test_no_view_is_lost_between_the_parts_of_a_scene(scene_views: int, runs: list[int], tmp_path: Path) -> None:
    tiny.write("blendedmvs", tmp_path / "set", count=1)
    scenes = BlendedMVS(tmp_path / "set")
    shards = packed(scenes, tmp_path / "shards", scene_views=scene_views)
    assert views_of(shards) == runs
    names = [f"{scenes.ids[0]}/{run}" for run in range(len(runs))] if len(runs) > 1 else scenes.ids
    assert [shards.scene_id(i) for i in range(len(shards))] == names
    poses = [shards.camera(i, v).cam_from_world for i in range(len(shards)) for v in range(runs[i])]
    np.testing.assert_allclose(poses, [scenes.camera(0, v).cam_from_world for v in range(6)], atol=1e-9)


def test_views_that_have_no_other_beside_them_are_listed_and_parts_of_one_refused(tmp_path: Path) -> None:
    tiny.write("blendedmvs", tmp_path / "set", count=1)
    scenes, out = BlendedMVS(tmp_path / "set"), tmp_path / "shards"
    scenes._frames_of(0)[2].image.write_bytes(b"no picture")
    shards = packed(scenes, out, scene_views=2)
    assert [row["views"] for row in shards.rows] == [2, 2]
    unreadable, alone = json.loads((out / "index.json").read_text())["skipped"]
    assert "view 2 (" in unreadable and "damaged" in unreadable
    assert "view 3 (none of views 2 to 3 beside it can be read; a sample takes two)" in alone
    for views in (1, 0, -3):
        with pytest.raises(UsageError, match=rf"got scene_views {views}; expected at least 2: .*two views"):
            pack(scenes, out, scene_views=views)
    with pytest.raises(UsageError, match="got max_side 0"):
        pack(scenes, out, max_side=0)


def test_packing_shards_again_keeps_name_licence_and_source(tmp_path: Path) -> None:
    tiny.write("blendedmvs", tmp_path / "set")
    first = packed(BlendedMVS(tmp_path / "set"), tmp_path / "first")
    again = packed(first, tmp_path / "again", scene_views=3)
    for shards in (first, again):
        assert (shards.label, shards.licence, shards.source) == ("blendedmvs", BlendedMVS.licence, BlendedMVS.source)
        batch = Data((Source("shards", str(shards.root)),)).batch(1, 0, Stage(1, 28, 28, (2,), 2), 0, 1)
        assert batch.ids[0].startswith("blendedmvs/") and good_surfaces(batch).all(), "losses know sets by name"


@pytest.mark.parametrize("name", ["dl3dv", "scannetpp", "wildrgbd"])
def test_pictures_and_maps_that_are_held_otherwise_than_their_cameras_are_refused(name: str, tmp_path: Path) -> None:
    tiny.write(name, tmp_path)
    frames = open_set(name, tmp_path)._frames_of(0)  # type: ignore[attr-defined]
    turned = [frame.depth if name == "wildrgbd" else frame.image for frame in frames]
    for path in turned:
        with Image.open(path) as picture:
            picture.transpose(Image.Transpose.ROTATE_90).save(path)
    with pytest.raises(InputError, match=rf"{turned[0].name} has 48 x 64 pixels.*; expected"):
        open_set(name, tmp_path).view(0, 0)
