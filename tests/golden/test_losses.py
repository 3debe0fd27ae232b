"""Losses against golden arrays: attention-output distillation (Lite3R) and point distillation (Speed3R)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from golden_numbers import golden_folder

from lean3r.compress.distill import attention_loss, gamma
from lean3r.testing import assert_close
from lean3r.train.losses.geometry import geometry_loss

LIMIT = 1e-6
SIGN_LEAK = 2e-2  # of the largest gradient: what one coordinate of free sign changes in all others


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder: Path = golden_folder(metafunc.config) / "attention"
    absent = pytest.mark.skip(reason=f"no golden numbers at {folder}: name their folder with --golden DIR")
    kind = "kd_loss" if "attention" in metafunc.function.__name__ else "speed3r_loss"
    rows = [pytest.param(path, id=path.stem) for path in sorted(folder.glob(f"{kind}_*.npz"))]
    if "path" not in metafunc.fixturenames:
        return
    metafunc.parametrize("path", rows or [pytest.param(folder, id="absent", marks=absent)])
    if "dtype" in metafunc.fixturenames:
        metafunc.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


def test_attention_distillation(path: Path) -> None:
    arrays = dict(np.load(path))

    def series(kind: str) -> list[torch.Tensor]:
        count = sum(name.startswith(f"{kind}_") for name in arrays)
        return [torch.from_numpy(arrays[f"{kind}_{i}"]) for i in range(count)]

    student, teacher = [s.clone().requires_grad_() for s in series("student")], series("teacher")
    found = attention_loss(student, [t.requires_grad_() for t in teacher])
    assert found.loss.item() == pytest.approx(arrays["loss"].item(), rel=LIMIT)
    assert [value.item() for value in found.per_layer] == pytest.approx(arrays["per_layer"].tolist(), rel=LIMIT)
    assert list(found.layers) == arrays["used_layers"].tolist()
    found.loss.backward()
    for leaf, expected in zip(student, series("grad_student"), strict=True):
        grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        assert_close(grad, expected, LIMIT * expected.abs().max().item())
    assert all(t.grad is None for t in teacher)
    for name in [name for name in arrays if name.endswith("_total_max_min")]:
        prefix = name.removesuffix("_total_max_min")
        total, highest, lowest = arrays[name].tolist()
        ours = [gamma(step, int(total), highest=highest, lowest=lowest) for step in arrays[f"{prefix}_step"].tolist()]
        assert ours == pytest.approx(arrays[f"{prefix}_gamma"].tolist(), rel=1e-12)


def test_point_distillation(path: Path, dtype: torch.dtype) -> None:
    arrays = {name: torch.from_numpy(np.asarray(value)) for name, value in np.load(path).items()}
    points = arrays["pred_local_points"].to(dtype).requires_grad_()
    poses = arrays["pred_camera_poses"].to(dtype).requires_grad_()
    teacher = [arrays[f"teacher_{name}"].to(dtype).requires_grad_() for name in ("local_points", "camera_poses")]
    found = geometry_loss(points, poses, *teacher, arrays["valid_mask"].bool(), arrays["dataset_has_normal"].bool())
    limit = 1e-6 if dtype == torch.float64 else 5e-6
    for name, ours in {
        "total": found.total,
        "local_points_loss": found.points,
        "normal_loss": found.normals,
        "trans_loss": found.translation,
        "rot_loss": found.rotation,
        "scale": found.scale,
        "pred_norm": found.student_size,
        "teacher_norm": found.teacher_size,
    }.items():
        assert ours.detach().double().numpy() == pytest.approx(arrays[name].numpy(), rel=limit), name
    found.total.backward()
    assert all(t.grad is None for t in teacher)
    for leaf, name in ((poses, "grad_pred_camera_poses"), (points, "grad_pred_local_points")):
        assert leaf.grad is not None
        expected = arrays[name].double()
        error = (leaf.grad.double() - expected).abs() / expected.abs().max()
        if dtype == torch.float64:
            assert error.max() < LIMIT, name
        else:  # round-off decides signs and clamps at single coordinates
            sure = error[arrays["grad_points_comparable"].bool()] if leaf is points else error
            assert sure.quantile(0.99) < 1e-5 and error.max() < SIGN_LEAK, name


def test_scenes_without_a_known_pixel_and_single_views_cost_nothing_but_stay_differentiable() -> None:
    points = torch.rand(1, 1, 6, 8, 3).add(0.5).requires_grad_()
    poses = torch.eye(4).expand(1, 1, 4, 4).clone().requires_grad_()
    nothing = torch.zeros(1, 1, 6, 8, dtype=torch.bool)
    found = geometry_loss(points, poses, points.detach(), poses.detach(), nothing, torch.tensor([False]))
    found.total.backward()
    assert found.total.item() == 0 and found.scale.item() == 1
    assert points.grad is not None and poses.grad is not None
    assert points.grad.isfinite().all() and poses.grad.isfinite().all()
