"""Positions of pictures from a table instead of EXIF: a CSV file of name, latitude, longitude, perhaps altitude."""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath

from lean3r.errors import InputError
from lean3r.refine.scale import Place

logger = logging.getLogger("lean3r")

COLUMNS = {
    "name": ("name", "image", "file", "filename", "file_name", "image_name", "photo", "label"),
    "latitude": ("lat", "latitude", "lat_deg", "latitude_deg"),
    "longitude": ("lon", "lng", "long", "longitude", "lon_deg", "longitude_deg"),
    "altitude": ("alt", "altitude", "height", "elevation", "alt_m", "altitude_m", "ele"),
}
LARGEST_BYTES = 50_000_000
EXPECTED = "a table with the columns name, lat, lon and, perhaps, alt: degrees (WGS 84) and metres"


def read_positions(path: str | Path, names: Sequence[str], *, warn: bool = True) -> dict[str, Place]:
    """The positions of the pictures `names`, by name, in a CSV file with a header line.

    Commas, semicolons or tabs separate the columns. A row means the picture with its name, or whose path ends with it,
    or else with whose name it ends; rows for other pictures are left out, with a warning (`warn`). InputError if a
    column is missing, a row is damaged or repeated, or no row means a picture; it says which line.
    """
    path = Path(path)
    header, rows = _rows(path)
    at = _columns(header, path)
    found: dict[str, Place] = {}
    lines: dict[str, int] = {}
    strangers: list[str] = []
    ends, whole = _endings(names), frozenset(names)
    for line, row in rows:
        where = f"line {line} of {path}"
        if len(row) < len(header):
            raise InputError(f"{where} has {len(row)} columns, its header {len(header)}; expected {EXPECTED}.")
        given = row[at["name"]].strip()
        place = _place({key: row[column].strip() for key, column in at.items()}, where)
        given_path = PurePosixPath(given.replace("\\", "/"))
        within = ("/".join(given_path.parts[start:]) for start in range(1, len(given_path.parts)))
        fitting = ends.get(given_path.as_posix()) or next(([name] for name in within if name in whole), [])
        if len(fitting) > 1:
            raise InputError(f"{where}: {given!r} may mean {fitting[0]} or {fitting[1]}; write more of the path.")
        if not fitting:
            strangers.append(given)
            continue
        (name,) = fitting
        if name in found:
            raise InputError(f"{where} repeats {given!r}, which line {lines[name]} has already.")
        found[name], lines[name] = place, line
    if not found:
        seen = f"its names are {_some(strangers)}" if strangers else "it has no rows"
        raise InputError(f"{path} has no position of these pictures: {seen}, and the pictures are {_some(names)}.")
    if strangers and warn:
        logger.warning("%s: %d rows are of pictures that are not here (%s)", path, len(strangers), _some(strangers))
    return found


def _rows(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and the other rows that are not empty, with their line numbers."""
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise InputError(f"{path} has more than {LARGEST_BYTES // 10**6} MB; expected {EXPECTED}.")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"positions cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8 ({error.reason}); expected {EXPECTED}.") from error
    first = next((line for line in text.splitlines() if line.strip()), "")
    separator = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise InputError(f"line {reader.line_num} of {path} is damaged ({error}); expected {EXPECTED}.") from error
    if not rows:
        raise InputError(f"{path} is empty; expected {EXPECTED}.")
    return rows[0][1], rows[1:]


def _columns(header: Sequence[str], path: Path) -> dict[str, int]:
    """The number of each column that is used; InputError unless there are a name, a latitude and a longitude."""
    plain = [cell.strip().lower().removeprefix("#").strip() for cell in header]
    at: dict[str, int] = {}
    for key, names in COLUMNS.items():
        fitting = [number for number, cell in enumerate(plain) if cell in names]
        if len(fitting) > 1:
            raise InputError(f"{path} has two columns for {key}: {', '.join(header[n] for n in fitting)}.")
        if fitting:
            at[key] = fitting[0]
        elif key != "altitude":
            raise InputError(f"{path} has no column {key}, only {', '.join(header)[:200]}; expected {EXPECTED}.")
    return at


def _place(cells: Mapping[str, str], where: str) -> Place:
    values: dict[str, float | None] = {}
    for key in ("latitude", "longitude", "altitude"):
        text = cells.get(key, "")
        try:
            value = float(text) if text else None
        except ValueError:
            value = math.nan
        if (value is None and key != "altitude") or (value is not None and not math.isfinite(value)):
            raise InputError(f"{where}: the {key} is {text!r}; expected a number, such as 46.8426.")
        values[key] = value
    latitude, longitude = values["latitude"], values["longitude"]
    assert latitude is not None and longitude is not None
    if abs(latitude) > 90 or abs(longitude) > 180:
        raise InputError(
            f"{where}: {latitude:g}, {longitude:g} is no place on earth; expected degrees, the latitude (-90 to 90) "
            "and the longitude (-180 to 180) in their own columns."
        )
    return Place(latitude, longitude, values["altitude"])


def _endings(names: Collection[str]) -> dict[str, list[str]]:
    """For each ending of the names' paths, the names with it; a whole name means only itself."""
    ends: dict[str, list[str]] = {}
    for name in names:
        parts = PurePosixPath(name).parts
        for start in range(1, len(parts)):
            ends.setdefault("/".join(parts[start:]), []).append(name)
    return ends | {name: [name] for name in names}


def _some(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
