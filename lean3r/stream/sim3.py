"""Similarities as matrices [..., 4, 4] = [[s R, t], [0, 1]], float64: products compose them, `@` moves points."""

from __future__ import annotations

import numpy as np
import torch

from lean3r.geometry.rotation import so3_exp, so3_log


def make(scale: float, rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """The similarity x -> scale * rotation @ x + translation."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = scale * rotation, translation
    return matrix


def parts(matrix: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Scale, rotation [3, 3] and translation [3] of a similarity."""
    scale = float(np.cbrt(np.linalg.det(matrix[:3, :3])))
    return scale, matrix[:3, :3] / scale, matrix[:3, 3]


def move_points(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points [..., 3], moved."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def move_poses(matrix: np.ndarray, cam_from_world: np.ndarray) -> np.ndarray:
    """Cameras [..., 4, 4] of the old world in the new one; their depth has to be multiplied by the scale."""
    _, rotation, _ = parts(matrix)
    turned = cam_from_world[..., :3, :3] @ rotation.T
    moved = np.zeros_like(cam_from_world)
    moved[..., :3, :3], moved[..., 3, 3] = turned, 1
    centre = move_points(matrix, centres(cam_from_world))
    moved[..., :3, 3] = -np.einsum("...ij,...j->...i", turned, centre)
    return moved


def centres(cam_from_world: np.ndarray) -> np.ndarray:
    """Centres [..., 3] of cameras [..., 4, 4] in their world."""
    return -np.einsum("...ji,...j->...i", cam_from_world[..., :3, :3], cam_from_world[..., :3, 3])


def nearest_rotation(matrix: np.ndarray) -> np.ndarray:
    """The rotation [3, 3] nearest to a matrix."""
    u, _, vt = np.linalg.svd(matrix)
    return u @ np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))]) @ vt


def angle_rad(rotation: np.ndarray) -> np.ndarray:
    """The angle [...] of rotations [..., 3, 3]."""
    return so3_log(torch.from_numpy(np.ascontiguousarray(rotation))).norm(dim=-1).numpy()


def log(matrix: np.ndarray) -> np.ndarray:
    """[7]: rotation vector, translation, log of the scale; zero for the identity."""
    scale, rotation, translation = parts(matrix)
    vector = so3_log(torch.from_numpy(np.ascontiguousarray(rotation))).numpy()
    return np.concatenate([vector, translation, [np.log(scale)]])


def exp(vector: np.ndarray) -> np.ndarray:
    """The similarity of `log`."""
    rotation = so3_exp(torch.from_numpy(np.ascontiguousarray(vector[:3]))).numpy()
    return make(float(np.exp(vector[6])), rotation, vector[3:6])


def between(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    """A pose [4, 4] between two: centres linear, rotations along the shortest way. `share` may be outside 0..1."""
    turn = so3_log(torch.from_numpy(np.ascontiguousarray(second[:3, :3] @ first[:3, :3].T)))
    rotation = so3_exp(share * turn).numpy() @ first[:3, :3]
    centre = (1 - share) * centres(first) + share * centres(second)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, -rotation @ centre
    return pose
