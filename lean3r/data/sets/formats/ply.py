"""Point clouds and meshes in PLY files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lean3r.data.sets.formats.files import naming
from lean3r.errors import InputError, MissingExtraError


def read_ply(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Vertices [N, 3] float64 and triangles [F, 3] (None: a cloud) of a PLY file, ASCII or binary.

    InputError if it is missing or damaged, or a vertex is not finite; MissingExtraError without trimesh.
    """
    try:
        from trimesh.exchange.ply import load_ply
    except ImportError as error:
        raise MissingExtraError.of("reading PLY files", "eval") from error
    with naming(path), open(path, "rb") as file:
        content = load_ply(file, skip_materials=True)
        vertices = np.asarray(content["vertices"], np.float64).reshape(-1, 3)
        stated = content["metadata"]["_ply_raw"]["vertex"]["length"]
        if len(vertices) != stated:
            raise ValueError(f"it has {len(vertices):,} of {stated:,} vertices")
    if not np.isfinite(vertices).all():
        raise InputError(f"{path} has vertices that are not finite; expected a cloud or a mesh of finite points")
    return vertices, content.get("faces")


def read_surface(path: Path, points: int = 1_000_000) -> np.ndarray:
    """Points [N, 3] float64 of a PLY file: those of a cloud, or `points` spread evenly over a mesh, always the same.

    Raises the errors of `read_ply`.
    """
    vertices, faces = read_ply(path)
    if faces is None or not len(faces):
        return vertices
    from trimesh import Trimesh
    from trimesh.sample import sample_surface

    with naming(path):
        mesh = Trimesh(vertices, faces, process=False)
        return np.asarray(sample_surface(mesh, points, seed=0)[0], np.float64)
