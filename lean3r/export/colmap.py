"""sparse/0/: a COLMAP model in binary form, for Gaussian splatting and everything else that reads COLMAP.

pycolmap is imported in this module only.
"""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np

from lean3r.errors import UsageError
from lean3r.export.names import unique_names
from lean3r.export.options import ExportOptions
from lean3r.export.tracks import Observations, choose_and_observe
from lean3r.types import Reconstruction


def write(reconstruction: Reconstruction, directory: Path, options: ExportOptions) -> list[Path]:
    """Write sparse/0/*.bin: cameras at the size of the original pictures, poses, points with real tracks; and the
    pictures themselves into images/ where the options say where they are."""
    import pycolmap

    folder = directory / "sparse" / "0"
    folder.mkdir(parents=True)
    chosen, seen = choose_and_observe(reconstruction, options.colmap_points)
    model = pycolmap.Reconstruction()
    keypoint = _add_views(model, reconstruction, seen, shared_camera=options.shared_camera)
    _add_points(model, reconstruction, chosen, seen, keypoint)
    model.update_point_3d_errors()
    model.write(folder)
    # The C++ writer says nothing when the disk is full: read back what arrived.
    try:
        complete = pycolmap.Reconstruction(folder).num_points3D() == len(chosen)
    except (RuntimeError, ValueError, OSError):
        complete = False
    if not complete:
        raise OSError(errno.ENOSPC, "the COLMAP model was cut off while it was written", str(folder))
    pictures = options.originals.write(reconstruction.names, directory / "images") if options.originals else []
    return [*sorted(folder.iterdir()), *pictures]


def _add_views(model, reconstruction: Reconstruction, seen: Observations, *, shared_camera: bool) -> np.ndarray:
    """Add cameras and images with their 2-D points; return the index [O] of each observation in its image."""
    import pycolmap

    sources, matrices = reconstruction.sources, reconstruction.original_intrinsics
    if shared_camera:
        sizes = sorted({(s.width, s.height) for s in sources})
        if len(sizes) > 1:
            listed = ", ".join(f"{w}x{h}" for w, h in sizes[:4])
            raise UsageError(f"one shared camera needs pictures of one size; got {listed}. Leave the option out.")
        matrices = np.broadcast_to(np.median(matrices, axis=0), matrices.shape)
    keypoint = np.zeros(len(seen.point), dtype=np.int64)
    for view, name in enumerate(unique_names(reconstruction.names)):
        camera_id = 1 if shared_camera else view + 1
        if camera_id == view + 1:
            model.add_camera_with_trivial_rig(
                pycolmap.Camera(
                    camera_id=camera_id,
                    model="PINHOLE",
                    width=sources[view].width,
                    height=sources[view].height,
                    params=matrices[view][[0, 1, 0, 1], [0, 1, 2, 2]],
                )
            )
        mine = np.flatnonzero(seen.view == view)
        keypoint[mine] = np.arange(len(mine))
        scale, offset = np.reshape(sources[view].original_from_network, (2, 2))
        xy = seen.xy[mine].astype(np.float64) * scale + offset
        image = pycolmap.Image(name=name, keypoints=xy, camera_id=camera_id, image_id=view + 1)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(reconstruction.cam_from_world[view][:3]))
    return keypoint


def _add_points(
    model, reconstruction: Reconstruction, chosen: np.ndarray, seen: Observations, keypoint: np.ndarray
) -> None:
    """Add the chosen points with their tracks (`seen.point` is ascending)."""
    from pycolmap import Track

    starts = np.searchsorted(seen.point, np.arange(len(chosen) + 1)).tolist()
    image_id, keypoint_id = (seen.view + 1).tolist(), keypoint.tolist()
    xyz, rgb = reconstruction.points.xyz[chosen].astype(np.float64), reconstruction.points.rgb[chosen]
    for point in range(len(chosen)):
        track = Track()
        for at in range(starts[point], starts[point + 1]):
            track.add_element(image_id[at], keypoint_id[at])
        model.add_point3D(xyz[point], track, rgb[point])
