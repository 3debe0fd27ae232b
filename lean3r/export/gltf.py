"""GLB files in which colours look as they are: linear, as glTF wants them, and unlit.

trimesh writes what it is given as 8 bits without light's curve; viewers take it for linear and show fog. So geometry
comes from trimesh, colours and material from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import trimesh

# OpenCV axes (x right, y down, z forward) to glTF axes (x right, y up, z backward): half a turn around x.
GLTF_FROM_WORLD = np.diag([1.0, -1.0, -1.0])
UNSIGNED_SHORT = 5123
# Viewers that do not know the extension light it as a matt surface.
UNLIT = {
    "name": "colours",
    "pbrMetallicRoughness": {"metallicFactor": 0, "roughnessFactor": 1},
    "extensions": {"KHR_materials_unlit": {}},
}


def glb_bytes(
    geometries: Mapping[str, tuple[trimesh.PointCloud | trimesh.Trimesh, np.ndarray]], *, normals: bool = False
) -> bytes:
    """A GLB with a node for each of `geometries`: points or a mesh, y up, and the sRGB bytes [V, 3] of its vertices."""
    import trimesh
    from trimesh.exchange.gltf import export_glb

    def colour(buffers: dict, tree: dict) -> None:
        for mesh in tree["meshes"]:
            values = linear_rgba(geometries[mesh["name"]][1])
            accessor = {"componentType": UNSIGNED_SHORT, "normalized": True, "type": "VEC4", "count": len(values)}
            tree["accessors"][mesh["name"]] = {"bufferView": len(buffers)} | accessor
            buffers[mesh["name"]] = values.tobytes()
            (primitive,) = mesh["primitives"]
            primitive["attributes"]["COLOR_0"] = len(tree["accessors"]) - 1
            primitive["material"] = 0
        tree |= {"materials": [UNLIT], "extensionsUsed": list(UNLIT["extensions"])}

    scene = trimesh.Scene()
    for name, (geometry, _) in geometries.items():
        scene.add_geometry(geometry, node_name=name, geom_name=name)
    return export_glb(scene, include_normals=normals, buffer_postprocessor=colour)


def linear_rgba(rgb: np.ndarray) -> np.ndarray:
    """sRGB bytes [V, 3] as linear light [V, 4] in 16 bits, opaque; all 256 values stay apart.

    Four of them, as glTF wants every vertex to start at a multiple of four bytes.
    """
    share = np.arange(256) / 255
    light = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    rgba = np.full((len(rgb), 4), 65535, dtype="<u2")
    rgba[:, :3] = (65535 * light).round().astype("<u2")[rgb]
    return rgba
