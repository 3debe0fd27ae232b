"""A flight over known hills: nadir cameras, exact depth, and positions by GPS around a place on earth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lean3r.geometry.fusion import with_cloud
from lean3r.pipeline.trust import no_points
from lean3r.refine.scale import Place, local_metres, with_places
from lean3r.types import Reconstruction, Source

LATITUDE, LONGITUDE, ALTITUDE = 46.8426, -91.9940, 240.0
FLIGHT_M, SIDE, FOCAL = 60.0, 48, 60.0


def ground(east: np.ndarray, north: np.ndarray) -> np.ndarray:
    """Height in metres above the ground's zero level, 60 m below the flight."""
    return 3.0 * np.sin(east / 9.0) + 2.0 * np.cos(north / 7.0)


def colour(east: np.ndarray, north: np.ndarray) -> np.ndarray:
    """sRGB 0 to 255 [..., 3] of the ground: smooth, with the west dark red and the south dark blue."""
    return np.stack([128 + 2.0 * east, np.full_like(east, 90.0), 128 + 2.0 * north], axis=-1).clip(0, 255)


def flight() -> tuple[Reconstruction, dict[str, Place]]:
    """The scene in a unit of 0.5 m and turned, and the true positions of its cameras."""
    spots = [(e, n) for n in (-12.0, 0.0, 12.0) for e in (-16.0, 0.0, 16.0)]
    cols, rows = np.meshgrid(np.arange(SIDE) + 0.5, np.arange(SIDE) + 0.5)
    # x of the pictures points east, y south, z down.
    level_from_cam = np.array([[1.0, 0, 0], [0, -1, 0], [0, 0, -1]])
    poses, depths, images = [], [], []
    for east, north in spots:
        slopes = np.stack([(cols - SIDE / 2) / FOCAL, -(rows - SIDE / 2) / FOCAL], axis=-1)
        depth = np.full((SIDE, SIDE), FLIGHT_M)
        for _ in range(60):  # a ray meets the ground where its depth is the height above it
            e, n = east + slopes[..., 0] * depth, north + slopes[..., 1] * depth
            depth = FLIGHT_M - ground(e, n)
        pose = np.eye(4)
        pose[:3, :3] = level_from_cam.T
        pose[:3, 3] = -level_from_cam.T @ [east, north, FLIGHT_M]
        poses.append(pose)
        depths.append(depth)
        images.append(colour(e, n).round().astype(np.uint8))
    count = len(spots)
    matrix = np.array([[FOCAL, 0, SIDE / 2], [0, FOCAL, SIDE / 2], [0, 0, 1.0]])
    scene = Reconstruction(
        sources=tuple(Source(f"DJI_{v:04d}.jpg", SIDE, SIDE) for v in range(count)),
        images=np.stack(images),
        mask=np.ones((count, SIDE, SIDE), bool),
        depth=np.stack(depths).astype(np.float32),
        conf=np.ones((count, SIDE, SIDE), np.float32),
        cam_from_world=np.stack(poses),
        intrinsics=np.tile(matrix, (count, 1, 1)),
        points=no_points(),
    )
    half = replace(scene, depth=scene.depth * 2, cam_from_world=_stretched(scene.cam_from_world, 2.0))
    # Degrees for metres near the place; how the earth curves within 20 m is less than a tenth of a millimetre.
    at = [Place(LATITUDE, LONGITUDE, ALTITUDE), Place(LATITUDE + 1e-4, LONGITUDE + 1e-4, ALTITUDE)]
    (west, _, south), (east, _, north) = local_metres(at)[0]
    places = {
        source.name: Place(LATITUDE + 1e-4 * n / (north - south), LONGITUDE + 1e-4 * e / (east - west), ALTITUDE)
        for source, (e, n) in zip(scene.sources, spots, strict=True)
    }
    return with_cloud(half), places


def located() -> Reconstruction:
    """The flight in metres, upright and turned north."""
    return with_places(*flight())


def _stretched(poses: np.ndarray, factor: float) -> np.ndarray:
    poses = poses.copy()
    poses[:, :3, 3] *= factor
    return poses
