"""The metric scale, from a known distance between two cameras or from GPS positions."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import torch

from lean3r.errors import InputError, UsageError
from lean3r.geometry.align import Similarity
from lean3r.geometry.earth import NADIR, earth_centred, level_axes
from lean3r.geometry.pose import camera_centers
from lean3r.geometry.rotation import so3_exp
from lean3r.geometry.up import ALIKE, PITCH_RAD, ROLL_RAD, Up, move_scene
from lean3r.refine.place_fit import FEWEST_PLACES, NO_SCALE, fit_places, misses
from lean3r.types import Reconstruction, with_warning

if TYPE_CHECKING:
    from lean3r.inputs.pictures import Pictures

# East, north, up to the world's axes: x east, y down, z north, so y points down as in every other result.
WORLD_FROM_ENU = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
UP = (0.0, -1.0, 0.0)  # in the world of `with_places`
LEAST_METRES, MOST_METRES = 1e-6, 1e9  # from microscopic to beyond the moon
STRAIGHT = 0.03  # ratio of width to length below which the positions count as a line
TYPICAL_GPS_M = 3.0
LEVEL_DEG = 5.0  # by which cameras without altitudes, taken as level, may be on a slope
EXIF_GPS = 0x8825
SHORT = (
    "{} and {} are close together for the size of this scene: errors of their distance are magnified in the scale; "
    "choose two pictures farther apart"
)
ANY_TWO = "only {} of {} GPS positions fit the cameras, which any two do: the scale and the directions are uncertain"
ON_A_LINE = "the GPS positions lie on a line, which leaves open what is up: {}"
ROWS = "it is taken from the pictures, whose rows are assumed to be horizontal"
ROWS_ALONG = (
    "the rows of the pictures run along that line, too, so the cameras are assumed to look ahead, neither up nor down; "
    "keep EXIF data that say how cameras were held, or take pictures beside the line"
)
GRAVITY = "it is taken from what the cameras measured"
NEAR = "the pictures were taken within about {:.0f} m, and GPS is accurate to about {:.0f} m: the scale is only rough"
STRAIGHT_DOWN = (
    "all cameras look straight down: the focal length and the height of the flight can hardly be told apart, and "
    "heights may be off by several per cent of it; give the focal length (--intrinsics), or oblique pictures too"
)


@dataclass(frozen=True)
class Distance:
    """The distance in metres between the cameras of two pictures, by their names; a comma in `first` or `second` may
    part them, too, where the pictures' names are such."""

    first: str
    second: str
    metres: float

    @classmethod
    def parse(cls, text: str) -> Distance:
        """From "IMG_1.jpg,IMG_2.jpg=1.25"; UsageError for anything else."""
        names, _, number = text.rpartition("=")
        first, comma, second = names.partition(",")
        try:
            metres = float(number)
        except ValueError:
            metres = math.nan
        if not (comma and first.strip() and second.strip() and LEAST_METRES <= metres <= MOST_METRES):
            raise UsageError(
                f"got the scale '{text}'; expected two pictures and the distance of their cameras in metres, from "
                f"{LEAST_METRES:g} to {MOST_METRES:g}: FIRST.jpg,SECOND.jpg=1.25"
            )
        return cls(first, second, metres)

    def views(self, names: Sequence[str]) -> tuple[int, int]:
        """The numbers of the two pictures among all `names`. InputError if one matches none or several, UsageError if
        both are the same."""
        parts = f"{self.first},{self.second}".split(",")
        pairs = [(",".join(parts[:i]).strip(), ",".join(parts[i:]).strip()) for i in range(1, len(parts))]
        found = [pair for pair in pairs if all(_fitting(names, name) for name in pair)]
        first, second = found[0] if found else (self.first.strip(), self.second.strip())
        views = _view(names, first), _view(names, second)
        if views[0] == views[1]:
            raise UsageError(f"'{first}' and '{second}' are one picture; expected two.")
        return views


@dataclass(frozen=True)
class Place:
    """Where a picture was taken: degrees north and east (WGS 84), metres above sea level (None: not recorded)."""

    latitude_deg: float
    longitude_deg: float
    altitude_m: float | None = None


def with_distance(reconstruction: Reconstruction, known: Distance) -> Reconstruction:
    """The scene in metres: scaled by the known distance between two cameras.

    The world keeps its origin and axes. InputError if a name matches no picture or several, if the cameras coincide, or
    if one of them is uncertain.
    """
    views = known.views(reconstruction.names)
    first, second = names = [reconstruction.names[view] for view in views]
    for name, view in zip(names, views, strict=True):
        if not reconstruction.is_certain[view]:
            raise InputError(
                f"the camera of {name} is uncertain, so its distance gives no scale. Choose another picture, or leave "
                "--scale out to see which cameras are certain."
            )
    centres = camera_centers(torch.from_numpy(reconstruction.cam_from_world)).numpy()
    apart = float(np.linalg.norm(centres[views[0]] - centres[views[1]]))
    certain = centres[reconstruction.is_certain]
    size = float(np.linalg.norm(certain - certain.mean(axis=0), axis=1).max())
    if not apart > 1e-6 * size:
        raise InputError(
            f"the cameras of {first} and {second} are at one place, so {known.metres} m gives no scale. "
            "Choose two pictures taken well apart."
        )
    if apart < 0.2 * size:
        reconstruction = with_warning(reconstruction, "rough-scale", SHORT.format(first, second), views)
    scale = known.metres / apart
    said = {"first": first, "second": second, "metres": known.metres}
    info = {**reconstruction.info, "known_distance": {**said, "units_per_metre": 1 / scale}}
    identity = torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    fit = Similarity(torch.tensor(scale, dtype=torch.float64), *identity)
    return move_scene(replace(reconstruction, info=info, scale="metric"), fit)


def with_places(reconstruction: Reconstruction, places: Mapping[str, Place]) -> Reconstruction:
    """The scene in metres, upright and turned north: a robust similarity from its cameras to their GPS positions.

    The world's axes become x east, y down, z north, its origin the mean position. `info["gps"]` holds the origin, the
    pictures used and their residuals. Positions on a line do not determine the rotation around it: the pictures are
    then assumed to be level, as where only two fit the cameras. Uncertain cameras are left out. InputError with fewer
    than three positions, or if all coincide.
    """
    views = [view for view, name in enumerate(reconstruction.names) if name in places]
    located = require_places(reconstruction.names, places)
    has_height = np.array([place.altitude_m is not None for place in located])
    target, origin = local_metres(located)
    centres = camera_centers(torch.from_numpy(reconstruction.cam_from_world[views])).numpy()
    certain = reconstruction.is_certain[views]
    if certain.sum() < 2 or np.ptp(centres[certain], axis=0).max() < 1e-9:
        raise InputError(f"fewer than two cameras with a GPS position are certain and apart, {NO_SCALE}")
    given = target
    fit, used, target = fit_places(centres, given, certain, has_height)
    is_confirmed = int(used.sum()) >= FEWEST_PLACES
    is_line, up = not is_confirmed or any(map(_on_line, (target[used], centres[used]))), Up(UP, "gps")
    if target is given and not has_height.any():
        up = Up(UP, "gps", "cameras at one height, as their positions have none", LEVEL_DEG)
    if not is_confirmed:
        reconstruction = with_warning(reconstruction, "rough-scale", ANY_TWO.format(used.sum(), len(views)))
    if is_line:
        fit, said_up, up = _level(fit, reconstruction, target[used])
        reconstruction = with_warning(reconstruction, "positions-on-a-line", ON_A_LINE.format(said_up))
    away = fit.apply(torch.from_numpy(centres)).numpy() - target
    off = misses(fit, centres, target, has_height)
    extent = float(np.sqrt(((target[used] - target[used].mean(axis=0)) ** 2).sum(axis=1).mean()))
    rms = float(np.sqrt((off[used] ** 2).mean()))
    if extent < 3 * max(rms, TYPICAL_GPS_M):
        reconstruction = with_warning(reconstruction, "rough-scale", NEAR.format(2 * extent, max(rms, TYPICAL_GPS_M)))
    said = {
        "pictures": len(views),
        "used": int(used.sum()),
        "left_out": [reconstruction.names[view] for view, good in zip(views, used, strict=True) if not good],
        "rms_m": round(rms, 3),
        "extent_m": round(2 * extent, 2),
        "scale_error": round(rms / extent / math.sqrt(int(used.sum()) - 1), 5) if is_confirmed else None,
        "with_altitude": bool(has_height.all()),
        "on_a_line": is_line,
        "origin": {"latitude_deg": origin.latitude_deg, "longitude_deg": origin.longitude_deg}
        | ({} if origin.altitude_m is None else {"altitude_m": origin.altitude_m}),
        "axes": "x east, y down, z north",
        "residuals": [
            {"name": reconstruction.names[view]}
            | dict(zip(("east_m", "north_m", "up_m"), np.round(row[[0, 2, 1]] * [1, 1, -1], 3).tolist(), strict=True))
            | ({} if is_known else {"up_m": None})
            for view, row, is_known in zip(views, away, has_height, strict=True)
        ],
    }
    info = {**reconstruction.info, "gps": said}
    moved = move_scene(replace(reconstruction, info=info, scale="metric"), fit)
    moved = replace(moved, info={**moved.info, "up": up.as_dict()})
    knows_focals = moved.info.get("known", {}).get("views", {}).get("intrinsics", 0) == len(moved.names)
    if not knows_focals and float(moved.cam_from_world[moved.is_certain, 2, 1].min()) > NADIR:
        return with_warning(moved, "straight-down", STRAIGHT_DOWN)
    return moved


def require_places(names: Collection[str], places: Mapping[str, Place]) -> list[Place]:
    """The known positions of the pictures; InputError if they are too few, or coincide, and give no scale."""
    located = [places[name] for name in names if name in places]
    if len(located) < FEWEST_PLACES:
        raise InputError(
            f"{len(located)} of {len(names)} pictures have a GPS position; expected at least {FEWEST_PLACES}. "
            "Leave --gps out, give positions with --positions, or a known distance with --scale."
        )
    target, _ = local_metres(located)
    if np.linalg.svd(target - target.mean(axis=0), compute_uv=False)[0] < 0.1:
        raise InputError(f"all pictures were taken at one place by their GPS, {NO_SCALE}")
    return located


def _on_line(points: np.ndarray) -> bool:
    spread = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
    return bool(spread[1] <= STRAIGHT * spread[0])


def _level(fit: Similarity, scene: Reconstruction, target: np.ndarray) -> tuple[Similarity, str, Up]:
    """The similarity rotated around the line of positions [N, 3] so that the certain cameras are as people, and
    drones, hold them, and up is what they measured, if they did; and where up comes from, in words and as Up.

    Rows are horizontal, whether cameras look ahead or down; where rows run along the line, too, cameras look ahead.
    """
    middle = target.mean(axis=0)
    axis = np.linalg.svd(target - middle)[2][0]
    posed = fit.apply_to_poses(torch.from_numpy(scene.cam_from_world[scene.is_certain])).numpy()[:, :3, :3]
    right, below, ahead = posed.transpose(1, 0, 2)  # x, y and z of each camera [S, 3], before the turn
    known = scene.info.get("up") or {}
    gravity = known if str(known.get("source")).startswith("exif") else None
    turns = so3_exp(torch.deg2rad(torch.arange(0, 360, 0.5, dtype=torch.float64))[:, None] * torch.from_numpy(axis))
    down = turns.numpy()[:, 1]  # what each turn [T, 3] makes down
    roll = np.einsum("ti,ij,tj->t", down, right.T @ right / len(right), down)
    unlikely = roll / ROLL_RAD**2 + (down @ ahead.mean(axis=0)) ** 2 / PITCH_RAD**2
    # Two rotations are level; people and drones look ahead or down, not up.
    unlikely += np.where(down @ (below + ahead).mean(axis=0) < 0, 2 / ROLL_RAD**2, 0.0)
    if gravity is not None:
        measured = down @ fit.rotation.numpy() @ np.asarray(gravity["direction"], np.float64)
        unlikely += 2 * (1 + measured) / math.radians(max(gravity["error_deg"], 1.0)) ** 2
    turn, centre = turns[int(unlikely.argmin())], torch.from_numpy(middle)
    turned = Similarity(fit.scale, turn @ fit.rotation, turn @ (fit.translation - centre) + centre)
    if gravity is not None:
        return turned, GRAVITY, Up(UP, "gps", "what the cameras measured, across the line of the positions")
    if np.abs(right @ axis).mean() < ALIKE:
        return turned, ROWS, Up(UP, "gps", "horizontal rows of the pictures, across the line of the positions")
    said = "cameras that look ahead, along the line of the positions"
    return turned, ROWS_ALONG, Up(UP, "gps", said, math.degrees(PITCH_RAD))


def local_metres(places: Sequence[Place]) -> tuple[np.ndarray, Place]:
    """Positions [N] in metres [N, 3] in the world's axes (x east, y down, z north) around their mean, and the mean.

    Positions without a height get the median of the others.
    """
    known = [place.altitude_m for place in places if place.altitude_m is not None]
    usual = float(np.median(known)) if known else 0.0
    heights = [usual if place.altitude_m is None else place.altitude_m for place in places]
    # Longitude jumps at 180 degrees; sine and cosine do not.
    longitudes = np.deg2rad([place.longitude_deg for place in places])
    middle = math.degrees(math.atan2(np.sin(longitudes).mean(), np.cos(longitudes).mean()))
    latitude = float(np.mean([place.latitude_deg for place in places]))
    height = float(np.median(heights))
    centred = [
        earth_centred(place.latitude_deg, place.longitude_deg, h) for place, h in zip(places, heights, strict=True)
    ]
    enu = (np.stack(centred) - earth_centred(latitude, middle, height)) @ level_axes(latitude, middle).T
    return enu @ WORLD_FROM_ENU.T, Place(latitude, middle, height if known else None)


def read_places(pictures: Pictures, names: Collection[str]) -> dict[str, Place]:
    """GPS positions of the pictures called `names` that have one in EXIF."""
    fixes = ((name, place_of(fields)) for name, fields in pictures.exif(names, EXIF_GPS))
    return {name: place for name, place in fixes if place is not None}


def place_of(exif: Mapping[int, object]) -> Place | None:
    """The position in the EXIF GPS block of a picture; None if it is missing, invalid, or without a fix."""
    try:
        latitude, longitude = _degrees(exif[2]), _degrees(exif[4])  # type: ignore[arg-type]
        north, east = str(exif.get(1, "N")).strip().upper(), str(exif.get(3, "E")).strip().upper()
        altitude = None if 6 not in exif else float(exif[6])  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError, ArithmeticError, IndexError):
        return None
    latitude, longitude = (-latitude if north == "S" else latitude), (-longitude if east == "W" else longitude)
    below = exif.get(5) in (1, 3, b"\x01", b"\x03")  # the sea, or the ellipsoid
    if altitude is not None:
        altitude = (-altitude if below else altitude) if math.isfinite(altitude) else None
    # Cameras without a fix write zeros.
    has_fix = str(exif.get(9, "A")).strip().upper() != "V"
    if not has_fix or not (abs(latitude) <= 90 and abs(longitude) <= 180) or latitude == longitude == 0:
        return None
    return Place(latitude, longitude, altitude)


def _degrees(parts: Sequence[float]) -> float:
    degrees, *rest = (*map(float, parts), 0.0, 0.0)[:3]
    minutes, seconds = (value if math.isfinite(value) else 0.0 for value in rest)  # 0/0 where they are not used
    return degrees + minutes / 60 + seconds / 3600


def _view(names: Sequence[str], wanted: str) -> int:
    """The view with a name: in full, or its last parts (a.jpg for photos/a.jpg)."""
    fitting = _fitting(names, wanted)
    if len(fitting) == 1:
        return fitting[0]
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    many = "matches no picture" if not fitting else f"matches {len(fitting)} pictures"
    raise InputError(f"--scale: '{wanted}' {many}; the pictures used are {shown}.")


def _fitting(names: Sequence[str], wanted: str) -> list[int]:
    """The view with a name, or those whose names end with its parts, or else that with whose name its path ends."""
    if wanted in names:
        return [names.index(wanted)]
    tail, paths = PurePosixPath(wanted).parts, [PurePosixPath(name).parts for name in names]
    longer = [i for i, path in enumerate(paths) if tail and path[-len(tail) :] == tail]
    return longer or [i for i, path in enumerate(paths) if tail[-len(path) :] == path]
