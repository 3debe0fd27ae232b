"""Similarities as matrices [..., 4, 4] = [[s R, t], [0, 1]], float64: products compose them, `@` moves points."""

from __future__ import annotations

import numpy as np
import torch

from lean3r.geometry.rotation import so3_exp, so3_log
from lean3r.refine.world import into_known


def fitted(poses: np.ndarray, known: np.ndarray) -> np.ndarray | None:
    """The similarity [4, 4] that takes cameras [N, 4, 4] to known ones; None if these do not determine it."""
    fit = into_known(poses, known) if len(poses) else None
    return None if fit is None else make(float(fit.scale), fit.rotation.numpy(), fit.translation.numpy())


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
    return np.linalg.norm(rotation_vector(rotation), axis=-1)


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """The axis times the angle [..., 3] of rotations [..., 3, 3]."""
    return so3_log(torch.from_numpy(np.ascontiguousarray(rotation))).numpy()


def exp(vector: np.ndarray) -> np.ndarray:
    """The similarity of a vector [7]: rotation vector, translation, log of the scale."""
    rotation = so3_exp(torch.from_numpy(np.ascontiguousarray(vector[:3]))).numpy()
    return make(float(np.exp(vector[6])), rotation, vector[3:6])


def between(poses: np.ndarray, at: np.ndarray, where: float) -> np.ndarray:
    """A pose [4, 4] between those [N, 4, 4] at ascending places [N]: rotations along the shortest way, centres on a
    smooth curve (Akima's, which does not swing where the way bends); outside, the first or the last pose."""
    after = int(np.searchsorted(at, where, side="right"))
    if after in (0, len(at)):
        return poses[min(after, len(at) - 1)]
    first, second = poses[after - 1], poses[after]
    way = at[after] - at[after - 1]
    share = (where - at[after - 1]) / way
    rotation = _turned(first, second, share)
    near = slice(max(0, after - 3), after + 3)
    centre = _curve(at[near], centres(poses[near]), after - 1 - near.start, share)
    return make(1.0, rotation, -rotation @ centre)


def beyond(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    """The pose [4, 4] that follows two others, if motion goes on for a share of the way between them."""
    rotation, (before, centre) = _turned(first, second, 1 + share), centres(np.stack([first, second]))
    return make(1.0, rotation, -rotation @ (centre + share * (centre - before)))


def _turned(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    """The rotation [3, 3] of a pose at a share of the shortest way from one to another."""
    turn = so3_log(torch.from_numpy(np.ascontiguousarray(second[:3, :3] @ first[:3, :3].T)))
    return so3_exp(share * turn).numpy() @ first[:3, :3]


def _curve(at: np.ndarray, points: np.ndarray, piece: int, share: float) -> np.ndarray:
    """Akima's curve through points [N, 3] at places [N], at a share of the way from number `piece` to the next."""
    slopes = np.diff(points, axis=0) / np.diff(at)[:, None]
    if len(slopes) == 1:
        return points[0] + share * (points[1] - points[0])
    ends = [2 * slopes[:1] - slopes[1:2], slopes, 2 * slopes[-1:] - slopes[-2:-1]]
    ends = [2 * ends[0] - slopes[:1], *ends, 2 * ends[2] - slopes[-1:]]
    m = np.concatenate(ends)  # two more on both sides

    def tangent(point: int) -> np.ndarray:
        before, here, there, after = m[point : point + 4]
        bend, other = np.linalg.norm(after - there), np.linalg.norm(here - before)
        return (here + there) / 2 if bend + other < 1e-12 else (bend * here + other * there) / (bend + other)

    way, t = at[piece + 1] - at[piece], share
    start, end = tangent(piece) * way, tangent(piece + 1) * way
    a, b = points[piece], points[piece + 1]
    return (
        (2 * t**3 - 3 * t**2 + 1) * a + (t**3 - 2 * t**2 + t) * start + (3 * t**2 - 2 * t**3) * b + (t**3 - t**2) * end
    )
