"""Pieces and boundary loops of meshes against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest

from lean3r.geometry.surface import boundary_loops, pieces

TETRAHEDRON = np.array([[0, 1, 2], [0, 2, 3], [0, 3, 1], [1, 3, 2]])


def grid(side: int, without: tuple[tuple[int, int], ...] = ()) -> np.ndarray:
    """Triangles of side x side squares, without some squares."""
    squares = [(r, c) for r in range(side) for c in range(side) if (r, c) not in without]
    at = np.array([r * (side + 1) + c for r, c in squares])
    down = side + 1
    return np.concatenate(
        [np.stack([at, at + 1, at + down + 1], axis=1), np.stack([at, at + down + 1, at + down], axis=1)]
    )


SURFACES = {
    "nothing": (np.zeros((0, 3), int), 0, 0),
    "closed": (TETRAHEDRON, 1, 0),
    "one triangle": (TETRAHEDRON[:1], 1, 1),
    "a hole in a closed one": (TETRAHEDRON[1:], 1, 1),
    "a sheet": (grid(4), 1, 1),
    "two holes": (grid(7, ((1, 1), (4, 4))), 1, 3),
    "holes with one vertex between them": (grid(6, ((2, 2), (3, 3))), 1, 2),
    "two sheets": (np.concatenate([grid(3), grid(3) + 16]), 2, 2),
    "two closed ones that touch in a vertex": (np.concatenate([TETRAHEDRON, TETRAHEDRON[:, ::-1] + 3]), 1, 0),
    "two triangles that touch in a vertex": (np.array([[0, 1, 2], [0, 3, 4]]), 1, 2),
    "flipped": (np.array([[0, 1, 2], [0, 1, 3]]), 1, 1),
}


@pytest.mark.parametrize("name", SURFACES)
def test_pieces_and_loops_are_counted(name):
    faces, count, loops = SURFACES[name]
    order = np.random.default_rng(0).permutation(len(faces))
    assert boundary_loops(faces[order]) == loops
    found, of_face = pieces(faces, 100)
    assert found == count and sorted(set(of_face)) == list(range(count))


def test_surfaces_that_are_no_manifolds_have_a_number_too():
    fins = np.array([[0, 1, 2], [0, 1, 3], [0, 1, 4]])
    assert boundary_loops(fins) >= 1
    assert boundary_loops(np.random.default_rng(0).integers(0, 50, (200, 3))) >= 0
