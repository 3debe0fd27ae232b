"""Our own scores: pose AUC with small baselines, AbsRel, and their errors."""

import math
import sys
import tracemalloc

import numpy as np
import pytest
import torch

from lean3r import eval as tables
from lean3r.errors import InputError, MissingExtraError, UsageError
from lean3r.eval import depth_errors, point_errors, pose_errors, trajectory
from lean3r.geometry.align import Similarity
from lean3r.geometry.pose import make_pose
from lean3r.geometry.rotation import so3_exp


def cameras(count: int, seed: int = 0) -> torch.Tensor:
    v = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return make_pose(so3_exp(v[:, :3]), v[:, 3:])


def similarity() -> Similarity:
    turn = so3_exp(torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64))
    return Similarity(torch.tensor(7.0).double(), turn, torch.tensor([1.0, 2.0, 3.0]).double())


def test_pose_auc_ignores_the_world_but_not_the_convention():
    gt = cameras(6)
    assert pose_errors.pose_auc(similarity().apply_to_poses(gt), gt) == {5: 1.0, 15: 1.0, 30: 1.0}
    wrong = pose_errors.pose_auc(torch.linalg.inv(similarity().apply_to_poses(gt)), torch.linalg.inv(gt))
    assert wrong[30] < 0.3


def test_pairs_with_a_small_baseline_are_scored_by_rotation():
    gt = cameras(4)
    still = make_pose(gt[:, :3, :3], torch.zeros(4, 3, dtype=torch.float64))
    assert pose_errors.pose_auc(gt, still)[30] == 0.0
    assert pose_errors.pose_auc(gt, still, small_baseline=1e-3)[30] == 1.0
    # With a length above every baseline, only rotations are scored.
    assert pose_errors.pose_auc(cameras(4, 1), gt, small_baseline=1e9)[30] == pytest.approx(
        pose_errors.auc_histogram(pose_errors.relative_pose_errors(cameras(4, 1), gt).rotation_deg, 30)
    )


def test_pose_auc_of_one_view_and_of_poses_that_are_not_finite():
    assert math.isnan(pose_errors.pose_auc(cameras(1), cameras(1))[5])
    assert pose_errors.pose_auc(torch.full((3, 4, 4), torch.nan), cameras(3))[30] == 0.0
    with pytest.raises(UsageError, match="one of each per view"):
        pose_errors.relative_pose_errors(cameras(2), cameras(3))


@pytest.mark.parametrize("alignment", ["median", "lstsq", "l1"])
def test_abs_rel_fits_one_scale_to_the_scene(alignment):
    gt = 1 + torch.rand(3, 7, 5, generator=torch.Generator().manual_seed(0))
    assert depth_errors.abs_rel(gt * 40, gt, alignment=alignment) < 1e-6
    per_view = gt * torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    assert depth_errors.abs_rel(per_view, gt, alignment=alignment) > 0.1


def test_abs_rel_masks_and_fails_visibly():
    gt = torch.full((2, 4, 4), 2.0)
    pred = gt * 1.25
    assert depth_errors.abs_rel(pred, gt, alignment="none") == pytest.approx(0.25)
    gt[0, 0], pred[1, 0] = 0, torch.nan
    valid = torch.ones_like(gt, dtype=torch.bool)
    assert math.isnan(depth_errors.abs_rel(pred, gt, valid))
    valid[1, 0] = False
    assert depth_errors.abs_rel(pred, gt, valid) == pytest.approx(0.0, abs=1e-7)
    assert math.isnan(depth_errors.abs_rel(pred, gt, ~torch.ones_like(valid)))


def test_trajectory_is_exact_after_a_similarity_and_refuses_two_views():
    gt = cameras(9)
    errors = trajectory.trajectory_errors(similarity().apply_to_poses(gt), gt)
    assert max(errors.ate.max(), errors.rpe_trans.max(), errors.rotation_deg.max()) < 1e-9
    with pytest.raises(InputError, match="rank 1"):
        trajectory.trajectory_errors(gt[:2], gt[:2])


def test_association_by_time_picks_the_nearest_on_either_side():
    slow, fast = np.array([0.0, 0.1, 0.2]), np.arange(0, 0.3, 0.05) + 0.002
    i, j = trajectory.associate(slow, fast)
    assert (i.tolist(), j.tolist()) == ([0, 1, 2], [0, 2, 4])
    j, i = trajectory.associate(fast, slow)
    assert (i.tolist(), j.tolist()) == ([0, 1, 2], [0, 2, 4])


def by_all_gaps(ours: np.ndarray, theirs: np.ndarray, max_gap_s: float) -> list[tuple[int, int]]:
    """Pairs (ours, theirs) by the table of all gaps; `ours` is the shorter list."""
    gap = np.abs(theirs[None] - ours[:, None])
    return [(i, int(row.argmin())) for i, row in enumerate(gap) if row.min() <= max_gap_s]


@pytest.mark.parametrize("seed", range(20))
def test_association_is_that_of_all_gaps(seed):
    """Lists on a grid that floats hold exactly, so with ties and repeated times, sorted or not, and with gaps."""
    rng = np.random.default_rng(seed)
    ours, theirs = rng.integers(0, 60, 25) / 64, rng.integers(0, 60, 40 if seed % 2 else 25) / 64
    theirs = np.sort(theirs) if seed % 3 else theirs
    i, j = trajectory.associate(ours, theirs, 2 / 64)
    assert list(zip(i.tolist(), j.tolist(), strict=True)) == by_all_gaps(ours, theirs, 2 / 64)
    j, i = trajectory.associate(np.append(theirs, [9.0, 8.0]), ours, 2 / 64)
    assert list(zip(i.tolist(), j.tolist(), strict=True)) == by_all_gaps(ours, np.append(theirs, [9.0, 8.0]), 2 / 64)


def test_association_of_long_lists_takes_no_table():
    """A table of 20,000 x 25,000 gaps has 4 GB."""
    slow, fast = np.arange(20_000) * 0.1, np.arange(25_000) * 0.08 + 0.03
    tracemalloc.start()
    i, j = trajectory.associate(slow, fast, 0.011)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    some = slice(1000, 1200)
    assert peak < 20e6 and 0 < len(i) < len(slow)
    assert [p for p in zip(i.tolist(), j.tolist(), strict=True) if 1000 <= p[0] < 1200] == [
        (a + 1000, b) for a, b in by_all_gaps(slow[some], fast, 0.011)
    ]
    empty = trajectory.associate(np.zeros(0), fast)
    assert [len(part) for part in (*empty, *trajectory.associate(np.zeros(0), np.zeros(0)))] == [0] * 4


def test_points_without_scipy_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.spatial", None)
    with pytest.raises(MissingExtraError, match=r"lean3r\[eval\]"):
        point_errors.nearest(np.zeros((1, 3)), np.zeros((1, 3)))


def test_every_entry_of_the_registries_exists():
    for table in (tables.POSE_CONVENTIONS, tables.DEPTH_ALIGNMENTS):
        assert all(callable(table.get(name)) for name in table)
