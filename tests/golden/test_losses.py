"""Losses against golden arrays: attention-output distillation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lean3r.compress.distill import attention_loss, gamma
from lean3r.testing import assert_close

LIMIT = 1e-6


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder: Path = (metafunc.config.rootpath / metafunc.config.getoption("--golden")).resolve() / "attention"
    not_built = pytest.mark.skip(reason="Speed3R's distillation loss is not built yet")
    absent = pytest.mark.skip(reason=f"no golden numbers at {folder}: name their folder with --golden DIR")
    rows = [pytest.param(path, id=path.stem) for path in sorted(folder.glob("kd_loss_*.npz"))]
    rows += [pytest.param(p, id=p.stem, marks=not_built) for p in sorted(folder.glob("speed3r_loss_*.npz"))]
    metafunc.parametrize("path", rows or [pytest.param(folder, id="absent", marks=absent)])


def test_golden(path: Path) -> None:
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
