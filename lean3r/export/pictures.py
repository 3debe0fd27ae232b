"""images/: the pictures, as they are or undistorted, for programs that read them together with the cameras."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from PIL import Image

from lean3r.errors import InputError
from lean3r.export.lenses import Camera, CameraTable
from lean3r.export.options import ExportOptions
from lean3r.geometry.lens import colmap_camera
from lean3r.inputs.notes import Notes, restated, save
from lean3r.types import Reconstruction

FOLDER = "images"
_writing = Lock()  # formats are written side by side, and several may want the pictures
JPEG_QUALITY = 95
ROWS = 256  # of a picture are warped at a time


def write(reconstruction: Reconstruction, directory: Path, options: ExportOptions, table: CameraTable) -> list[Path]:
    """Write images/ if the options have `pictures` and no other format has written them; return the files.

    Undistorted pictures are also written at the fractions of their size that `image_factors` names.
    """
    with _writing:
        return _write(reconstruction, directory, options, table)


def _write(reconstruction: Reconstruction, directory: Path, options: ExportOptions, table: CameraTable) -> list[Path]:
    folder = directory / FOLDER
    if options.pictures is None or folder.exists():
        return []
    if not table.before:
        return options.pictures.write(reconstruction.names, folder)
    views = {name: view for view, name in enumerate(reconstruction.names)}
    written = []
    for name, picture in options.pictures.read(views, side=10**9):
        view = views.pop(name)
        warped = table.before[view] != table.of(view)
        notes = partial(restated, picture.info, is_whole=not warped)
        picture = undistort(picture.convert("RGB"), table.before[view], table.of(view))
        written.append(_save(picture, folder, table.names[view], notes(picture.size, resized=warped)))
        for factor in options.image_factors:
            # Whole blocks of pixels, so that intrinsics are exactly those of the picture divided by the factor.
            width, height = (side - side % factor or side for side in picture.size)
            small = picture.reduce(factor, (0, 0, width, height))
            place = directory / f"{FOLDER}_{factor}"
            written.append(_save(small, place, table.names[view], notes(small.size, resized=True)))
    if views:
        raise InputError(
            f"{len(views)} pictures cannot be read again ({min(views)}). Did the input change during the run?"
        )
    return written


def _save(picture: Image.Image, folder: Path, name: str, notes: Notes) -> Path:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{name} would be written outside {folder}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".png":
        save(picture, path, "PNG", notes, compress_level=1)
    else:
        save(picture, path, "JPEG", notes, quality=JPEG_QUALITY)
    return path


def undistort(picture: Image.Image, before: Camera, after: Camera) -> Image.Image:
    """Resample (bicubic) a picture of the camera `before` as a picture of the pinhole camera `after`."""
    if before == after:
        return picture
    source = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()
    old, new = (colmap_camera(c.lens, c.width, c.height) for c in (before, after))
    # A picture may have been read at another size than its camera's, so positions are relative to its sides.
    size = np.array([before.width, before.height])
    result = np.empty((after.height, after.width, 3), np.uint8)
    for top in range(0, after.height, ROWS):
        rows = np.arange(top, min(top + ROWS, after.height)) + 0.5
        y, x = np.meshgrid(rows, np.arange(after.width) + 0.5, indexing="ij")
        rays = np.asarray(new.cam_from_img(np.stack([x, y], axis=-1).reshape(-1, 2)))
        xy = np.asarray(old.img_from_cam(np.concatenate([rays, np.ones((len(rays), 1))], axis=1)))
        grid = torch.from_numpy(2 * xy / size - 1).float().reshape(1, len(rows), after.width, 2)
        warped = torch.nn.functional.grid_sample(
            source, grid, mode="bicubic", padding_mode="border", align_corners=False
        )
        result[top : top + len(rows)] = warped[0].permute(1, 2, 0).round_().clamp_(0, 255).to(torch.uint8).numpy()
    return Image.fromarray(result)
