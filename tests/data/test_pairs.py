"""Lite3R's pairs: every scene once an epoch, parts that do not overlap, crops with exact cameras, bad scenes named."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data import tiny

from lean3r.data.base import SceneBatch
from lean3r.data.sampling.lite3r import Pairs, in_unit, prepare, selected
from lean3r.data.sampling.mixture import BatchShape
from lean3r.data.sets.blendedmvs import BlendedMVS
from lean3r.data.sets.formats.mvsnet import read_range
from lean3r.data.sets.scenes import RawView
from lean3r.errors import InputError, UsageError
from lean3r.eval.lite3r import lite3r_evaluation, mean_scores
from lean3r.geometry.pose import invert_pose
from lean3r.geometry.rotation import so3_exp
from lean3r.models.vggt import Vggt
from lean3r.train.recipes.sources import Data, Source

SHAPE = BatchShape(1, 2, 56, 56)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    tiny.write("blendedmvs", folder)
    return folder


@pytest.mark.parametrize("count", [1, 3, 4, 113, 500])
def test_scenes_for_training_and_for_evaluation_are_different(count: int) -> None:
    train, test, both = (set(selected(count, part)) for part in ("train", "test", "all"))
    assert not train & test and train | test == both == set(range(count))
    assert len(test) == min(32, count // 4)


def test_an_epoch_has_every_scene_once_and_depends_on_seeds_alone(root: Path) -> None:
    scenes = BlendedMVS(root)
    pairs = Pairs([scenes, scenes], part="all")
    epochs = [[pairs.draw(e * len(pairs) + n, 2) for n in range(len(pairs))] for e in range(8)]
    assert all(sorted(place for place, _ in epoch) == list(range(len(pairs))) for epoch in epochs)
    assert len({tuple(place for place, _ in epoch) for epoch in epochs}) > 1, "shuffled anew"
    again = pickle.loads(pickle.dumps(pairs))
    assert again.draw(len(pairs) + 1, 2) == epochs[1][1], "later samples may be asked for first"
    assert all(len(set(views)) == 2 for epoch in epochs for _, views in epoch)
    one, two = pairs.batch(3, SHAPE, 1, 2), again.batch(7, SHAPE)
    assert one.ids == two.ids and torch.equal(one.images, two.images), "two processes see what one sees"


def test_data_of_pairs_are_those_of_the_sets_without_weights(root: Path) -> None:
    data = Data((Source("blendedmvs", str(root)),), drawn="pairs-as-released")
    assert data.scenes() == len(BlendedMVS(root)) and data.as_dict()["drawn"] == "pairs-as-released"
    for source in (Source("synthetic"), Source("blendedmvs", str(root), 2.0)):
        with pytest.raises(UsageError, match=f"one sample of every scene.*{source.name}"):
            Data((source,), drawn="pairs")


def test_scenes_without_depth_are_replaced_and_a_set_without_any_is_an_error(tmp_path: Path) -> None:
    tiny.write("blendedmvs", tmp_path)
    first, *others = sorted(path for path in tmp_path.iterdir() if path.is_dir())

    def empty(scene: Path) -> None:
        for file in (scene / "rendered_depth_maps").iterdir():
            data = bytearray(file.read_bytes())
            start = data.index(b"\n", data.index(b"\n", data.index(b"\n") + 1) + 1) + 1
            file.write_bytes(data[:start] + bytes(len(data) - start))

    empty(first)
    pairs = Pairs([BlendedMVS(tmp_path)], part="all", order=None)
    batch = pairs.batch(0, SHAPE)
    assert batch.depth.any() and any(first.name in why and "0 pixels" in why for why in batch.skipped)
    for scene in others:
        empty(scene)
    with pytest.raises(InputError, match=r"50 of 50 samples.*fewer than 100.*needs depth.*data check"):
        Pairs([BlendedMVS(tmp_path)], part="all").batch(0, SHAPE)


def test_a_crop_keeps_the_pixels_that_its_camera_says() -> None:
    rows, cols = 40, 64
    depth = np.tile(np.arange(1, cols + 1, dtype=np.float32), (rows, 1))
    depth[0, 0] = np.inf
    depth[:, -1] = 1000.0
    k = np.array([[50.0, 0, 32.5], [0, 50.0, 20.5], [0, 0, 1]])
    view, unknown = prepare(RawView(np.zeros((rows, cols, 3), np.uint8), depth, k, np.eye(4)), None, 40, 40)
    assert view.image.shape == (40, 40, 3) and unknown == 0, "the infinite pixel is outside of the crop"
    np.testing.assert_allclose(view.intrinsics[:2, 2], [20.5, 20.5])
    np.testing.assert_array_equal(view.depth[0], np.arange(13, 53))
    limited, _ = prepare(RawView(view.image, view.depth, k, np.eye(4)), (40.0, 30.0), 40, 40)
    assert set(np.unique(limited.depth)) == {0.0, *range(20, 46)}, "half the nearest to one and a half of the farthest"
    far, _ = prepare(RawView(np.zeros((rows, cols, 3), np.uint8), depth, k, np.eye(4)), None, 40, 64)
    assert not far.depth[:, -1].any() and not far.depth[0, 0], "more than five medians, or infinite"


def test_units_do_not_depend_on_the_world_unless_as_released() -> None:
    generator = torch.Generator().manual_seed(0)
    batch = tiny_batch(generator)
    moved = batch.cam_from_world @ invert_pose(tiny_pose(generator))[None, None]
    ours, theirs = (in_unit(b) for b in (batch, replace_cameras(batch, moved)))
    torch.testing.assert_close(ours.cam_from_world, theirs.cam_from_world, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.depth, theirs.depth)
    torch.testing.assert_close(ours.cam_from_world[:, 0], torch.eye(4)[None], atol=1e-6, rtol=0)
    released = in_unit(replace_cameras(batch, moved), relative=False)
    assert (released.cam_from_world[:, 0] - torch.eye(4)).abs().max() > 0.1


def test_the_evaluation_scores_a_pair_of_every_scene(root: Path) -> None:
    torch.manual_seed(0)
    model = Vggt(Vggt.SMALLEST).eval()
    pairs = Pairs([BlendedMVS(root)], part="all", order=None, as_released=True)
    scores = lite3r_evaluation(model, pairs, "vggt", size=56)
    assert len(scores) == len(pairs) and all(math.isfinite(value) for score in scores for value in score.values())
    assert mean_scores(scores)["abs_rel"] == pytest.approx(np.mean([score["abs_rel"] for score in scores]))
    (first,) = lite3r_evaluation(model, pairs, "vggt", size=56, most=1)
    assert first == scores[0]
    with pytest.raises(UsageError, match=r"'vgg'.*one of vggt, da3, da3-as-released"):
        lite3r_evaluation(model, pairs, "vgg", size=56)


def test_ranges_of_camera_files(tmp_path: Path) -> None:
    path, head = tmp_path / "cam.txt", "extrinsic\n" + "1 " * 16 + "\nintrinsic\n" + "1 " * 9 + "\n"
    for line, right, released in (
        ("0.5 0.25", (0.5, 48.5), (0.5, 48.5)),
        ("0.5 0.25 128", (0.5, 48.5), (0.5, 48.5)),
        ("0.5 0.25 128 32.25", (0.5, 32.25), (0.5, 128.0)),
        ("", None, None),
    ):
        path.write_text(head + line)
        assert read_range(path) == right and read_range(path, as_released=True) == released
    path.write_text("no camera")
    with pytest.raises(InputError, match="not a camera file"):
        read_range(path)


def tiny_pose(generator: torch.Generator) -> torch.Tensor:
    """A random rigid pose [4, 4]."""
    pose = torch.eye(4)
    pose[:3, :3] = so3_exp(torch.randn(3, generator=generator))
    pose[:3, 3] = torch.randn(3, generator=generator)
    return pose


def tiny_batch(generator: torch.Generator) -> SceneBatch:
    """Random cameras and depth."""
    poses = torch.stack([tiny_pose(generator) for _ in range(2)])[None]
    depth = 1 + torch.rand(1, 2, 12, 16, generator=generator)
    return SceneBatch(torch.zeros(1, 2, 3, 12, 16), depth, torch.eye(3).expand(1, 2, 3, 3), poses)


def replace_cameras(batch: SceneBatch, cam_from_world: torch.Tensor) -> SceneBatch:
    """The batch with other cameras."""
    return replace(batch, cam_from_world=cam_from_world)
