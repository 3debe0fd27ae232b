"""scene.glb: points, camera frusta, and cameras to look through, in the y-up axes of glTF."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lean3r.export.frusta import EDGES, frustum_corners, frustum_reach, order_colours
from lean3r.export.gltf import GLTF_FROM_OPENCV, Geometry, View, glb_bytes, gltf_from_world
from lean3r.export.options import ExportOptions
from lean3r.types import Reconstruction


def write(reconstruction: Reconstruction, directory: Path, options: ExportOptions) -> list[Path]:
    """Write scene.glb with the nodes "points" (left out when there are none) and "cameras", and one for each view."""
    reconstruction = reconstruction.of_certain()
    points = reconstruction.points
    geometries: dict[str, Geometry] = {}
    turn = gltf_from_world(reconstruction)
    if len(points.xyz):
        geometries["points"] = Geometry(points.xyz @ turn.T.astype(np.float32), points.rgb)
    corners = frustum_corners(reconstruction) @ turn.T
    vertices, faces = wireframe(corners, 0.02 * frustum_reach(reconstruction))
    colours = np.repeat(order_colours(len(corners)), len(vertices) // len(corners), axis=0)
    geometries["cameras"] = Geometry(vertices, colours, faces)
    path = directory / "scene.glb"
    path.write_bytes(glb_bytes(geometries, views(reconstruction)))
    return [path]


def views(reconstruction: Reconstruction) -> list[View]:
    """The cameras of the pictures, as pinholes with the picture's centre in the middle."""
    turn, near = np.eye(4), 0.01 * frustum_reach(reconstruction)
    turn[:3, :3] = gltf_from_world(reconstruction)
    cam_from_gltf = np.diag([*GLTF_FROM_OPENCV.diagonal(), 1])
    found = []
    for source, k, pose in zip(
        reconstruction.sources, reconstruction.original_intrinsics, reconstruction.cam_from_world, strict=True
    ):
        height = source.height / k[1, 1]
        world_from_cam = turn @ np.linalg.inv(pose) @ cam_from_gltf
        fov_y_rad = 2 * float(np.arctan(height / 2))
        found.append(View(source.name, world_from_cam, fov_y_rad, float(source.width / k[0, 0] / height), near))
    return found


def wireframe(corners: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [V, 3] and triangles [F, 3] of three-sided bars along the EDGES of each frustum [S, 6, 3].

    Bars and not lines, because many viewers draw glTF lines one pixel wide or not at all.
    """
    start, end = corners[:, EDGES[:, 0]].reshape(-1, 3), corners[:, EDGES[:, 1]].reshape(-1, 3)
    along = (end - start) / np.maximum(np.linalg.norm(end - start, axis=1, keepdims=True), 1e-30)
    helper = np.eye(3)[np.abs(along).argmin(axis=1)]
    side = np.cross(along, helper)
    side /= np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-30)
    other = np.cross(along, side)
    turns = np.deg2rad([90, 210, 330])
    ring = radius * (np.cos(turns)[:, None, None] * side + np.sin(turns)[:, None, None] * other)
    vertices = np.concatenate([start + ring, end + ring]).transpose(1, 0, 2).reshape(-1, 3)
    bar = np.array(
        [(i, (i + 1) % 3, 3 + (i + 1) % 3) for i in range(3)] + [(i, 3 + (i + 1) % 3, 3 + i) for i in range(3)]
    )
    faces = (bar[None] + 6 * np.arange(len(start))[:, None, None]).reshape(-1, 3)
    return vertices, faces
