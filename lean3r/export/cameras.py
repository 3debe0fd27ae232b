"""cameras.json: the cameras of the original pictures, for people and scripts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from lean3r.export.options import ExportOptions
from lean3r.types import Reconstruction


def write(reconstruction: Reconstruction, directory: Path, options: ExportOptions) -> list[Path]:
    """Write cameras.json.

    Each view has its name, size, K in original pixels, the pose in both directions, the origin of the pose
    (`registration`), whether it is uncertain, its time in a video in seconds, and its lens if refined.
    """
    views = [
        {
            "name": source.name,
            "width": source.width,
            "height": source.height,
            "K": intrinsics.tolist(),
            "cam_from_world": pose.tolist(),
            "world_from_cam": np.linalg.inv(pose).tolist(),
            "registration": registration,
            "uncertain": registration == "uncertain",
        }
        | ({} if source.timestamp_s is None else {"timestamp_s": source.timestamp_s})
        for source, intrinsics, pose, registration in zip(
            reconstruction.sources,
            reconstruction.original_intrinsics,
            reconstruction.cam_from_world,
            reconstruction.registration or ("predicted",) * len(reconstruction.sources),
            strict=True,
        )
    ]
    for view, lens in zip(views, reconstruction.lenses, strict=False):
        view["lens"] = {"model": lens.model, "params": list(lens.params)}
    path = directory / "cameras.json"
    path.write_bytes(json_bytes({"axes": "opencv", "scale": reconstruction.scale, "views": views}))
    return [path]


def json_bytes(value: object) -> bytes:
    """Indented JSON in UTF-8; bytes of file names that are not UTF-8 become escapes, which keep their values."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")
