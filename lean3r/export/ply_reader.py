"""Read binary PLY files of points and meshes as far as they go: also older ones, and those that are cut off."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from lean3r.errors import InputError

TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "<i2", "int16": "<i2", "ushort": "<u2",
    "uint16": "<u2", "int": "<i4", "int32": "<i4", "uint": "<u4", "uint32": "<u4", "float": "<f4", "float32": "<f4",
    "double": "<f8", "float64": "<f8",
}  # fmt: skip
MOST_HEADER = 65_536


class Ply(NamedTuple):
    """vertices: a structured array [V]; faces [F, 3]; how many of the vertices that the header names are missing."""

    vertices: np.ndarray
    faces: np.ndarray
    missing: int

    def columns(self, *names: str) -> np.ndarray | None:
        """Some columns [V, N]; None if one is not there."""
        if not set(names) <= set(self.vertices.dtype.names or ()):
            return None
        return np.stack([self.vertices[name] for name in names], axis=1)


def read_ply(path: Path) -> Ply:
    """Read a little-endian PLY file; InputError if it is none. Faces other than triangles are left out."""
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}).") from error
    head, found, _ = data[:MOST_HEADER].tobytes().partition(b"end_header\n")
    lines = [line.split() for line in head.decode("ascii", "replace").splitlines()]
    if not found or lines[:1] != [["ply"]] or ["format", "binary_little_endian", "1.0"] not in lines:
        raise InputError(f"{path} is no binary little-endian PLY file.")
    elements: list[tuple[str, int, list[tuple[str, str]]]] = []
    try:
        for line in lines:
            if line[:1] == ["element"]:
                elements.append((line[1], int(line[2]), []))
            elif line[:2] == ["property", "list"]:
                elements[-1][2].append((line[4], f"list {line[2]} {line[3]}"))
            elif line[:1] == ["property"]:
                elements[-1][2].append((line[2], TYPES[line[1]]))
        if not elements or elements[0][0] != "vertex" or elements[0][1] < 0:
            raise ValueError("no vertices come first")
        kind = np.dtype([(name, of) for name, of in elements[0][2]])
        if not {"x", "y", "z"} <= set(kind.names or ()):
            raise ValueError("vertices without x, y, z")
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise InputError(f"{path} has a damaged header ({error}).") from error
    body = data[len(head) + len(found) :]
    count = min(elements[0][1], len(body) // kind.itemsize)
    vertices = body[: count * kind.itemsize].view(kind)
    faces = np.zeros((0, 3), np.int32)
    if count == elements[0][1]:
        faces = _faces(body[count * kind.itemsize :], elements[1:])
        faces = faces[((faces >= 0) & (faces < count)).all(axis=1)]
    return Ply(vertices, faces, elements[0][1] - count)


def _faces(body: np.ndarray, elements: list[tuple[str, int, list[tuple[str, str]]]]) -> np.ndarray:
    for name, count, properties in elements[:1]:
        kinds = [kind.split() for _, kind in properties]
        if name == "face" and len(kinds) == 1 and kinds[0][0] == "list" and kinds[0][2] in ("int", "uint", "int32"):
            row = np.dtype([("count", TYPES.get(kinds[0][1], "u1")), ("corners", "<i4", 3)])
            rows = body[: min(count, len(body) // row.itemsize) * row.itemsize].view(row)
            return rows["corners"][rows["count"] == 3]
    return np.zeros((0, 3), np.int32)
