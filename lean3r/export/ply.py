"""Binary PLY files: points.ply, and the bytes of coloured points or meshes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lean3r.export.options import ExportOptions
from lean3r.types import Reconstruction


def write(reconstruction: Reconstruction, directory: Path, options: ExportOptions) -> list[Path]:
    """Write points.ply in the world frame of the cameras (OpenCV axes), colours as red, green, blue, alpha."""
    path = directory / "points.ply"
    path.write_bytes(ply_bytes(reconstruction.points.xyz, reconstruction.points.rgb))
    return [path]


def ply_bytes(xyz: np.ndarray, rgb: np.ndarray, faces: np.ndarray | None = None) -> bytes:
    """A PLY file of points [V, 3] with opaque colours [V, 3] uint8; a mesh if there are faces [F, 3]."""
    vertices = np.empty(len(xyz), [("xyz", "<f4", 3), ("rgb", "u1", 3), ("alpha", "u1")])
    vertices["xyz"], vertices["rgb"], vertices["alpha"] = xyz, rgb, 255
    header = ["ply", "format binary_little_endian 1.0", "comment lean3r", f"element vertex {len(xyz)}"]
    header += [f"property float {axis}" for axis in "xyz"]
    header += [f"property uchar {channel}" for channel in ("red", "green", "blue", "alpha")]
    parts = [vertices.tobytes()]
    if faces is not None:
        triangles = np.empty(len(faces), [("count", "u1"), ("corners", "<i4", 3)])
        triangles["count"], triangles["corners"] = 3, faces
        header += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
        parts.append(triangles.tobytes())
    return b"".join(["\n".join([*header, "end_header\n"]).encode(), *parts])
