"""The guides to data sets: what their publishers state, and how fast they are read."""

from __future__ import annotations

from docs.figures import Page
from docs.markdown import result
from lean3r.data.sets.arkitscenes import POSE_TOLERANCE_S
from lean3r.data.sets.formats.timed import APART_S
from lean3r.data.sets.scannet import SENSOR
from lean3r.data.sets.tanks import FOCAL


def reading() -> list[float]:
    """Sizes of pictures and batches, and the share of the decoder's throughput."""
    found = result("loading_data")
    (row,) = (row for row in found["rows"] if row["loader"] == "realestate10k, threads")
    return [found[what][side] for what in ("pictures", "batch") for side in ("width", "height")] + [100 * row["ratio"]]


DATA_SETS = Page(
    "docs/how-to/data-sets.md",
    [
        ("JPEG pictures of {} x {} for batches of {} x {} at {:.0f} % of the throughput", reading),
        ("exported smaller than {} x {}, the intrinsics", lambda: SENSOR),
        ("a pose of the trajectory within {:.0f} ms are used", lambda: [1000 * POSE_TOLERANCE_S]),
        ("the focal length is {} of the width (`focal={}`)", lambda: [FOCAL, FOCAL]),
        ("a picture with a pose at most {:.0f} ms away", lambda: [1000 * APART_S]),
    ],
    {
        "pixel centres at 0.5": "a convention",
        "`Rectified/scan*_train/` of 640 x 512 pixels": "a size of the set",
        "`Depths_raw/` (1600 x 1200)": "a size of the set",
        "Pictures of 1600 x 1200 can be read": "a size of the set",
        "`scan*/image/*.png` of 1600 x 1200 pixels": "a size of the set",
        "16-bit depth (accurate to 0.01 %)": "the step of 16 bits on a logarithmic scale",
        "`min_quality=0.5` leaves out": "an example",
        "`lowres_wide/` (256 x 192)": "a size of the set",
        "by multiples of 90 degrees": "quarter turns",
        "3D Gaussian Splatting published (0.606, 0.604)": "published calibrations",
        "525 pixels, the colour camera's": "a published calibration",
        "585 pixels, the depth camera's": "a published calibration",
        "2.6 cm from the colour camera": "a published calibration",
        "(up to 25 pixels in freiburg1": "follows from the published lenses",
        "principal point 319.5, 239.5": "what the benchmark's page uses",
        "The 3 x 3 block of T_m is a rotation times 1.0593.": "the transform that the set's page states",
        "depth is 6 % too small": "follows from that transform",
        "(the lens bends by at most 4 pixels)": "follows from the published lens",
        "that of camera 2, 6 cm to its left": "a published calibration",
        "an offset of at most 6 cm": "the same",
    },
)

ANOTHER = Page(
    "docs/how-to/add-a-data-set.md",
    [],
    {
        "the centre of the top-left pixel at (0.5, 0.5)": "a convention",
        "`Tiny(depth_error=2e-3)`": "an example",
    },
)

OF_DATA_SETS = (DATA_SETS, ANOTHER)
