"""Checks of the golden files of Lite3R's release, a module per topic.

A module exports CASES: {prefix of the file name: check}, where check(path) asserts that ours agrees with the .npz (or
other) file and with the .json beside it, if there is one. Shapes and settings come from the files.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Check = Callable[[Path], None]


class Golden:
    """The arrays of a file and the settings of the .json beside it."""

    def __init__(self, path: Path):
        with np.load(path, allow_pickle=False) as archive:
            self.arrays: dict[str, np.ndarray] = dict(archive)
        self.settings: dict[str, Any] = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]


def compare(actual: Any, expected: np.ndarray, limit: float, what: str) -> None:
    """Fail unless both agree within `limit` of the largest finite magnitude of `expected`; NaN only where expected."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    finite = np.abs(expected[np.isfinite(expected)])
    np.testing.assert_allclose(
        actual, expected, rtol=0, atol=limit * finite.max(initial=0.0), equal_nan=True, err_msg=what
    )
