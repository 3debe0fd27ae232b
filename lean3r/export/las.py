"""points.las and points.laz: the cloud for surveying programs, z up, in map coordinates if the scene has GPS."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from lean3r.export.geo import geo_frame, laspy, wkt_of
from lean3r.export.options import ExportOptions
from lean3r.types import Reconstruction

MOST_STEPS = 1e8  # of the integer coordinates along the longest side; ten times as many would still fit into 32 bits
LEAST_STEPS = 1e5  # below that a millimetre is too coarse
MILLIMETRE = 0.001


def write_las(reconstruction: Reconstruction, directory: Path, options: ExportOptions) -> list[Path]:
    """Write points.las."""
    return _write(reconstruction, directory / "points.las", options)


def write_laz(reconstruction: Reconstruction, directory: Path, options: ExportOptions) -> list[Path]:
    """Write points.laz, the same compressed."""
    return _write(reconstruction, directory / "points.laz", options)


def _write(reconstruction: Reconstruction, path: Path, options: ExportOptions) -> list[Path]:
    """LAS 1.4, point format 7: places to the millimetre or finer, colours, confidence as an extra dimension, and the
    number of the view, from 1, as the point source."""
    library, frame = laspy(), geo_frame(reconstruction, options.crs)
    points = reconstruction.of_certain().points
    places = frame.of_world(points.xyz)
    header = library.LasHeader(point_format=7, version="1.4")
    header.add_extra_dim(library.ExtraBytesParams(name="confidence", type=np.float32))
    header.generating_software = "lean3r"
    if len(places):
        extent = float(np.ptp(places, axis=0).max()) or 1.0
        fine, coarse = (10.0 ** np.floor(np.log10(extent / steps)) for steps in (MOST_STEPS, LEAST_STEPS))
        step = np.clip(MILLIMETRE, fine, coarse) if frame.unit == "metre" else fine
        header.scales = np.full(3, step)
        header.offsets = np.floor(places.min(axis=0) / (1000 * step)) * (1000 * step)
    header.global_encoding.wkt = True  # of point formats from 6 on, even where no coordinate system is known
    if frame.crs is not None:
        header.vlrs.append(library.vlrs.known.WktCoordinateSystemVlr(wkt_of(frame.crs)))
    cloud = library.LasData(header)
    cloud.x, cloud.y, cloud.z = places.T
    for name, values in zip(("red", "green", "blue"), points.rgb.T, strict=True):
        cloud[name] = values.astype(np.uint16) * 257
    cloud.confidence = points.conf.astype(np.float32)
    view = np.flatnonzero(reconstruction.is_certain)[points.view]
    cloud.point_source_id = np.minimum(view + 1, 65535).astype(np.uint16)
    cloud.return_number = cloud.number_of_returns = np.full(len(places), 1, np.uint8)
    cloud.classification = np.full(len(places), 1, np.uint8)  # unclassified
    file = io.BytesIO()  # a codec that writes to the disk itself says of a full one only that it failed
    cloud.write(file, do_compress=path.suffix == ".laz")
    path.write_bytes(file.getvalue())
    return [path]
