"""Bonn RGB-D Dynamic: people, balloons and boxes moving in a room, filmed with an Asus Xtion; poses are captured.

groundtruth.txt has poses of the markers on the sensor. The set's page gives the fixed transform to the camera,
T_ros^-1 T T_ros T_m for a pose T of the file. The 3 x 3 block of its T_m is a rotation times 1.0593; here it is the
rotation alone, so that poses are rigid and in metres.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lean3r.data.sets.formats.files import naming
from lean3r.data.sets.formats.lens import LensFrame
from lean3r.data.sets.formats.timed import TimedSet, read_poses
from lean3r.errors import InputError

LENS = (542.822841, 542.576870, 315.593520, 237.756098, 0.039903, -0.099343, -0.000730, -0.000144, 0.0)
"""fx fy cx cy k1 k2 p1 p2 k3."""
T_ROS = np.array([[-1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
T_M = np.array(
    [
        [1.0157, 0.1828, -0.2389, 0.0113],
        [0.0009, -0.8431, -0.6413, -0.0098],
        [-0.3009, 0.6147, -0.8085, 0.0111],
        [0.0, 0.0, 0.0, 1.0],
    ]
)
PREPARED = slice(30, 140)  # of the sorted file names: rgb_110/ and depth_110/ of MonST3R's prepare_bonn.py


class Bonn(TimedSet):
    """One scene per sequence ("rgbd_bonn_balloon2").

    With `prepared`, a scene is what MonST3R, CUT3R and Pi3 score video depth on: pictures 30 to 139 by name, each with
    the map of the same number, whatever their times, and the pose nearest in time. They use undistort=False.
    """

    name = "bonn"
    title = "Bonn RGB-D Dynamic"
    licence = "see the set's page: Bonn RGB-D Dynamic Dataset, University of Bonn"
    source = "https://www.ipb.uni-bonn.de/data/rgbd-dynamic-dataset, rgbd_bonn_dataset.zip or single sequences"
    layout = "rgbd_bonn_NAME/ with rgb.txt, depth.txt, groundtruth.txt, rgb/*.png, depth/*.png"
    folder_name = re.compile(r"rgbd_bonn_")

    def __init__(
        self, root: str | Path, undistort: bool = True, prepared: bool = False, scenes: Sequence[str] | None = None
    ) -> None:
        self.prepared = prepared
        super().__init__(root, undistort, scenes)

    @classmethod
    def lens(cls, scene: str) -> tuple[float, ...]:
        """That of the Xtion, for all sequences."""
        return LENS

    @classmethod
    def world_from_cam(cls, poses: np.ndarray) -> np.ndarray:
        """Poses of the camera from those of the markers."""
        u, _, vt = np.linalg.svd(T_M[:3, :3])
        marker_from_cam = T_M.copy()
        marker_from_cam[:3, :3] = u @ vt
        return np.linalg.inv(T_ROS) @ poses @ T_ROS @ marker_from_cam

    def frames(self, scene: str) -> Sequence[LensFrame]:
        """The pictures with a pose, in the order of their times; or the prepared ones."""
        return self._prepared_frames(scene) if self.prepared else super().frames(scene)

    def _prepared_frames(self, scene: str) -> Sequence[LensFrame]:
        folder, rows = self.root / scene, []
        images, maps = (sorted((folder / part).glob("[!.]*.png"))[PREPARED] for part in ("rgb", "depth"))
        if not len(images) == len(maps) == PREPARED.stop - PREPARED.start:
            raise InputError(
                f"{folder} has {len(images)} pictures and {len(maps)} maps from number 30 on; expected 110"
            )
        times, poses, _ = read_poses(folder / "groundtruth.txt")
        poses = self.world_from_cam(poses)
        for image, depth in zip(images, maps, strict=True):
            with naming(image):
                time = float(image.stem)
                rows.append((image, poses[np.abs(times - time).argmin()], depth, time))
        return self.make_frames(scene, rows)
