"""GLB files that show colours unchanged: linear, as glTF requires, and unlit."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lean3r.geometry.up import upright_from_world
from lean3r.types import Reconstruction

# OpenCV axes (x right, y down, z forward) to glTF axes (x right, y up, z backward): half a turn around x.
GLTF_FROM_OPENCV = np.diag([1.0, -1.0, -1.0])
# Viewers that do not know the extension light it as a matt surface.
MATT = {"metallicFactor": 0, "roughnessFactor": 1}
UNLIT = {"KHR_materials_unlit": {}}
LINEAR, MIPMAPPED, CLAMPED = 9729, 9987, 33071  # of a texture's sampler
COMPONENTS = {"u4": 5125, "f4": 5126}
POINTS, TRIANGLES = 0, 4  # modes of a primitive
ATTRIBUTES, INDICES = 34962, 34963  # what a buffer view is for


class Geometry(NamedTuple):
    """Points [V, 3], y up, with their sRGB bytes [V, 3]; a mesh if it has faces [F, 3] and, optionally, unit normals
    [V, 3]. With uv [V, 2] (0..1, v downwards) its colours are those of the `texture`, a JPEG file, instead."""

    xyz: np.ndarray
    rgb: np.ndarray
    faces: np.ndarray | None = None
    normals: np.ndarray | None = None
    uv: np.ndarray | None = None
    texture: bytes = b""


class View(NamedTuple):
    """A camera to look through: world from camera [4, 4] in axes of glTF (y up, z backward), and the vertical field of
    view in radians, width over height, and the distance at which it begins to see. glTF knows no more of a lens."""

    name: str
    world_from_cam: np.ndarray
    fov_y_rad: float
    aspect: float
    near: float


def gltf_from_world(reconstruction: Reconstruction) -> np.ndarray:
    """Rotation [3, 3] from the scene's world into the axes of glTF, where it stands upright."""
    return GLTF_FROM_OPENCV @ upright_from_world(reconstruction)


def glb_bytes(geometries: Mapping[str, Geometry], views: Sequence[View] = ()) -> bytes:
    """A GLB file with one node, of the same name, for each geometry, and for each view."""
    buffers = _Buffers()
    meshes, materials, images = [], [], []
    colours = None  # the material of all that has colours of its own
    for name, (xyz, rgb, faces, normals, uv, texture) in geometries.items():
        attributes = {"POSITION": buffers.add(xyz, "f4", bounds=True)}
        if normals is not None:
            attributes["NORMAL"] = buffers.add(normals, "f4")
        primitive = {"attributes": attributes, "mode": POINTS}
        if uv is None:
            attributes["COLOR_0"] = buffers.add(linear_rgb(rgb), "f4")
            if colours is None:
                colours = len(materials)
                materials.append({"name": "colours", "pbrMetallicRoughness": MATT, "extensions": UNLIT})
            primitive["material"] = colours
        else:
            attributes["TEXCOORD_0"] = buffers.add(uv, "f4")
            primitive["material"] = len(materials)
            matt = MATT | {"baseColorTexture": {"index": len(images)}}
            materials.append({"name": f"{name} texture", "pbrMetallicRoughness": matt, "extensions": UNLIT})
            images.append({"mimeType": "image/jpeg", "bufferView": buffers.add_file(texture)})
        if faces is not None:
            primitive |= {"indices": buffers.add(faces.reshape(-1, 1), "u4", target=INDICES), "mode": TRIANGLES}
        meshes.append({"name": name, "primitives": [primitive]})
    tree = {
        "asset": {"version": "2.0", "generator": "lean3r"},
        "scene": 0,
        "scenes": [{"nodes": list(range(len(meshes)))}],
        "nodes": [{"name": mesh["name"], "mesh": index} for index, mesh in enumerate(meshes)],
        "meshes": meshes,
        "materials": materials,
        "extensionsUsed": list(UNLIT),
        "accessors": buffers.accessors,
        "bufferViews": buffers.views,
        "buffers": [{"byteLength": buffers.length}],
    }
    if views:
        tree["nodes"] += [
            {"name": view.name, "camera": index, "matrix": view.world_from_cam.T.ravel().tolist()}
            for index, view in enumerate(views)
        ]
        tree["scenes"] = [{"nodes": list(range(len(tree["nodes"])))}]
        tree["cameras"] = [
            {"type": "perspective", "perspective": {"yfov": v.fov_y_rad, "aspectRatio": v.aspect, "znear": v.near}}
            for v in views
        ]
    if images:
        tree["images"] = images
        tree["textures"] = [{"source": index, "sampler": 0} for index in range(len(images))]
        tree["samplers"] = [{"magFilter": LINEAR, "minFilter": MIPMAPPED, "wrapS": CLAMPED, "wrapT": CLAMPED}]
    text = json.dumps(tree, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4sIII4s", b"glTF", 2, 28 + len(text) + buffers.length, len(text), b"JSON")
    return b"".join([head, text, struct.pack("<I4s", buffers.length, b"BIN\0"), *buffers.parts])


class _Buffers:
    """Concatenated arrays, each a multiple of four bytes long, and their entries in the JSON tree."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.views: list[dict] = []
        self.accessors: list[dict] = []
        self.length = 0

    def add(self, values: np.ndarray, dtype: str, *, target: int = ATTRIBUTES, bounds: bool = False) -> int:
        """Append values [N, C] and return the number of their accessor."""
        values = np.ascontiguousarray(values, f"<{dtype}")
        kind = "SCALAR" if values.shape[1] == 1 else f"VEC{values.shape[1]}"
        entry = {"bufferView": len(self.views), "componentType": COMPONENTS[dtype], "type": kind, "count": len(values)}
        entry |= {"min": values.min(axis=0).tolist(), "max": values.max(axis=0).tolist()} if bounds else {}
        self.accessors.append(entry)
        self._append(values.tobytes(), {"target": target})
        return len(self.accessors) - 1

    def add_file(self, content: bytes) -> int:
        """Append a file and return the number of its view."""
        self._append(content, {})
        return len(self.views) - 1

    def _append(self, content: bytes, more: dict) -> None:
        self.views.append({"buffer": 0, "byteOffset": self.length, "byteLength": len(content), **more})
        padding = b" " * (-len(content) % 4)
        self.parts += [content, padding]
        self.length += len(content) + len(padding)


def linear_rgb(rgb: np.ndarray) -> np.ndarray:
    """sRGB bytes [V, 3] as linear light, float32 [V, 3]; all 256 values stay distinct.

    Not integers: of those with 16 bits, some programs keep the lower 8 only, and with 8 bits dark values are the same.
    """
    share = np.arange(256) / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4).astype(np.float32)[rgb]
