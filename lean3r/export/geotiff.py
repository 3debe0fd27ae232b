"""elevation.tif and orthophoto.tif: the scene from straight above, for geographic information systems."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from lean3r.export.geo import geo_frame, rasterio
from lean3r.export.manifest import Written
from lean3r.export.options import ExportOptions
from lean3r.geometry.terrain import terrain
from lean3r.types import Reconstruction

logger = logging.getLogger("lean3r")

NOTHING = -9999.0  # height of a cell that was not seen
LOCAL = 'LOCAL_CS["lean3r: east, north in metres",UNIT["metre",1],AXIS["east",EAST],AXIS["north",NORTH]]'


def write(reconstruction: Reconstruction, directory: Path, options: ExportOptions) -> list[Path]:
    """Write elevation.tif (heights, float32, -9999 where unknown) and orthophoto.tif (RGB and alpha, uint8).

    They have the coordinates that the options name (UTM with GPS); figures of both go into the manifest.
    """
    library, frame = rasterio(), geo_frame(reconstruction, options.crs)
    scene = reconstruction.of_certain()
    ground = terrain(scene, frame.of_world, frame.to_world, options.ground_cell)
    grid, asked = ground.grid, options.ground_cell
    if asked is not None and grid.cell > asked:
        logger.warning("cells of %g are too many for this scene: the GeoTIFFs have cells of %g", asked, grid.cell)
    size = {"height": grid.rows, "width": grid.cols}
    crs = LOCAL if frame.crs is None else frame.crs.to_wkt()
    profile = {
        "driver": "GTiff",
        # Units in a GeoTIFF are multiples of the metre: only without a coordinate system can one be unknown.
        "crs": None if frame.unit == "unknown" else library.crs.CRS.from_wkt(crs),
        "transform": library.transform.from_origin(grid.west, grid.north, grid.cell, grid.cell),
        "compress": "deflate",
        **size,
    }
    tiled = {"tiled": True, "blockxsize": 256, "blockysize": 256} if min(grid.rows, grid.cols) >= 256 else {}
    paths = [directory / "elevation.tif", directory / "orthophoto.tif"]
    known = np.isfinite(ground.height)
    heights = np.where(known, ground.height, NOTHING).astype(np.float32)
    # In memory first: a library that writes to the disk itself says nothing if that is full.
    with library.MemoryFile() as memory:
        with memory.open(count=1, dtype="float32", nodata=NOTHING, **profile, **tiled) as file:
            file.write(heights, 1)
            file.set_band_description(1, f"height, unit: {frame.unit}")
        paths[0].write_bytes(memory.read())
    with library.MemoryFile() as memory:
        with memory.open(count=4, dtype="uint8", photometric="RGB", **profile, **tiled) as file:
            for band in range(3):
                file.write(np.where(ground.seen, ground.rgb[..., band], 0).astype(np.uint8), band + 1)
            file.write(np.where(ground.seen, 255, 0).astype(np.uint8), 4)
            file.colorinterp = [getattr(library.enums.ColorInterp, name) for name in ("red", "green", "blue", "alpha")]
        paths[1].write_bytes(memory.read())
    figures = {
        **size,
        "cell": grid.cell,
        "unit": frame.unit,
        "crs": "local" if frame.crs is None else ":".join(frame.crs.to_authority() or ("?",)),
        "known": round(float(known.mean()), 4),
        "lowest": round(float(ground.height[known].min()), 3) if known.any() else None,
        "highest": round(float(ground.height[known].max()), 3) if known.any() else None,
    }
    return Written(paths, figures)
