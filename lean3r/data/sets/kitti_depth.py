"""KITTI depth as video: the drives of the depth benchmark's validation that papers on video depth score.

MonST3R's prepare_kitti.py copies the first 110 maps of camera 2 of each drive, and their pictures, into this layout,
which has no cameras. Intrinsics are those published for the day of a drive (P_rect_02 in calib_cam_to_cam.txt).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lean3r.data.sets.formats.files import image_size, read_depth_png
from lean3r.data.sets.scenes import Camera, FolderSet, Frame, folders, from_integer_centres, pinhole, rescale
from lean3r.errors import InputError

PER_METRE = 256.0
IMAGES, MAPS = "image_gathered", "groundtruth_depth_gathered"
_ABOVE = (".", "val_selection_cropped", "depth_selection/val_selection_cropped")
CAMERAS = {
    "2011_09_26": (1242, 375, 721.5377, 609.5593, 172.8540),
    "2011_09_28": (1224, 370, 707.0493, 604.0814, 180.5066),
    "2011_09_29": (1238, 374, 718.3351, 600.3891, 181.5122),
    "2011_09_30": (1226, 370, 707.0912, 601.8873, 183.1104),
    "2011_10_03": (1241, 376, 718.8560, 607.1928, 185.2157),
}
"""Of each day: width and height of the pictures, focal length and principal point, centres of pixels at integers."""


class KittiDepth(FolderSet[Frame]):
    """One scene per drive, with sparse depth of a laser scanner in metres, and without poses."""

    name = "kitti_depth"
    title = "KITTI depth"
    licence = "CC BY-NC-SA 3.0 as far as known; see the set's page: KITTI, Karlsruhe Institute of Technology"
    source = (
        "https://www.cvlibs.net/datasets/kitti/eval_depth.php: data_depth_annotated.zip and the raw drives of its "
        "validation, arranged by prepare_kitti.py of the repository Junyi42/monst3r"
    )
    layout = f"[depth_selection/][val_selection_cropped/]{{{IMAGES},{MAPS}}}/2011_09_26_drive_0002_sync_02/*.png"
    is_metric = True
    has_poses = False
    is_ordered = True

    @classmethod
    def places(cls, root: Path) -> list[Path]:
        """Folders of pictures, there or not, of drives with pictures or maps."""
        places = []
        for base in (root / above for above in _ABOVE):
            drives = {folder.name for part in (IMAGES, MAPS) for folder in folders(base / part)}
            places += [base / IMAGES / drive for drive in sorted(drives)]
        return places

    @classmethod
    def missing(cls, place: Path) -> list[str]:
        """Sentences for a drive without pictures, without maps, or of a day whose camera is unknown."""
        absent = [f"{folder} is missing" for folder in (place, _maps(place)) if not folder.is_dir()]
        if place.name[:10] not in CAMERAS:
            absent.append(f"{place} is not named like a drive; expected a day, one of {', '.join(CAMERAS)}, first")
        return absent

    @classmethod
    def incomplete(cls, place: Path) -> list[str]:
        """Sentences for pictures without a map and maps without a picture, and for fewer than two views."""
        images, maps = ({path.name for path in folder.glob("[!.]*.png")} for folder in (place, _maps(place)))
        odd, both = sorted(images ^ maps), len(images & maps)
        problems = [] if both > 1 else [f"{place} has {both} pictures with a map; a scene needs two"]
        if odd:
            problems.append(f"{len(odd)} pictures or maps of {place} have no other half, e.g. {odd[0]}")
        return problems

    def frames(self, scene: str) -> Sequence[Frame]:
        """The pictures with a map, in order; all have the size of the first."""
        folder = self.root / scene
        images = [path for path in sorted(folder.glob("[!.]*.png")) if (_maps(folder) / path.name).is_file()]
        if not images:
            raise InputError(f"{folder} has no picture with a map of the same name; expected {self.layout}")
        own_width, own_height, focal, cx, cy = CAMERAS[folder.name[:10]]
        width, height = image_size(images[0])
        k = from_integer_centres(pinhole(focal, focal, cx, cy))
        camera = Camera(rescale(k, width / own_width, height / own_height), np.eye(4), width, height)
        return [Frame(image, camera, _maps(folder) / image.name) for image in images]

    def read_depth(self, frame: Frame) -> np.ndarray:
        """Depth in metres, 0 where the scanner has none."""
        assert frame.depth is not None
        return read_depth_png(frame.depth, PER_METRE)


def _maps(place: Path) -> Path:
    return place.parent.parent / MAPS / place.name
