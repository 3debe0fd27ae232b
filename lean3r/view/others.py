"""What files for other programs tell of a scene: a COLMAP model, or the transforms.json of nerfstudio."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lean3r.inputs.cameras import find_colmap, open_colmap, read_given
from lean3r.view.content import Points

TRANSFORMS = "transforms.json"


def cameras_in(folder: Path, manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each whole camera of the model, or of transforms.json, in a folder; none if it has neither. InputError
    if it cannot be read. A manifest tells where the poses come from, else they are given."""
    if find_colmap(folder) is None and not (folder / TRANSFORMS).is_file():
        return []
    rows = [
        {
            "name": camera.name.removeprefix("images/"),
            "width": camera.width,
            "height": camera.height,
            "k": camera.intrinsics,
            "pose": camera.cam_from_world,
            "registration": "given",
            "lens": camera.lens,
            "time": None,
        }
        for camera in read_given(folder).cameras
        if not any(part is None for part in (camera.width, camera.height, camera.intrinsics, camera.cam_from_world))
    ]
    views = manifest.get("views")
    listed = [view.get("registration") for view in (views if isinstance(views, list) else []) if isinstance(view, dict)]
    certain = [registration for registration in listed if registration != "uncertain"] or listed
    if len(certain) == len(rows):  # in their order; names may be those of undistorted pictures
        rows = [row | {"registration": registration} for row, registration in zip(rows, certain, strict=True)]
    return rows


def points_in(folder: Path) -> Points | None:
    """The points of a COLMAP model in a folder, the surer the more views measured them; None if there is no model or it
    has none. InputError if it cannot be read."""
    place = find_colmap(folder)
    found = [] if place is None else list(open_colmap(place).points3D.values())
    if not found:
        return None
    xyz = np.array([point.xyz for point in found], np.float32)
    conf = np.array([point.track.length() for point in found], np.float32)
    rgb = np.array([point.color for point in found], np.uint8)
    return Points(xyz, rgb, conf, np.zeros_like(xyz), np.full(len(xyz), -1, np.int32))
