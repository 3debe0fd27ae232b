"""Laws of similarity and depth alignment."""

import pytest
import torch

from lean3r.geometry import align
from lean3r.geometry.pose import camera_centers, invert_pose, make_pose
from lean3r.geometry.rotation import geodesic_angle, so3_exp
from lean3r.testing import assert_close, assert_finite_gradient

LEADS = [(), (2,), (1, 2)]


def random_similarity(lead=(), dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(*lead, 7, generator=generator, dtype=torch.float64).to(dtype)
    return align.Similarity(v[..., 6].exp(), so3_exp(v[..., :3]), v[..., 3:6])


def random_points(*shape, dtype=torch.float64, seed=11):
    return torch.randn(*shape, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("lead", LEADS)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_umeyama_recovers_a_similarity(lead, dtype, atol):
    truth, src = random_similarity(lead, dtype), random_points(*lead, 20, dtype=dtype)
    found = align.umeyama(src, truth.apply(src))
    for got, expected in zip(found, truth, strict=True):
        assert_close(got, expected, atol)
    assert_close(truth.inverse().apply(truth.apply(src)), src, atol)


def test_umeyama_is_equivariant():
    src, dst = random_points(3, 15), random_points(3, 15, seed=12)
    before, after = random_similarity((3,), seed=1), random_similarity((3,), seed=2)
    plain = align.umeyama(src, dst)
    moved = align.umeyama(before.apply(src), after.apply(dst))
    # Least squares is equivariant in the destination for any data, in the source up to its own similarity.
    assert_close(moved.apply(before.apply(src)), after.apply(plain.apply(src)), 1e-11)


def test_umeyama_excludes_reflections_and_takes_weights():
    src = random_points(30)
    mirrored = src * torch.tensor([1.0, 1.0, -1.0])
    assert torch.linalg.det(align.umeyama(src, mirrored).rotation).item() == pytest.approx(1.0)
    truth = random_similarity()
    dst = truth.apply(src)
    dst[:10] += 5
    weights = torch.ones(30)
    weights[:10] = 0
    assert_close(align.umeyama(src, dst, weights).rotation, truth.rotation, 1e-12)
    assert align.umeyama(src, dst, with_scale=False).scale.item() == 1


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_robust_umeyama_ignores_a_third_of_outliers(unit):
    truth, src = random_similarity((2,)), random_points(2, 60)
    dst = truth.apply(src) * unit
    dst[:, :20] = random_points(2, 20, seed=3) * 8 * unit
    found = align.umeyama_robust(src, dst)
    assert_close(found.rotation, truth.rotation, 1e-6)
    assert_close(found.scale / unit, truth.scale, 1e-6)


@pytest.mark.parametrize("views", [1, 2, 7])
def test_cameras_align_for_any_number_of_views(views):
    v = torch.randn(views, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    gt = make_pose(so3_exp(v[:, :3]), v[:, 3:])
    pred = random_similarity(seed=6).apply_to_poses(gt)
    aligned, fit = align.align_cameras(pred, gt)
    assert_close(aligned, gt, 1e-9)
    assert fit.scale.item() == pytest.approx(1.0 if views == 1 else 1 / random_similarity(seed=6).scale.item())


def test_cameras_on_a_line_keep_their_roll():
    centers = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0]], dtype=torch.float64)
    gt = invert_pose(make_pose(so3_exp(random_points(4)), centers))
    aligned, _ = align.align_cameras(random_similarity().apply_to_poses(gt), gt)
    assert geodesic_angle(aligned[:, :3, :3], gt[:, :3, :3]).max() < 1e-9
    assert_close(camera_centers(aligned), centers, 1e-9)


@pytest.mark.parametrize("method", ["median", "lstsq", "l1"])
@pytest.mark.parametrize("with_shift", [False, True])
def test_depth_alignment_recovers_and_obeys_the_mask(method, with_shift):
    pred = 1 + torch.rand(2, 501, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    truth = torch.tensor([0.25, 4.0], dtype=torch.float64)
    gt = truth[:, None] * pred + (0.5 if with_shift else 0.0)
    mask = torch.ones_like(pred, dtype=torch.bool)
    mask[:, ::5] = False
    gt[:, ::10], pred[:, 5::10] = torch.nan, -7.0
    scale, shift = align.align_depth(pred, gt, mask, method, with_shift)
    assert_close(scale, truth, 1e-10)
    assert_close(shift, torch.full_like(truth, 0.5 if with_shift else 0.0), 1e-10)


@pytest.mark.parametrize("with_shift", [False, True])
def test_l1_depth_alignment_ignores_outliers(with_shift):
    pred = 1 + torch.rand(400, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gt = 3 * pred
    gt[:120] *= 5
    scale, shift = align.align_depth(pred, gt, None, "l1", with_shift)
    assert scale.item() == pytest.approx(3, abs=1e-3) and abs(shift.item()) < 1e-3


def test_empty_mask_gives_nan():
    for method in ("median", "lstsq", "l1"):
        scale, _ = align.align_depth(torch.ones(9), torch.ones(9), torch.zeros(9, dtype=torch.bool), method)
        assert scale.isnan()


def test_umeyama_gradient_is_finite_at_perfect_match():
    src = random_points(10)
    assert_finite_gradient(lambda x: align.umeyama(x, src).apply(x), src)
