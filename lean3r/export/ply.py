"""points.ply: the coloured points, binary."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lean3r.export.options import ExportOptions
from lean3r.types import Reconstruction


def write(reconstruction: Reconstruction, directory: Path, options: ExportOptions) -> list[Path]:
    """Write points.ply in the world frame of the cameras (OpenCV axes), colours as red, green, blue, alpha."""
    import trimesh
    from trimesh.exchange.ply import export_ply

    points = reconstruction.points
    if len(points.xyz):
        alpha = np.full((len(points.rgb), 1), 255, dtype=np.uint8)
        cloud = trimesh.PointCloud(points.xyz, colors=np.hstack([points.rgb, alpha]))
    else:
        cloud = trimesh.Trimesh()  # trimesh cannot write a PointCloud without points
    path = directory / "points.ply"
    path.write_bytes(export_ply(cloud))
    return [path]
