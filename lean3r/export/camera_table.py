"""cameras.csv: a row a view, for spreadsheets and surveying programs, with its residuals."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lean3r.export.frusta import camera_centres
from lean3r.export.geo import enu_from_world, origin_of
from lean3r.export.names import encodable
from lean3r.export.options import ExportOptions
from lean3r.geometry.earth import NADIR, geodetic
from lean3r.types import Reconstruction

HEADER = (
    "name", "registration", "x", "y", "z", "east", "north", "up", "yaw_deg", "pitch_deg", "roll_deg",
    "latitude_deg", "longitude_deg", "altitude_m", "error_px",
    "gps_residual_east_m", "gps_residual_north_m", "gps_residual_up_m", "gps_residual_m",
    "width", "height", "focal_px", "time_s",
)  # fmt: skip
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # spreadsheets run cells that start so


def write(reconstruction: Reconstruction, directory: Path, options: ExportOptions) -> list[Path]:
    """Write cameras.csv.

    x, y, z are in the result's world, east, north, up in level axes around its origin, in world units. Yaw is clockwise
    from north, pitch above the horizon, roll clockwise. Latitude, longitude and altitude need GPS; residuals are the
    camera minus its position by GPS; error_px is the median reprojection error after refinement. What is not known is
    empty.
    """
    scene = reconstruction
    level, origin = enu_from_world(scene), origin_of(scene)
    centres = camera_centres(scene.cam_from_world)
    enu = centres @ level.T
    angles = _angles(scene.cam_from_world[:, :3, :3] @ level.T)
    degrees = None
    if origin is not None:
        degrees = geodetic(enu, origin.latitude_deg, origin.longitude_deg, origin.altitude_m)
        degrees = degrees if origin.knows_altitude else degrees[:, :2]
    records = scene.info.get("refinement", {}).get("views") or [{}] * len(scene.sources)
    residuals = {row["name"]: row for row in scene.info.get("gps", {}).get("residuals", ())}
    path = directory / "cameras.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(HEADER)
        for view, source in enumerate(scene.sources):
            place = [] if degrees is None else degrees[view]
            table.writerow(
                [
                    _cell(source.name),
                    scene.registration[view] if scene.registration else "predicted",
                    *(f"{value:.12g}" for value in (*centres[view], *enu[view])),
                    *(f"{value:.4f}" for value in angles[view]),
                    *(f"{value:.{digits}f}" for value, digits in zip(place, (9, 9, 4), strict=False)),
                    *[""] * (3 - len(place)),
                    _number((records[view].get("error_px") or {}).get("after")),
                    *_residual(residuals.get(source.name, {})),
                    source.width,
                    source.height,
                    f"{float(np.mean(scene.original_intrinsics[view][[0, 1], [0, 1]])):.6g}",
                    _number(source.timestamp_s),
                ]
            )
    return [path]


def _residual(row: Mapping[str, Any]) -> list[str]:
    """East, north, up and their length, which is level where the positions have no altitude."""
    if not row:
        return [""] * 4
    values = [float(row[key]) for key in ("east_m", "north_m", "up_m") if row[key] is not None]
    return [*(f"{value:.3f}" for value in values), *[""] * (3 - len(values)), f"{np.linalg.norm(values):.3f}"]


def _angles(cam_from_level: np.ndarray) -> np.ndarray:
    """Yaw, pitch and roll [S, 3] in degrees of rotations [S, 3, 3] from east, north, up. Of a camera that looks about
    straight down, yaw is where the top of its picture points: that in which it looks hardly tells, and jumps."""
    right, down, ahead = (cam_from_level[:, axis] for axis in range(3))
    pitch = np.arcsin(ahead[:, 2].clip(-1, 1))
    is_steep = np.abs(ahead[:, 2]) > NADIR
    heading = np.where(is_steep[:, None], -down * np.sign(-ahead[:, 2:]), ahead)
    yaw = np.arctan2(heading[:, 0], heading[:, 1])
    roll = np.where(is_steep, np.arcsin(-right[:, 2].clip(-1, 1)), np.arctan2(-right[:, 2], -down[:, 2]))
    return np.degrees(np.stack([yaw % (2 * np.pi), pitch, roll], axis=1))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.9g}"


def _cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula, without bytes that are not UTF-8."""
    text = encodable(text)
    return f"'{text}" if text.startswith(FORMULA) else text
