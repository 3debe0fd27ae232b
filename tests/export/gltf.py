"""A GLB as its specification says it is to be read, without any library that might bend it."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

TYPES = {5121: "<u1", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}


def read_glb(path: Path) -> tuple[dict, list[np.ndarray]]:
    """The tree, and the values [N, C] of each accessor: normalised ones between 0 and 1."""
    content = path.read_bytes()
    magic, version, total, length, kind = struct.unpack("<4sIII4s", content[:20])
    assert (magic, version, total, kind, length % 4) == (b"glTF", 2, len(content), b"JSON", 0)
    tree = json.loads(content[20 : 20 + length])
    binary_length, kind = struct.unpack("<I4s", content[20 + length : 28 + length])
    binary = content[28 + length :]
    assert kind == b"BIN\0" and len(binary) == binary_length == tree["buffers"][0]["byteLength"]
    arrays = []
    for accessor in tree["accessors"]:
        view, dtype = tree["bufferViews"][accessor["bufferView"]], np.dtype(TYPES[accessor["componentType"]])
        width = WIDTHS[accessor["type"]]
        # Each element of a vertex attribute starts at a multiple of four bytes.
        assert accessor["type"] == "SCALAR" or view.get("byteStride", width * dtype.itemsize) % 4 == 0
        start = view["byteOffset"] + accessor.get("byteOffset", 0)
        assert start % 4 == 0 and width * dtype.itemsize * accessor["count"] <= view["byteLength"]
        values = np.frombuffer(binary, dtype, width * accessor["count"], start).reshape(-1, width)
        arrays.append(values / np.iinfo(dtype).max if accessor.get("normalized") else values)
    return tree, arrays


def shown_rgb(tree: dict, arrays: list[np.ndarray], name: str) -> np.ndarray:
    """The bytes [P, 3] on a screen of an unlit mesh called `name`: base colour times COLOR_0, both linear, encoded as
    sRGB, in the specification's words."""
    mesh = next(m for m in tree["meshes"] if m["name"] == name)
    (primitive,) = mesh["primitives"]
    material = tree["materials"][primitive["material"]]
    assert material["extensions"] == {"KHR_materials_unlit": {}} and "KHR_materials_unlit" in tree["extensionsUsed"]
    factor = material["pbrMetallicRoughness"].get("baseColorFactor", [1, 1, 1, 1])[:3]
    linear = arrays[primitive["attributes"]["COLOR_0"]][:, :3] * factor
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (255 * encoded).round().astype(np.uint8)
