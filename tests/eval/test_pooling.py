"""Pooling: the errors of drawn rows are averaged as if they lay in one list, in every resample."""

from __future__ import annotations

import numpy as np
import pytest

from lean3r.eval.pose_errors import auc_histogram, auc_trapezoid
from lean3r.eval.protocols.base import Over, Row, curve_of
from lean3r.eval.protocols.pooling import EXACT_AT, pooling

RNG = np.random.default_rng(0)
ERRORS = [RNG.exponential(scale, size) for scale, size in ((2, 3), (9, 40), (30, 1), (5, 12), (1, 0))]
ERRORS[1][:2] = np.nan, np.inf
GROUPS = "abbca"
WEIGHTS = (1.0, 7.0, 0.0, 2.0, 3.0)
ABS_REL = (4.0, None, 9.0, 1.0, 2.0)
COUNTS = np.array([[1, 1, 1, 1, 1], [0, 2, 0, 3, 0], [4, 0, 0, 0, 1], [0, 0, 0, 0, 5]])


def rows() -> list[Row]:
    return [
        {
            "id": str(n),
            "group": GROUPS[n],
            "figures": {"abs_rel": ABS_REL[n]},
            "curves": {"pose_deg": curve_of(ERRORS[n])},
            "errors": {"pose_deg": np.nan_to_num(ERRORS[n], nan=180, posinf=180).tolist()},
            "weight": WEIGHTS[n],
            "seconds": None,
            "network_seconds": None,
            "cpu_seconds": None,
            "peak_memory_mb": None,
            "error": None,
            "problems": [],
            "picture": None,
        }
        for n in range(5)
    ]


def drawn(count: np.ndarray, group: str = "abc") -> np.ndarray:
    """The errors of one resample's rows of some groups, in one list."""
    lists = [ERRORS[n] for n in range(5) for _ in range(count[n]) if GROUPS[n] in group]
    return np.concatenate(lists) if lists else np.empty(0)


def area(errors: np.ndarray) -> float:
    return 100 * auc_histogram(errors, 30) if len(errors) else np.nan


@pytest.mark.parametrize("over", ["pairs", "groups"])
def test_areas_are_those_of_all_drawn_errors(over: Over) -> None:
    found = pooling(over)(rows(), COUNTS)
    for draw, count in enumerate(COUNTS):
        groups = ("abc",) if over == "pairs" else sorted({GROUPS[n] for n in range(5) if count[n]})
        expected = np.mean([area(drawn(count, group)) for group in groups])
        assert found["auc30"][draw] == pytest.approx(expected, nan_ok=True)
    finite = np.nan_to_num(drawn(COUNTS[1]), nan=180, posinf=180)
    for threshold in EXACT_AT:
        assert found[f"auc{threshold}_exact"][1] == pytest.approx(100 * auc_trapezoid(finite, threshold))


@pytest.mark.parametrize("weighted", [False, True])
def test_means_are_over_drawn_rows_that_have_a_number(weighted: bool) -> None:
    found = pooling(weighted=weighted)(rows(), COUNTS)
    assert list(found) == ["abs_rel"]
    for draw, count in enumerate(COUNTS):
        known = [n for n in range(5) for _ in range(count[n]) if ABS_REL[n] is not None]
        weights = [WEIGHTS[n] if weighted else 1.0 for n in known]
        assert found["abs_rel"][draw] == pytest.approx(np.average([ABS_REL[n] for n in known], weights=weights))


def test_failed_rows_are_left_out() -> None:
    some = rows()
    some[1]["error"] = "broken"
    without = pooling("pairs")([some[0], *some[2:]], np.delete(COUNTS, 1, axis=1))
    for name, values in pooling("pairs")(some, COUNTS).items():
        np.testing.assert_array_equal(values, without[name])
    assert pooling("groups")([{**row, "error": "broken"} for row in some], COUNTS) == {}
