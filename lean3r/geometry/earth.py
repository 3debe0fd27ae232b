"""Places on the earth: degrees to metres from its centre (WGS 84) and back, and a level frame around an origin."""

from __future__ import annotations

import numpy as np

# The ellipsoid of GPS (WGS 84): half the long axis in metres, and the square of its eccentricity.
LONG_AXIS_M, ECCENTRICITY_2 = 6_378_137.0, 6.694379990141e-3
NADIR = float(np.cos(np.radians(20)))  # between straight down and the views of a nadir flight


def earth_centred(latitude_deg: float, longitude_deg: float, height_m: float) -> np.ndarray:
    """Metres [3] from the centre of the earth; x towards longitude 0 on the equator, z towards the pole."""
    latitude, longitude = np.radians([latitude_deg, longitude_deg])
    curve = LONG_AXIS_M / np.sqrt(1 - ECCENTRICITY_2 * np.sin(latitude) ** 2)
    flat = (curve + height_m) * np.cos(latitude)
    z = (curve * (1 - ECCENTRICITY_2) + height_m) * np.sin(latitude)
    return np.array([flat * np.cos(longitude), flat * np.sin(longitude), z])


def level_axes(latitude_deg: float, longitude_deg: float) -> np.ndarray:
    """The directions [3, 3] of east, north and up at a place, as rows, in earth-centred axes."""
    latitude, longitude = np.radians([latitude_deg, longitude_deg])
    east = np.array([-np.sin(longitude), np.cos(longitude), 0.0])
    up = np.array([np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)])
    return np.stack([east, np.cross(up, east), up])


def geodetic(enu: np.ndarray, latitude_deg: float, longitude_deg: float, height_m: float) -> np.ndarray:
    """Latitude and longitude in degrees and height in metres [P, 3] of places [P, 3] east, north and up of an origin in
    metres."""
    x, y, z = (earth_centred(latitude_deg, longitude_deg, height_m) + enu @ level_axes(latitude_deg, longitude_deg)).T
    flat = np.hypot(x, y)
    latitude = np.arctan2(z, flat * (1 - ECCENTRICITY_2))
    for _ in range(6):  # each step gains about three digits
        curve = LONG_AXIS_M / np.sqrt(1 - ECCENTRICITY_2 * np.sin(latitude) ** 2)
        latitude = np.arctan2(z + ECCENTRICITY_2 * curve * np.sin(latitude), flat)
    curve = LONG_AXIS_M / np.sqrt(1 - ECCENTRICITY_2 * np.sin(latitude) ** 2)
    # Exact everywhere, unlike flat / cos(latitude), which fails at the poles.
    height = flat * np.cos(latitude) + z * np.sin(latitude) - LONG_AXIS_M**2 / curve
    return np.stack([np.degrees(latitude), np.degrees(np.arctan2(y, x)), height], axis=1)
