"""Posed pictures with their lenses, from nerfstudio's transforms.json or a COLMAP model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lean3r.data.sets.formats.files import read_text
from lean3r.data.sets.formats.lens import LensFrame, pinhole_of
from lean3r.data.sets.scenes import Camera, check_size, invert
from lean3r.errors import InputError
from lean3r.inputs.cameras import OPENCV_FROM_OPENGL, open_colmap
from lean3r.json_text import parse_json

if TYPE_CHECKING:
    from lean3r.colmap_library import pycolmap

MAX_SIDE = 100_000  # pixels: the time of undistortion grows with the borders
_DISTORTION = {
    "PINHOLE": (),
    "OPENCV": ("k1", "k2", "p1", "p2"),
    "OPENCV_FISHEYE": ("k1", "k2", "k3", "k4"),
}


@dataclass(frozen=True, eq=False)
class PosedPicture:
    """One picture: its path as in the file, lens, cam_from_world [4, 4] float64, and whether it is marked as bad."""

    path: str
    lens: pycolmap.Camera
    cam_from_world: np.ndarray
    is_bad: bool

    def frame(self, image: Path, size: tuple[int, int], depth: Path | None = None) -> LensFrame:
        """The frame of a LensSet, for a picture of `size` (width, height), which may differ from the stated one.

        InputError for another aspect ratio."""
        check_size(*size, self.lens.width, self.lens.height, image)
        lens = copy.copy(self.lens)
        lens.rescale(*size)
        plain = pinhole_of(lens)
        k = np.asarray(plain.calibration_matrix())
        camera = Camera(k, self.cam_from_world, plain.width, plain.height)
        return LensFrame(image, camera, depth, lens=lens)


def read_transforms(path: Path) -> list[PosedPicture]:
    """Read the frames of a transforms.json, `test_frames` after the others, in the order of the file.

    InputError if it is missing or invalid, or a camera model is not PINHOLE, OPENCV or OPENCV_FISHEYE.
    """
    try:
        content = parse_json(read_text(path))
        rows = [*content["frames"], *content.get("test_frames", [])]
        shared = {key: value for key, value in content.items() if key not in ("frames", "test_frames")}
        return [_parse_frame({**shared, **row}, path) for row in rows]
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{path} is not a transforms.json of nerfstudio ({what})") from error


def read_model(folder: Path) -> list[PosedPicture]:
    """Read the posed pictures of a COLMAP model; InputError if there is no model."""
    model, pictures = open_colmap(folder), []
    for image in model.images.values():
        if image.has_pose:
            pose = np.vstack([image.cam_from_world().matrix(), [0.0, 0.0, 0.0, 1.0]])
            pictures.append(PosedPicture(image.name, copy.copy(model.cameras[image.camera_id]), pose, False))
    return pictures


def _parse_frame(values: Mapping[str, Any], path: Path) -> PosedPicture:
    from lean3r.colmap_library import pycolmap

    model = str(values.get("camera_model", "OPENCV")).upper()
    if model not in _DISTORTION:
        raise InputError(f"{path} has the camera model {model}; expected one of {', '.join(_DISTORTION)}")
    width, height = int(values["w"]), int(values["h"])
    distortion = [float(values.get(key, 0.0)) for key in _DISTORTION[model]]
    # As in COLMAP, the principal point is relative to the corner of the picture.
    params = [*(float(values[key]) for key in ("fl_x", "fl_y", "cx", "cy")), *distortion]
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE and np.isfinite(params).all() and min(params[:2]) > 0):
        raise ValueError(f"invalid camera of {width} x {height} pixels with parameters {params}")
    lens = pycolmap.Camera(model=model, width=width, height=height, params=params)
    matrix = np.array(values["transform_matrix"], dtype=np.float64)
    world_from_cam = np.eye(4)
    world_from_cam[:3] = matrix[:3]
    # world_from_cam in OpenGL's axes: x right, y up, z backwards.
    pose = invert(world_from_cam @ OPENCV_FROM_OPENGL)
    return PosedPicture(str(values["file_path"]), lens, pose, bool(values.get("is_bad", False)))
