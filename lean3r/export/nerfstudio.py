"""transforms.json: cameras in the format of nerfstudio, with images/ and points.ply."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lean3r.errors import UsageError
from lean3r.export import lenses as exported
from lean3r.export import pictures, ply
from lean3r.export.cameras import json_bytes
from lean3r.export.lenses import Camera, camera_table
from lean3r.export.options import ExportOptions
from lean3r.types import Lens, Reconstruction, Source

# nerfstudio's cameras have x right, y up, z backward; the world stays as it is.
OPENCV_FROM_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
# Indices of (fx, fy, cx, cy) and of the distortion coefficients among the parameters of COLMAP's models.
PARAMETERS = {
    "SIMPLE_PINHOLE": ((0, 0, 1, 2), {}),
    "PINHOLE": ((0, 1, 2, 3), {}),
    "SIMPLE_RADIAL": ((0, 0, 1, 2), {"k1": 3}),
    "RADIAL": ((0, 0, 1, 2), {"k1": 3, "k2": 4}),
    "OPENCV": ((0, 1, 2, 3), {"k1": 4, "k2": 5, "p1": 6, "p2": 7}),
    "FULL_OPENCV": ((0, 1, 2, 3), {"k1": 4, "k2": 5, "p1": 6, "p2": 7, "k3": 8}),  # without the denominator
    "OPENCV_FISHEYE": ((0, 1, 2, 3), {"k1": 4, "k2": 5, "k3": 6, "k4": 7}),
}
LEAST_RAD = 1e-6  # of a FOV lens, which divides by it: less bends nothing
FISHEYE, ANGLES = "FOV", 100  # a lens that nerfstudio does not have; angles at which another one follows it
UNBENT = dict.fromkeys(("k1", "k2", "p1", "p2"), 0.0)


def write(reconstruction: Reconstruction, directory: Path, options: ExportOptions) -> list[Path]:
    """Write transforms.json, points.ply if there are points, and images/ where the options say where the pictures are.

    Each frame has its own lens, or all the one at the top of the file; uncertain views are left out. UsageError for a
    lens that nerfstudio cannot describe.
    """
    check(options, reconstruction.sources, reconstruction.lenses)
    reconstruction = reconstruction.of_certain()
    table = camera_table(reconstruction, options)
    known = UNBENT if reconstruction.lenses else {}  # without k1, distortion is unknown, not zero
    lenses = [known | _fields(camera) for camera in table.cameras]
    models = {str(lens.pop("camera_model")) for lens in lenses}
    poses = np.linalg.inv(reconstruction.cam_from_world) @ OPENCV_FROM_OPENGL
    content: dict[str, object] = {"camera_model": models.pop()}
    if len(lenses) == 1:
        content |= lenses[0]
    written = []
    if len(reconstruction.points.xyz):
        content["ply_file_path"] = "points.ply"
        if not (directory / "points.ply").exists():
            written += ply.write(reconstruction, directory, options)
    content["frames"] = [
        {"file_path": f"{pictures.FOLDER}/{name}"}
        | (lenses[number] if len(lenses) > 1 else {})
        | {"transform_matrix": pose.tolist()}
        for name, number, pose in zip(table.names, table.camera_of, poses, strict=True)
    ]
    path = directory / "transforms.json"
    path.write_bytes(json_bytes(content))
    return [path, *written, *pictures.write(reconstruction, directory, options, table)]


def check(options: ExportOptions, sources: Sequence[Source], lenses: Sequence[Lens | None]) -> None:
    """UsageError if nerfstudio cannot describe one of the lenses (None: not known yet) or all of them together, or if
    there are several where one is asked for."""
    exported.check(options, sources, lenses)
    if options.undistort:
        return
    models = set()
    for lens in filter(None, lenses):
        if lens.model not in (*PARAMETERS, FISHEYE) or (lens.model == "FULL_OPENCV" and any(lens.params[9:])):
            known = ", ".join([*PARAMETERS, FISHEYE])
            raise UsageError(
                f"nerfstudio has no lens model {lens.model}; expected {known}, k4 to k6 zero. "
                "Write undistorted pictures instead: --undistort (undistort=True)."
            )
        models.add(_model(lens))
    if len(models) > 1:
        raise UsageError(
            f"nerfstudio needs one lens model for all views; got {', '.join(sorted(models))}. "
            "Write undistorted pictures instead: --undistort (undistort=True)."
        )


def _model(lens: Lens) -> str:
    return "OPENCV_FISHEYE" if lens.model in ("OPENCV_FISHEYE", FISHEYE) else "OPENCV"


def _fields(camera: Camera) -> dict[str, str | float]:
    """The fields of a camera in transforms.json."""
    lens = camera.lens
    fields: dict[str, str | float] = {"camera_model": _model(lens), "w": camera.width, "h": camera.height}
    lens = of_angles(lens, camera.width, camera.height) if lens.model == FISHEYE else lens
    places, distortion = PARAMETERS[lens.model]
    fields |= {key: lens.params[at] for key, at in zip(("fl_x", "fl_y", "cx", "cy"), places, strict=True)}
    return fields | {key: lens.params[at] for key, at in distortion.items()}


def of_angles(lens: Lens, width: int, height: int) -> Lens:
    """A FOV lens for pictures of width x height pixels as an OPENCV_FISHEYE one: the polynomial of the angle that
    follows it as far as the corners."""
    fx, fy, cx, cy, omega = lens.params
    omega = max(abs(omega), LEAST_RAD)
    widening = 2 * np.tan(omega / 2)
    corner = np.hypot(max(cx, width - cx) / fx, max(cy, height - cy) / fy)
    away = np.linspace(0, min(corner, 0.49 * np.pi / omega), ANGLES + 1)[1:]  # from the middle, in focal lengths
    angle = np.arctan(np.tan(omega * away) / widening)
    scale = widening / omega
    bend = away / scale / angle - 1
    powers = angle[:, None] ** [2, 4, 6, 8]
    terms = np.linalg.lstsq(powers, bend, rcond=None)[0]
    return Lens("OPENCV_FISHEYE", (fx * scale, fy * scale, cx, cy, *map(float, terms)))
