"""mesh.glb and mesh.ply: one coloured surface through all depth maps."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from lean3r.errors import MissingExtraError
from lean3r.export.gltf import Geometry, glb_bytes, gltf_from_world
from lean3r.export.manifest import Written
from lean3r.export.options import ExportOptions
from lean3r.export.ply import ply_bytes
from lean3r.export.texture import textured
from lean3r.export.unwrap import without_pockets
from lean3r.geometry.consistency import Scene, neighbours
from lean3r.geometry.fusion import trusted_pixels
from lean3r.geometry.lens import Optics
from lean3r.geometry.surface import boundary_loops, pieces, vertex_normals
from lean3r.geometry.tsdf import Block, integrate, plan_grid
from lean3r.types import Reconstruction

logger = logging.getLogger("lean3r")

PIXELS = 1.5  # width of a cell in pixels of the depth maps, at the median depth
MOST = 60_000  # blocks times the views that see them: half a minute, and some million triangles
REACH = (4.0, 10.0)  # least and greatest truncation distance in cells; it grows with the disagreement of the depth maps
QUALITY = 92  # of the texture's JPEG
CRUMB = 2e-4  # of all triangles: smaller pieces are left out


class Mesh(NamedTuple):
    """vertices [V, 3] float64 in world units; faces [F, 3], counter-clockwise from outside; rgb [V, 3] uint8."""

    vertices: np.ndarray
    faces: np.ndarray
    rgb: np.ndarray


def write(reconstruction: Reconstruction, directory: Path, options: ExportOptions) -> list[Path]:
    """Write mesh.ply in the world's axes and mesh.glb with y up, both with normals; without any surface, only an empty
    mesh.ply.

    The manifest tells the sizes and the topology of the mesh.
    """
    reconstruction = reconstruction.of_certain()
    mesh, more = surface(reconstruction, options.mesh_voxel), {}
    paths = [directory / "mesh.ply"]
    normals = vertex_normals(mesh.vertices, mesh.faces)
    paths[0].write_bytes(ply_bytes(mesh.vertices, mesh.rgb, mesh.faces, normals=normals))
    if len(mesh.faces):
        turn = gltf_from_world(reconstruction).T
        geometry, more = _with_texture(mesh, reconstruction, options, turn) if options.texture else (None, {})
        if geometry is None:
            geometry = Geometry(mesh.vertices @ turn, mesh.rgb, mesh.faces, normals @ turn)
        paths.append(directory / "mesh.glb")
        paths[1].write_bytes(glb_bytes({"mesh": geometry}))
    return Written(paths, report(mesh) | more)


def _with_texture(
    mesh: Mesh, reconstruction: Reconstruction, options: ExportOptions, turn: np.ndarray
) -> tuple[Geometry | None, dict[str, object]]:
    """The simplified mesh with a texture, turned, and figures for the manifest; None if no triangle has any area."""
    found = textured(mesh.vertices, mesh.faces, mesh.rgb, reconstruction, options.texture_from)
    if found is None:
        return None, {}
    file = io.BytesIO()
    # With half the resolution in chroma, colours of neighbouring charts are seen along their borders.
    Image.fromarray(found.texture).save(file, "JPEG", quality=QUALITY, subsampling="4:4:4")
    no_rgb = np.zeros((0, 3), np.uint8)
    geometry = Geometry(found.vertices @ turn, no_rgb, found.faces, found.normals @ turn, found.uv, file.getvalue())
    height, width = found.texture.shape[:2]
    return geometry, {
        "texture": {"triangles": len(found.faces), "size": [width, height], "unseen": round(found.unseen, 4)}
    }


def report(mesh: Mesh) -> dict[str, int]:
    """Numbers of vertices, of triangles, of components that share no vertex, and of boundary loops: holes and rims."""
    return {
        "vertices": len(mesh.vertices),
        "triangles": len(mesh.faces),
        "components": pieces(mesh.faces, len(mesh.vertices))[0] if len(mesh.faces) else 0,
        "boundary_loops": boundary_loops(mesh.faces),
    }


def surface(reconstruction: Reconstruction, voxel: float | None = None) -> Mesh:
    """The surface by marching cubes on a truncated signed distance field, in cells of `voxel` world units.

    None chooses the size that the depth maps resolve. Cells are larger if the scene is too large for that size. Pixels
    that are not in the cloud are not in the surface either. Raises MissingExtraError without scikit-image.
    """
    march = marching_cubes()
    depth, conf = reconstruction.depth, reconstruction.conf
    keep = trusted_pixels(depth, conf, reconstruction.mask, reconstruction.point_options.conf_percentile)
    if not keep.any():
        return _merge_pieces([], [], [])
    optics = Optics.of(reconstruction)
    depth = np.where(keep, depth, 0)
    scene = Scene(depth, reconstruction.cam_from_world, optics)
    middle = float(np.median(depth[keep][:: 1 + int(keep.sum()) // 1_000_000]))
    wanted = voxel or PIXELS * middle * float(np.median([optics.footprint(v) for v in range(len(depth))]))
    reach = float(np.clip(2 * _disagreement(scene) * middle, REACH[0] * wanted, REACH[1] * wanted))
    grid = plan_grid(scene, wanted, reach, MOST)
    if voxel is not None and grid.voxel > voxel:
        logger.warning("cells of %g are too many for this scene: the mesh has cells of %g", voxel, grid.voxel)
    # Confidence is relative to other pixels, and the error of depth grows with depth.
    share = (conf / max(float(np.median(conf[keep])), 1e-9)).clip(0.1, 10)
    weight = share * (middle / np.where(keep, depth, middle)) ** 2
    vertices, faces, colours = [], [], []
    for block in integrate(scene, weight, reconstruction.images, grid):
        piece = triangles(block, march)
        if piece is not None:
            for part, value in zip((vertices, faces, colours), piece, strict=True):
                part.append(value)
    mesh = _merge_pieces(vertices, faces, colours)
    return _remove_crumbs(mesh._replace(vertices=mesh.vertices * grid.voxel))


def marching_cubes() -> Callable:
    """The function of scikit-image; raises MissingExtraError if it is not installed."""
    try:
        from skimage.measure import marching_cubes
    except ImportError as error:
        raise MissingExtraError.of("writing a mesh", "mesh") from error
    return marching_cubes


def triangles(block: Block, march: Callable) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Vertices [V, 3] in grid cells, triangles [F, 3] and colours [V, 3] of one block; None if it has no surface."""
    known = np.isfinite(block.distance)
    values = np.where(known, block.distance, 1.0)
    if not known.any() or values[known].min() > 0 or values[known].max() <= 0:
        return None
    cells = known  # after the loop: cells with eight known corners
    for axis in range(3):
        sides = np.moveaxis(cells, axis, 0)
        cells = np.moveaxis(sides[:-1] & sides[1:], 0, axis)
    mask = np.zeros(known.shape, dtype=bool)
    mask[1:, 1:, 1:] = cells  # scikit-image masks a cell at its last corner
    if not mask.any():
        return None
    try:
        at, faces, _, _ = march(values, 0.0, mask=mask, gradient_direction="descent", allow_degenerate=False)
    except (RuntimeError, ValueError):  # no cell with a surface
        return None
    if not len(faces):
        return None
    low, high = np.floor(at).astype(int), np.ceil(at).astype(int)
    part = (at - low).sum(axis=1, keepdims=True)
    ends = [block.rgb[tuple(corner.T)] for corner in (low, high)]
    ends = [np.where(np.isfinite(a), a, b) for a, b in (ends, ends[::-1])]
    colours = np.nan_to_num((1 - part) * ends[0] + part * ends[1], nan=128.0)
    return at.astype(np.float64) + block.start, faces, colours


def _merge_pieces(vertices: list, faces: list, colours: list) -> Mesh:
    """Join the pieces of the blocks into one mesh, and merge vertices on shared borders."""
    counts = np.cumsum([0, *(len(v) for v in vertices)])
    xyz = np.concatenate([np.zeros((0, 3)), *vertices])
    index = np.concatenate([np.zeros((0, 3), np.int64), *(f + start for f, start in zip(faces, counts, strict=False))])
    rgb = np.concatenate([np.zeros((0, 3)), *colours])
    _, first, same = np.unique(np.round(xyz * 4096).astype(np.int64), axis=0, return_index=True, return_inverse=True)
    index = same.reshape(-1)[index]
    sound = (index[:, 0] != index[:, 1]) & (index[:, 1] != index[:, 2]) & (index[:, 2] != index[:, 0])
    return Mesh(xyz[first], without_pockets(index[sound]), rgb[first].round().clip(0, 255).astype(np.uint8))


def _remove_crumbs(mesh: Mesh) -> Mesh:
    """Remove pieces of few triangles, and unused vertices."""
    if not len(mesh.faces):
        return mesh
    label = pieces(mesh.faces, len(mesh.vertices))[1]
    size = np.bincount(label)
    faces = mesh.faces[size[label] >= min(max(CRUMB * len(mesh.faces), 12), size.max())]
    used, index = np.unique(faces, return_inverse=True)
    return Mesh(mesh.vertices[used], index.reshape(-1, 3), mesh.rgb[used])


def _disagreement(scene: Scene) -> float:
    """Median relative difference between the depths of two views at the same place; larger ones are occlusions."""
    differences = [np.zeros(0)]
    for view, others in enumerate(neighbours(scene, 3)):
        rows, cols = np.nonzero(scene.depth[view][::4, ::4] > 0)
        world = scene.world_points(view, 4 * rows, 4 * cols)
        for other in others:
            z, depth = scene.seen(other, world)
            ratio = np.abs(np.log(np.where(z > 0, z, np.nan) / depth))
            differences.append(ratio[ratio < 0.15])
    values = np.concatenate(differences)
    return float(np.median(values)) if len(values) else 0.0
