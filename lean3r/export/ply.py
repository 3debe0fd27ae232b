"""Binary PLY files: points.ply, and the bytes of coloured points or meshes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lean3r.export.options import ExportOptions
from lean3r.types import Reconstruction


def write(reconstruction: Reconstruction, directory: Path, options: ExportOptions) -> list[Path]:
    """Write points.ply in the world frame of the cameras (OpenCV axes): places, normals, colours, confidence."""
    points = reconstruction.points
    path = directory / "points.ply"
    path.write_bytes(ply_bytes(points.xyz, points.rgb, normals=points.normals, confidence=points.conf))
    return [path]


def ply_bytes(
    xyz: np.ndarray,
    rgb: np.ndarray,
    faces: np.ndarray | None = None,
    *,
    normals: np.ndarray | None = None,
    confidence: np.ndarray | None = None,
    view: np.ndarray | None = None,
) -> bytes:
    """A PLY file of points [V, 3] with opaque colours [V, 3] uint8, and normals [V, 3], confidence [V] and view [V] if
    there are any; a mesh if there are faces [F, 3]."""
    columns = [(axis, "float", xyz[:, number]) for number, axis in enumerate("xyz")]
    columns += [(f"n{axis}", "float", normals[:, n]) for n, axis in enumerate("xyz") if normals is not None]
    columns += [(name, "uchar", rgb[:, number]) for number, name in enumerate(("red", "green", "blue"))]
    columns += [("alpha", "uchar", np.full(len(xyz), 255))]
    columns += [("confidence", "float", confidence)] if confidence is not None else []
    columns += [("view", "int", view)] if view is not None else []
    kinds = {"float": "<f4", "uchar": "u1", "int": "<i4"}
    vertices = np.empty(len(xyz), [(name, kinds[kind]) for name, kind, _ in columns])
    for name, _, values in columns:
        vertices[name] = values
    header = ["ply", "format binary_little_endian 1.0", "comment lean3r", f"element vertex {len(xyz)}"]
    header += [f"property {kind} {name}" for name, kind, _ in columns]
    parts = [vertices.tobytes()]
    if faces is not None:
        triangles = np.empty(len(faces), [("count", "u1"), ("corners", "<i4", 3)])
        triangles["count"], triangles["corners"] = 3, faces
        header += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
        parts.append(triangles.tobytes())
    return b"".join(["\n".join([*header, "end_header\n"]).encode(), *parts])
