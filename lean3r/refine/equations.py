"""The equations of an adjustment at its end: how its measurements depend on poses and points."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lean3r.refine.job import Answer

BATCH = 50_000  # pairs of measurements of one point, whose parts are held at once: 29 MB
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
        views = len(self.views)
        information = np.zeros((views, views, 6, 6))
        every = range(views)
        information[every, every] = summed(self.by_pose.transpose(0, 2, 1) @ self.by_pose, self.view, views)
        # With a point free, each pair of its measurements tells less, by what both say of it: a product of two parts.
        half = np.linalg.cholesky(inverse(self.information_of_points()))
        lost = self.by_pose.transpose(0, 2, 1) @ (self.by_point @ half[self.point])
        for seen in tracks_of(self.point):
            most = max(1, BATCH // seen.shape[1] ** 2)
            for some in np.split(seen, range(most, len(seen), most)):
                view, of_points = self.view[some], lost[some].reshape(len(some), -1, 3)
                shared = (of_points @ of_points.transpose(0, 2, 1)).reshape(*some.shape, 6, some.shape[1], 6)
                np.subtract.at(information, (view[:, :, None], view[:, None]), shared.transpose(0, 1, 3, 2, 4))
        return information.transpose(0, 2, 1, 3).reshape(6 * views, 6 * views)

    def information_of_points(self) -> np.ndarray:
        """What the measurements tell of each point [P, 3, 3]."""
        return summed(self.by_point.transpose(0, 2, 1) @ self.by_point, self.point, len(self.xyz))

    def centres(self) -> np.ndarray:
        """How the centres change with the poses, [V, 3, 6]."""
        # The centre is -R' t; a small rotation w of the camera moves it by R' (w x t).
        back = self.pose[:, :3, :3].transpose(0, 2, 1)
        return np.concatenate([-back @ cross(self.pose[:, :3, 3]), -back], axis=2)


def tracks_of(point: np.ndarray) -> Iterator[np.ndarray]:
    """The measurements [N, K], by their points `point` [O], of all points that are measured K times; for each K."""
    order, count = np.argsort(point, kind="stable"), np.bincount(point)
    first = np.cumsum(count) - count
    for times in np.unique(count[count > 0]):
        yield order[first[count == times][:, None] + np.arange(times)]


def summed(each: np.ndarray, number: np.ndarray, count: int) -> np.ndarray:
    """The sums [count, ...] of those of `each` [N, ...] that have the same number [N]."""
    sums = np.zeros((count, *each.shape[1:]))
    np.add.at(sums, number, each)
    return sums


def inverse(information: np.ndarray) -> np.ndarray:
    """The covariance of points, from their information [N, 3, 3]; finite where that does not determine them."""
    trace = np.trace(information, axis1=1, axis2=2)[:, None, None]
    return np.linalg.inv(information + (1e-9 * trace + (trace == 0)) * np.eye(3))


def cross(vectors: np.ndarray) -> np.ndarray:
    """Matrices [N, 3, 3] that multiply by the cross product with vectors [N, 3] from the left."""
    x, y, z = vectors.T
    zero = np.zeros(len(vectors))
    return np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=1).reshape(-1, 3, 3)
