"""Error measures and assertions for tests of numerical code."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def rms_ratio(actual: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference over that of `expected` (0 for equal zeros, inf for others; NaN stays)."""
    difference = (actual.double() - expected.double()).square().mean().sqrt().item()
    reference = expected.double().square().mean().sqrt().item()
    if reference == 0:
        return 0.0 if difference == 0 else difference * math.inf
    return difference / reference


def snr_db(actual: Tensor, expected: Tensor) -> float:
    """Signal-to-noise ratio in decibels: -20 log10 of `rms_ratio`."""
    ratio = rms_ratio(actual, expected)
    return math.inf if ratio == 0 else -20 * math.log10(ratio)


def assert_rms(actual: Tensor, expected: Tensor, max_ratio: float) -> None:
    """Fail unless the shapes agree and `rms_ratio` is at most `max_ratio`."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    ratio = rms_ratio(actual, expected)
    assert ratio <= max_ratio, f"rms ratio {ratio:.3g}, expected at most {max_ratio:.3g}"


def assert_close(actual: Tensor, expected: Tensor, atol: float) -> None:
    """Fail unless the shapes agree and no element differs by more than `atol`; NaN fails."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if actual.numel():
        worst = (actual.double() - expected.double()).abs().max().item()
        assert worst <= atol, f"largest difference {worst:.3g}, expected at most {atol:.3g}"


def assert_finite_gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Fail unless the gradient of the sum of `function` at `at` is finite; return that gradient."""
    leaf = at.detach().clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(function(leaf).sum(), leaf)
    assert gradient.isfinite().all(), f"gradient not finite at {at.tolist()}"
    return gradient
