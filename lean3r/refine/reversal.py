"""The other way in which pictures can be read: hollow for solid.

Where depth varies little (flat ground from above, a small motion, a long lens), a scene turned inside out, seen by
cameras that turned the other way, gives nearly the same pictures: Necker's reversal, exact without perspective. An
adjustment does not lead from the one to the other, and its errors alone do not show which was found: both are adjusted,
and the measurements tell.
"""

from __future__ import annotations

import numpy as np

from lean3r.colmap_library import pycolmap


def turned_inside_out(model: pycolmap.Reconstruction) -> pycolmap.Reconstruction:
    """A copy of a model, mirrored in depth for the view that sees most points; each of the other cameras turns the
    other way, and stands where it sees its points at the same place and size as before."""
    model = pycolmap.Reconstruction(model)
    images = [image for image in model.images.values() if image.has_pose]
    first = max(images, key=lambda image: image.num_points3D).cam_from_world()
    xyz = {number: first * point.xyz for number, point in model.points3D.items()}
    depth = float(np.median([point[2] for point in xyz.values()]))
    mirror = np.diag([1.0, 1.0, -1.0])
    poses = {}
    for image in images:
        pose = image.cam_from_world() * first.inverse()
        seen = np.array([xyz[point.point3D_id] for point in image.get_observation_points2D()])
        middle = np.median(seen.reshape(-1, 3), axis=0) if len(seen) else np.array([0.0, 0.0, depth])
        rotation = pose.rotation.matrix()
        turned = mirror @ rotation @ mirror
        place = rotation @ middle + pose.translation - turned @ _mirrored(middle, depth)
        poses[image.image_id] = pycolmap.Rigid3d(pycolmap.Rotation3d(turned), place)
    for number, point in xyz.items():
        model.points3D[number].xyz = _mirrored(point, depth)
    for image in images:
        model.frames[image.frame_id].set_cam_from_world(image.camera_id, poses[image.image_id])
    return model


def _mirrored(point: np.ndarray, depth: float) -> np.ndarray:
    return np.array([point[0], point[1], 2 * depth - point[2]])
