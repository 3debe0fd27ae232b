"""sparse/0/: a binary COLMAP model, for Gaussian splatting and every other program that reads COLMAP models."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np

from lean3r.export import pictures
from lean3r.export.lenses import CameraTable, camera_table
from lean3r.export.options import ExportOptions
from lean3r.export.tracks import Tracked, tracked_points
from lean3r.geometry.lens import colmap_camera
from lean3r.types import Reconstruction


def write(reconstruction: Reconstruction, directory: Path, options: ExportOptions) -> list[Path]:
    """Write sparse/0/*.bin: cameras at the size of the original pictures, poses, and points with real tracks.

    If the options have `pictures`, also write them to images/. Uncertain views are left out.
    """
    from lean3r.colmap_library import pycolmap

    reconstruction = reconstruction.of_certain()
    folder = directory / "sparse" / "0"
    folder.mkdir(parents=True)
    table = camera_table(reconstruction, options)
    tracked = tracked_points(reconstruction, options.colmap_points)
    model = pycolmap.Reconstruction()
    keypoint = _add_views(model, reconstruction, table, tracked)
    _add_points(model, tracked, keypoint)
    model.update_point_3d_errors()
    model.write(folder)
    # The C++ writer reports no error on a full disk, so read the model back.
    try:
        complete = pycolmap.Reconstruction(folder).num_points3D() == len(tracked.xyz)
    except (RuntimeError, ValueError, OSError):
        complete = False
    if not complete:
        raise OSError(errno.ENOSPC, "the COLMAP model was not written completely", str(folder))
    written = sorted(folder.iterdir())
    return [*written, *pictures.write(reconstruction, directory, options, table)]


def _add_views(model, reconstruction: Reconstruction, table: CameraTable, tracked: Tracked) -> np.ndarray:
    """Add cameras and images with their 2-D points; return the index [O] of each observation in its image."""
    from lean3r.colmap_library import pycolmap

    for number, camera in enumerate(table.cameras):
        model.add_camera_with_trivial_rig(colmap_camera(camera.lens, camera.width, camera.height, number + 1))
    keypoint = np.zeros(len(tracked.point), dtype=np.int64)
    for view, name in enumerate(table.names):
        mine = np.flatnonzero(tracked.view == view)
        keypoint[mine] = np.arange(len(mine))
        xy = table.map_pixels(view, tracked.xy[mine])
        image = pycolmap.Image(name=name, keypoints=xy, camera_id=table.camera_of[view] + 1, image_id=view + 1)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(reconstruction.cam_from_world[view][:3]))
    return keypoint


def _add_points(model, tracked: Tracked, keypoint: np.ndarray) -> None:
    """Add the points with their tracks."""
    from lean3r.colmap_library import pycolmap

    starts = np.searchsorted(tracked.point, np.arange(len(tracked.xyz) + 1)).tolist()
    image_id, keypoint_id = (tracked.view + 1).tolist(), keypoint.tolist()
    for point in range(len(tracked.xyz)):
        track = pycolmap.Track()
        for at in range(starts[point], starts[point + 1]):
            track.add_element(image_id[at], keypoint_id[at])
        model.add_point3D(tracked.xyz[point], track, tracked.rgb[point])
