"""The equations of an adjustment at its end: how its measurements depend on poses and points."""

from __future__ import annotations

import numpy as np

from lean3r.refine.job import Answer

BATCH = 2000  # points whose equations are held at once
BLUR = 1.2533  # mean length of a normal error in the plane, in its standard deviations


class Equations:
    """Of an answer, with the weights of the adjustment's robust loss and the noise that its errors show; intrinsics
    count as known, lenses as pinholes.

    Lengths are in units of the depth, so that moves count as much as turns: `unit` in those of the answer. `pose`
    [V, 4, 4] and `xyz` [P, 3] are those of the views [V] that have a pose, and of the points; O measurements, of these
    `view` [O] (an index into `views`) and `point` [O], change by `by_pose` [O, 2, 6] with the rotation vector and the
    translation of the camera, and by `by_point` [O, 2, 3], in standard deviations.
    """

    def __init__(self, answer: Answer) -> None:
        self.views = np.flatnonzero(answer.has)
        place = np.full(len(answer.has), -1)
        place[self.views] = range(len(self.views))
        used = answer.has[answer.view]
        self.view, self.point = place[answer.view[used]], answer.point[used]
        pose, xyz = answer.cam_from_world[self.views], answer.xyz
        turned = (pose[self.view, :3, :3] @ xyz[self.point][..., None])[..., 0]
        self.unit = float(np.median((turned + pose[self.view, :3, 3])[:, 2]))
        turned, pose[:, :3, 3], self.xyz = turned / self.unit, pose[:, :3, 3] / self.unit, xyz / self.unit
        self.pose = pose
        cam = turned + pose[self.view, :3, 3]
        focal = np.array([answer.params[answer.camera[view]][0] for view in self.views])[self.view]
        error = answer.error_px[self.point]
        weight = np.sqrt(1 / (1 + error**2)) * BLUR / max(float(np.mean(answer.error_px)), 1e-3)
        to_image = np.zeros((len(cam), 2, 3))
        to_image[:, 0, 0] = to_image[:, 1, 1] = 1
        to_image[:, :, 2] = -cam[:, :2] / cam[:, 2:]
        to_image *= (weight * focal / cam[:, 2])[:, None, None]
        self.by_pose = np.concatenate([-to_image @ cross(turned), to_image], axis=2)
        self.by_point = to_image @ pose[self.view, :3, :3]

    def information(self) -> np.ndarray:
        """What the measurements tell of the poses [6 V, 6 V], with all points free."""
        views, view, point = len(self.views), self.view, self.point
        own = np.zeros((views, 6, 6))
        np.add.at(own, view, self.by_pose.transpose(0, 2, 1) @ self.by_pose)
        information = np.zeros((views, 6, views, 6))
        information[range(views), :, range(views)] = own
        information = information.reshape(6 * views, 6 * views)
        order = np.argsort(point, kind="stable")
        for start in range(0, int(point.max(initial=-1)) + 1, BATCH):
            some = order[slice(*np.searchsorted(point[order], (start, start + BATCH)))]
            at = point[some] - start
            of_points = np.zeros((BATCH, 3, 3))
            np.add.at(of_points, at, self.by_point[some].transpose(0, 2, 1) @ self.by_point[some])
            half = np.linalg.cholesky(inverse(of_points))
            shared = np.zeros((views, BATCH, 6, 3))
            np.add.at(shared, (view[some], at), self.by_pose[some].transpose(0, 2, 1) @ self.by_point[some])
            shared = (shared @ half).transpose(0, 2, 1, 3).reshape(6 * views, -1)
            information -= shared @ shared.T
        return information

    def centres(self) -> np.ndarray:
        """How the centres change with the poses, [V, 3, 6]."""
        # The centre is -R' t; a small rotation w of the camera moves it by R' (w x t).
        back = self.pose[:, :3, :3].transpose(0, 2, 1)
        return np.concatenate([-back @ cross(self.pose[:, :3, 3]), -back], axis=2)


def inverse(information: np.ndarray) -> np.ndarray:
    """The covariance of points, from their information [N, 3, 3]; finite where that does not determine them."""
    trace = np.trace(information, axis1=1, axis2=2)[:, None, None]
    return np.linalg.inv(information + (1e-9 * trace + (trace == 0)) * np.eye(3))


def cross(vectors: np.ndarray) -> np.ndarray:
    """Matrices [N, 3, 3] that multiply by the cross product with vectors [N, 3] from the left."""
    x, y, z = vectors.T
    zero = np.zeros(len(vectors))
    return np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=1).reshape(-1, 3, 3)
