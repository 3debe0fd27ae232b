"""Coordinates for surveying programs: level axes (east, north, up), and map projections by pyproj."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lean3r.errors import InputError, MissingExtraError, UsageError

if TYPE_CHECKING:
    from pyproj import CRS

    from lean3r.types import Reconstruction

logger = logging.getLogger("lean3r")

AUTO, LOCAL, UTM = "auto", "enu", "utm"
EXPECTED = "auto, enu, utm or EPSG:NUMBER"
BESIDE_DEG = 6.0  # so far outside its area a map is used, too: in the zone of UTM beside
NOT_LOCATED = (
    "--crs {} needs a place on earth, which only --gps or --positions give; expected one of them, or --crs enu for "
    "local coordinates."
)


@dataclass(frozen=True)
class Origin:
    """Where on earth the world's origin is: degrees (WGS 84), and metres (0 if the altitude is not known, and heights
    are only relative)."""

    latitude_deg: float
    longitude_deg: float
    altitude_m: float
    knows_altitude: bool = True


@dataclass(frozen=True, eq=False)
class GeoFrame:
    """From a scene's world to coordinates east, north and height, and back.

    `crs` is the coordinate system (None: local axes around the world's origin), `unit` that of all three coordinates
    ("metre", or "unknown").
    """

    enu_from_world: np.ndarray
    crs: CRS | None
    unit: str
    _project: _Chain | None = None

    def of_world(self, xyz: np.ndarray) -> np.ndarray:
        """Coordinates [P, 3] float64 of world points [P, 3]."""
        enu = xyz.astype(np.float64) @ self.enu_from_world.T
        if self._project is None or not len(enu):
            return enu
        return np.stack(self._project.transform(*enu.T), axis=1)

    def to_world(self, places: np.ndarray) -> np.ndarray:
        """World points [P, 3] of coordinates [P, 3]."""
        if self._project is not None and len(places):
            places = np.stack(self._project.transform(*places.T, direction="INVERSE"), axis=1)
        return places @ self.enu_from_world


def enu_from_world(scene: Reconstruction) -> np.ndarray:
    """The rotation [3, 3] from the world to level axes: x east, y north, z up; without GPS, north is only a name for
    the direction in which the world's z axis points."""
    from lean3r.geometry.up import upright_from_world  # loads torch, as lean3r.types does: services check without

    return upright_from_world(scene)[[0, 2, 1]] * np.array([[1.0], [1.0], [-1.0]])


def origin_of(scene: Reconstruction) -> Origin | None:
    """Where the world's origin is on earth; None without GPS or positions."""
    at = scene.info.get("gps", {}).get("origin")
    if at is None:
        return None
    return Origin(at["latitude_deg"], at["longitude_deg"], at.get("altitude_m", 0.0), "altitude_m" in at)


def geo_frame(scene: Reconstruction, crs: str) -> GeoFrame:
    """The coordinates that `crs` names: "auto" is UTM for a scene with GPS, else local axes. These, with a warning,
    also serve a scene whose cameras turned out to give no place, or one that lies outside the map: a run must not lose
    its result.

    UsageError for an unknown name; InputError for a map projection without GPS; MissingExtraError without pyproj.
    """
    check_crs(crs)
    origin, turn = origin_of(scene), enu_from_world(scene)
    local = GeoFrame(turn, None, "metre" if scene.scale == "metric" else "unknown")
    if crs == LOCAL or (crs == AUTO and origin is None):
        return local
    if origin is None:
        if not any(warning["code"] == "no-scale" for warning in scene.info.get("warnings", ())):
            raise InputError(NOT_LOCATED.format(crs))
        logger.warning("coordinates are local, not in %s: the cameras give no place on earth", crs)
        return local
    projection = pyproj()
    try:
        system = _system(crs, origin.latitude_deg, origin.longitude_deg)
    except InputError as error:
        logger.warning("coordinates are local, not on a map: %s", error)
        return local
    centre = f"+lat_0={origin.latitude_deg!r} +lon_0={origin.longitude_deg!r} +h_0={origin.altitude_m!r}"
    steps = projection.Transformer.from_pipeline(
        f"+proj=pipeline +step +inv +proj=topocentric {centre} +ellps=WGS84 +step +inv +proj=cart +ellps=WGS84 "
        f"+step +proj=unitconvert +xy_in=rad +xy_out=deg"
    )
    onward = projection.Transformer.from_crs(projection.CRS.from_epsg(4326), system, always_xy=True)
    return GeoFrame(turn, system, "metre", _Chain(steps, onward))


class _Chain:
    """Level axes to degrees and heights, and degrees to a map. Heights stay as they are: in three dimensions, a
    national system would move them to its own ellipsoid, by some 50 m."""

    def __init__(self, level: Any, onward: Any) -> None:
        self._level, self._onward = level, onward

    def transform(self, x: np.ndarray, y: np.ndarray, z: np.ndarray, direction: str = "FORWARD") -> tuple:
        if direction == "FORWARD":
            x, y, z = self._level.transform(x, y, z)
            return *self._onward.transform(x, y), z
        x, y = self._onward.transform(x, y, direction=direction)
        return self._level.transform(x, y, z, direction=direction)


def check_crs(crs: str) -> None:
    """UsageError unless `crs` is a name that `geo_frame` knows."""
    name, _, number = crs.partition(":")
    if crs not in (AUTO, LOCAL, UTM) and not (name.lower() == "epsg" and number.isdecimal() and len(number) < 7):
        raise UsageError(f"--crs is {crs!r}; expected {EXPECTED}.")


def check_place(crs: str, places: Sequence[tuple[float, float]]) -> None:
    """InputError if the middle of places (latitude, longitude) in degrees lies outside the map that `crs` names."""
    if crs not in (AUTO, LOCAL) and places:
        latitudes_deg, longitudes_deg = np.transpose(places)
        first = longitudes_deg[0]  # the date line may part them
        east_deg = ((longitudes_deg - first + 180) % 360 - 180).mean()
        _system(crs, float(latitudes_deg.mean()), float((first + east_deg + 180) % 360 - 180))


def _system(crs: str, latitude_deg: float, longitude_deg: float) -> CRS:
    """The system for a place; InputError if it has none there."""
    projection, at = pyproj(), (longitude_deg, latitude_deg)
    if crs in (AUTO, UTM):
        from pyproj.aoi import AreaOfInterest
        from pyproj.database import query_utm_crs_info

        zones = query_utm_crs_info("WGS 84", AreaOfInterest(*at, *at))
        if not zones:
            raise InputError(
                f"there is no UTM zone at latitude {latitude_deg:.3f}; expected -80 to 84. Name another system with "
                "--crs EPSG:NUMBER, or take --crs enu."
            )
        return projection.CRS.from_authority(zones[0].auth_name, zones[0].code)
    system = registered(crs)
    area = system.area_of_use
    if area is not None and not _covers(area, *at):
        raise InputError(
            f"--crs {crs} is {system.name}, a map of elsewhere ({area.name.rstrip('.')}); the pictures "
            f"were taken at latitude {latitude_deg:.3f}, longitude {longitude_deg:.3f}. Expected the map of that "
            "place, or --crs utm."
        )
    return system


def _covers(area: Any, longitude_deg: float, latitude_deg: float) -> bool:
    """Whether an area of use, or what is beside it, contains a place."""
    width = area.east - area.west  # below 0 across 180 degrees
    width = width if width >= 360 else width % 360
    across = (longitude_deg - area.west + BESIDE_DEG) % 360 <= width + 2 * BESIDE_DEG
    return across and area.south - BESIDE_DEG <= latitude_deg <= area.north + BESIDE_DEG


def registered(crs: str) -> CRS:
    """The map projection EPSG:NUMBER; UsageError if there is none, MissingExtraError without pyproj."""
    projection = pyproj()
    try:
        system = projection.CRS.from_epsg(int(crs.partition(":")[2]))
    except projection.exceptions.CRSError as error:
        raise UsageError(f"--crs {crs} is not in the registry of coordinate systems ({error}).") from error
    if not system.is_projected or any(axis.unit_name != "metre" for axis in system.axis_info):
        raise UsageError(f"--crs {crs} is {system.name}; expected a map projection in metres, such as a UTM zone.")
    return system


def wkt_of(system: CRS) -> str:
    """A system in the WKT of 2001, which LAS 1.4 names and all readers know; in the newer one if it lacks the
    projection."""
    try:
        return system.to_wkt("WKT1_GDAL")
    except pyproj().exceptions.CRSError:
        return system.to_wkt()


def check() -> None:
    """MissingExtraError unless the packages of the extra `geo` are installed."""
    for of in (pyproj, laspy, rasterio):
        of()


def pyproj() -> Any:
    """The module; MissingExtraError if it is not installed."""
    try:
        import pyproj
    except ImportError as error:
        raise MissingExtraError.of("map projections", "geo") from error
    return pyproj


def laspy() -> Any:
    """The module, with a codec of LAZ; MissingExtraError if either is not installed."""
    try:
        import laspy
        import lazrs  # noqa: F401
    except ImportError as error:
        raise MissingExtraError.of("writing LAS and LAZ", "geo") from error
    return laspy


def rasterio() -> Any:
    """The module; MissingExtraError if it is not installed."""
    try:
        import rasterio
    except ImportError as error:
        raise MissingExtraError.of("writing GeoTIFF", "geo") from error
    return rasterio
