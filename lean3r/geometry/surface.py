"""Triangle meshes: pieces, holes and normals."""

from __future__ import annotations

import numpy as np

from lean3r.geometry.consistency import unit


def pieces(faces: np.ndarray, vertices: int) -> tuple[int, np.ndarray]:
    """How many pieces share no vertex, and the piece [F] of each face; faces [F, 3] of so many vertices."""
    count, label = _components(faces[:, :2].ravel(), faces[:, 1:].ravel(), vertices)
    used = label[faces[:, 0]]
    kept = np.zeros(count, bool)
    kept[used] = True
    return int(kept.sum()), (np.cumsum(kept) - 1)[used]


def boundary_loops(faces: np.ndarray) -> int:
    """How many closed loops the edges of faces [F, 3] that have one face form: holes, and the rims of open surfaces.

    Surfaces that only touch in a vertex are taken to be apart there. Surfaces that are no manifolds have a number too.
    """
    if not len(faces):
        return 0
    corners = np.arange(faces.size)  # corner 3 f + k is vertex k of face f
    following = corners - corners % 3 + (corners + 1) % 3
    at = faces.ravel()
    start, end = np.minimum(at, at[following]), np.maximum(at, at[following])
    order = np.lexsort((end, start))
    same = (np.diff(start[order]) == 0) & (np.diff(end[order]) == 0)
    alone = ~np.append(same, False) & ~np.append(False, same)
    if not alone.any():
        return 0
    # Faces meet in an edge at two vertices: joining their corners there splits a vertex where fans of faces only touch.
    first, second = order[:-1][same], order[1:][same]
    alike = at[first] == at[second]
    joined = [
        (first, np.where(alike, second, following[second])),
        (following[first], np.where(alike, following[second], second)),
    ]
    starts, ends = (np.concatenate(side) for side in zip(*joined, strict=True))
    _, fan = _components(starts, ends, faces.size)
    rim = order[alone]
    _, loop = _components(fan[rim], fan[following[rim]], int(fan.max()) + 1)
    return len(np.unique(loop[fan[rim]]))


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals [V, 3] of a mesh: means of the adjacent faces' normals, weighted by the angles at the vertex.

    Source: Thürrner and Wüthrich, 1998. vertices [V, 3], faces [F, 3].
    """
    corners = vertices[faces]
    sides = np.roll(corners, -1, axis=1) - corners  # from each corner to the next
    normal = unit(np.cross(sides[:, 0], sides[:, 1]))
    cosine = -np.einsum("fkc,fkc->fk", unit(sides), unit(np.roll(sides, 1, axis=1)))
    share = np.arccos(cosine.clip(-1, 1))[..., None] * normal[:, None]
    at = faces.ravel()
    return unit(np.stack([np.bincount(at, share[..., c].ravel(), len(vertices)) for c in range(3)], axis=1))


def _components(start: np.ndarray, end: np.ndarray, count: int) -> tuple[int, np.ndarray]:
    """How many components a graph of `count` nodes has, and that of each node; edges lead from `start` to `end`."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = coo_array((np.ones(len(start), bool), (start, end)), (count,) * 2)
    return connected_components(edges, directed=False)
