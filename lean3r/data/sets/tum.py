"""TUM RGB-D: rooms and a hall walked through with a Kinect, with poses from motion capture.

Lenses are those of the colour cameras on the benchmark's page (Intrinsic Camera Calibration of the Kinect), to all
digits; pictures and maps of freiburg3 are published undistorted. Maps are published with their scale corrected.
"""

from __future__ import annotations

import re

from lean3r.data.sets.formats.timed import TimedSet

LENSES = {
    "1": (517.306408, 516.469215, 318.643040, 255.313989, 0.262383, -0.953104, -0.005358, 0.002628, 1.163314),
    "2": (520.908620, 521.007327, 325.141442, 249.701764, 0.231222, -0.784899, -0.003257, -0.000105, 0.917205),
    "3": (535.4, 539.2, 320.1, 247.6, 0.0, 0.0, 0.0, 0.0, 0.0),
}
"""Of freiburg1, 2 and 3: fx fy cx cy k1 k2 p1 p2 k3."""


class Tum(TimedSet):
    """One scene per sequence with public poses ("rgbd_dataset_freiburg3_walking_xyz").

    Every third view, the first 90 of them, of the freiburg3 sequences sitting_* and walking_* are the TUM-dynamics of
    MonST3R, CUT3R and Pi3.
    """

    name = "tum"
    title = "TUM RGB-D"
    licence = "CC BY 4.0 unless stated otherwise (the benchmark's page)"
    source = "https://cvg.cit.tum.de/data/datasets/rgbd-dataset/download, the .tgz of each sequence"
    layout = "rgbd_dataset_freiburg{1,2,3}_NAME/ with rgb.txt, depth.txt, groundtruth.txt, rgb/*.png, depth/*.png"
    folder_name = re.compile(r"rgbd_dataset_freiburg([123])_")

    @classmethod
    def lens(cls, scene: str) -> tuple[float, ...]:
        """That of the Kinect of freiburg1, 2 or 3."""
        match = cls.folder_name.match(scene)
        assert match is not None
        return LENSES[match[1]]
