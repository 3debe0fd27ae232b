"""sparse/0/: a binary COLMAP model, for Gaussian splatting and every other program that reads COLMAP models."""

from __future__ import annotations

import errno
import struct
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

    reconstruction = reconstruction.of_certain()
    folder = directory / "sparse" / "0"
    folder.mkdir(parents=True)
    table = camera_table(reconstruction, options)
    tracked = tracked_points(reconstruction, options.colmap_points)
    _write_model(folder, reconstruction, table, tracked)
    written = sorted(folder.iterdir())
    return [*written, *pictures.write(reconstruction, directory, options, table)]


def _write_model(folder: Path, reconstruction: Reconstruction, table: CameraTable, tracked: Tracked) -> None:
    """Write cameras, rigs and frames by pycolmap, but images and points by numpy: pycolmap adds points one by one."""
    from lean3r.colmap_library import pycolmap

    model = pycolmap.Reconstruction()
    for number, camera in enumerate(table.cameras):
        model.add_camera_with_trivial_rig(colmap_camera(camera.lens, camera.width, camera.height, number + 1))
    keypoint, error_px = np.zeros(len(tracked.point), np.int32), np.zeros(len(tracked.point))
    images = [struct.pack("<Q", len(table.names))]
    for view, (name, pose) in enumerate(zip(table.names, reconstruction.cam_from_world, strict=True)):
        cam_from_world, camera_id = pycolmap.Rigid3d(pose[:3]), table.camera_of[view] + 1
        image = pycolmap.Image(name=name, camera_id=camera_id, image_id=view + 1)
        model.add_image_with_trivial_frame(image, cam_from_world)
        mine = np.flatnonzero(tracked.view == view)
        keypoint[mine] = np.arange(len(mine))
        seen = np.empty(len(mine), [("xy", "<f8", 2), ("point", "<u8")])
        seen["xy"], seen["point"] = table.map_pixels(view, tracked.xy[mine]), tracked.point[mine] + 1
        cam = tracked.xyz[tracked.point[mine]] @ pose[:3, :3].T + pose[:3, 3]
        error_px[mine] = np.linalg.norm(model.camera(camera_id).img_from_cam(cam) - seen["xy"], axis=1)
        x, y, z, w = cam_from_world.rotation.quat
        images.append(struct.pack("<I7dI", view + 1, w, x, y, z, *cam_from_world.translation, camera_id))
        images += [name.encode(), struct.pack("<xQ", len(mine)), seen.tobytes()]
    model.write(folder)
    # The C++ writer reports no error on a full disk, so read the model back.
    try:
        complete = pycolmap.Reconstruction(folder).num_images() == len(table.names)
    except (RuntimeError, ValueError, OSError):
        complete = False
    if not complete:
        raise OSError(errno.ENOSPC, "the COLMAP model was not written completely", str(folder))
    (folder / "images.bin").write_bytes(b"".join(images))
    (folder / "points3D.bin").write_bytes(_point_records(tracked, keypoint, error_px))


def _point_records(tracked: Tracked, keypoint: np.ndarray, error_px: np.ndarray) -> bytes:
    """points3D.bin; keypoint [O] is the index of each observation in its image, error_px [O] its distance there."""
    total = len(tracked.xyz)
    count = np.bincount(tracked.point, minlength=total)
    points = np.empty(total, [("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("count", "<u8")])
    points["id"], points["xyz"], points["rgb"], points["count"] = np.arange(total) + 1, tracked.xyz, tracked.rgb, count
    points["error"] = np.bincount(tracked.point, error_px, minlength=total) / np.maximum(count, 1)
    tracks = np.stack([tracked.view + 1, keypoint], axis=1).astype("<i4")
    # A point is followed by its track, and tracks are in the order of points.
    lengths = np.stack([np.full(total, points.itemsize), 8 * count], axis=1).ravel()
    of_track = np.repeat(np.tile([False, True], total), lengths)
    records = np.empty(len(of_track), np.uint8)
    records[~of_track], records[of_track] = np.frombuffer(points, np.uint8), tracks.view(np.uint8).ravel()
    return struct.pack("<Q", total) + records.tobytes()
