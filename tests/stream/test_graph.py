"""The pose graph: exact where edges agree, drift shared out where a loop closes, false loops without weight."""

from __future__ import annotations

import numpy as np
import pytest

from lean3r.stream import graph, sim3
from lean3r.stream.graph import Edge, off, solve


def chain(count: int, drift: float, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray], list[Edge]]:
    """True placements of windows on a circle, those of joins that drift, and the joins."""
    rng = np.random.default_rng(seed)
    true = []
    for angle in np.linspace(0, 2 * np.pi, count):
        turn = sim3.exp(np.array([0, angle, 0, 0, 0, 0, 0]))[:3, :3]
        true.append(
            sim3.make(float(np.exp(0.3 * np.sin(angle))), turn, 5 * np.array([np.sin(angle), 0, np.cos(angle)]))
        )
    true = [np.linalg.inv(true[0]) @ each for each in true]
    found, edges = [true[0]], []
    for index in range(1, count):
        join = np.linalg.inv(true[index - 1]) @ true[index] @ sim3.exp(drift * rng.standard_normal(7))
        found.append(found[-1] @ join)
        edges.append(edge(index - 1, index, join))
    return true, found, edges


def edge(first: int, second: int, matrix: np.ndarray, *, is_loop: bool = False) -> Edge:
    """An edge with usual standard deviations."""
    return Edge(first, second, matrix, np.array([0.1, 0, 0.5]), 0.01, 0.02, 0.01, is_loop)


def error(found: list[np.ndarray], true: list[np.ndarray]) -> float:
    """The largest distance between the origins of windows."""
    return float(np.linalg.norm(np.stack(found)[:, :3, 3] - np.stack(true)[:, :3, 3], axis=1).max())


def test_edges_that_agree_move_nothing() -> None:
    true, found, edges = chain(12, 0.0)
    edges.append(edge(0, 11, np.linalg.inv(true[0]) @ true[11], is_loop=True))
    assert error(solve(found, edges), true) < 1e-9


def test_a_loop_takes_most_of_the_drift_away() -> None:
    before, after = [], []
    for seed in range(8):
        true, found, edges = chain(30, 0.01, seed)
        edges.append(edge(0, 29, np.linalg.inv(true[0]) @ true[29], is_loop=True))
        solved = solve(found, edges)
        assert np.allclose(solved[0], found[0])
        assert np.linalg.norm(off(edges[-1], solved)) < 0.2 * np.linalg.norm(off(edges[-1], found))
        before.append(error(found, true))
        after.append(error(solved, true))
    assert np.mean(after) < 0.5 * np.mean(before)


def test_windows_that_bend_more_than_usual_still_follow_a_loop() -> None:
    """Two joins, one of which is nine standard deviations off, and a loop: half of it stays in the loop."""
    true, found, edges = chain(3, 0.0)
    turn = sim3.exp(np.array([0.06, 0, 0.05, 0, 0, 0, 0.04]))
    edges[1] = edge(1, 2, edges[1].matrix @ turn)
    found[2] = found[1] @ edges[1].matrix
    edges.append(edge(0, 2, np.linalg.inv(true[0]) @ true[2], is_loop=True))
    solved = solve(found, edges)
    assert np.linalg.norm(off(edges[-1], solved)) < 0.6 * np.linalg.norm(off(edges[-1], found))


def test_what_is_long_ago_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "FREE", 10)
    true, found, edges = chain(30, 0.005)
    edges.append(edge(2, 29, np.linalg.inv(true[2]) @ true[29], is_loop=True))
    solved = solve(found, edges)
    assert all(np.array_equal(a, b) for a, b in zip(solved[:20], found[:20], strict=True))
    assert not np.allclose(solved[25], found[25])
    assert np.linalg.norm(off(edges[-1], solved)) < 0.5 * np.linalg.norm(off(edges[-1], found))


def test_a_false_loop_between_true_ones_counts_for_nothing() -> None:
    true, found, edges = chain(30, 0.003)
    for first, second in ((0, 29), (1, 28), (3, 27)):
        edges.append(edge(first, second, np.linalg.inv(true[first]) @ true[second], is_loop=True))
    without = solve(found, edges)
    wrong = edge(5, 20, sim3.exp(np.array([0.4, 1.0, 0, 3.0, 2.0, 1.0, 0.5])), is_loop=True)
    assert error(solve(found, [*edges, wrong]), without) < 0.05


@pytest.mark.parametrize("turn_rad", [(0.3, -0.2, 0.1), (0.0, 1.8, 0.0), (0.1, 3.1, 0.2)])
def test_an_edge_without_certainty_gives_way(turn_rad: tuple[float, float, float]) -> None:
    """A join that failed: a loop puts what follows right, though it may look the other way."""
    true, found, edges = chain(10, 0.0)
    guess = edges[4].matrix @ sim3.exp(np.array([*turn_rad, 2, 1, 0, 0.4]))
    edges[4] = Edge(4, 5, guess, np.zeros(3), 0.9, 30.0, 3.0, is_failed=True)
    found = [found[0]]
    for each in edges:
        found.append(found[-1] @ each.matrix)
    edges.append(edge(2, 8, np.linalg.inv(true[2]) @ true[8], is_loop=True))
    assert error(solve(found, edges), true) < 0.02
