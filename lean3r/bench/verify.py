"""Outputs before times: are they finite, are they those of the reference, and if not, how near?"""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor

from lean3r.bench.official import AGREE, Outputs, signed_log
from lean3r.errors import LeanError
from lean3r.testing import snr_db

MOST_VIEWS = 16  # whose outputs are compared, evenly spaced
EQUAL_DB = 200.0
"""Decibels of equal outputs, which have no ratio."""
HALF_DB = 35.0
"""The least between two forms of the same dense attention in half precision."""
LOGARITHMS = ("depth", "conf", "points")  # outputs with one of these in their names are compared as sign log(1 + |x|)


def check_finite(outputs: Outputs) -> None:
    """LeanError that names the first output with NaN or infinity."""
    for name, value in outputs.items():
        if not bool(torch.isfinite(value).all()):
            raise LeanError(f"its output '{name}' is not finite")


def sample(outputs: Outputs) -> Outputs:
    """The outputs of at most MOST_VIEWS views, as they are compared."""
    found = {}
    for name, value in outputs.items():
        if value.ndim >= 2:
            views = torch.linspace(0, value.shape[1] - 1, min(MOST_VIEWS, value.shape[1])).long()
            value = value[:, views.to(value.device)]
        value = value.detach().float().cpu()
        found[name] = signed_log(value) if any(word in name for word in LOGARITHMS) else value.clone()
    return found


def save(outputs: Outputs, path: Path) -> None:
    """Keep outputs for `read`; OSError if the disk is full, of which torch's own writer does not speak."""
    content = io.BytesIO()
    torch.save(outputs, content)
    path.write_bytes(content.getbuffer())


def read(path: Path) -> Outputs:
    """Outputs of `save`."""
    return torch.load(path, weights_only=True)


def decibels(actual: Outputs, expected: Outputs) -> dict[str, float]:
    """RMS of the expected output over that of the difference, in decibels, by output that both have."""
    return {
        name: round(max(-EQUAL_DB, min(EQUAL_DB, snr_db(actual[name], value))), 1)
        for name, value in expected.items()
        if name in actual and _alike(actual[name], value)
    }


def _alike(actual: Tensor, expected: Tensor) -> bool:
    if actual.shape != expected.shape:
        raise LeanError(f"an output has shape {list(actual.shape)}, that of the reference {list(expected.shape)}")
    return True


def check_equal(found: dict[str, float], dtype: torch.dtype) -> None:
    """LeanError unless all outputs are those of the reference up to rounding."""
    least = -20 * torch.tensor(AGREE).log10().item() if dtype == torch.float32 else HALF_DB
    worst = min(found, key=found.__getitem__, default="")
    if not found or not found[worst] >= least:
        raise LeanError(
            f"its outputs differ from the dense model's ({worst}: {found.get(worst)} dB, {least:.0f} needed)"
        )
