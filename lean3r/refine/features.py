"""SIFT features of a job's pictures, in a database of COLMAP."""

from __future__ import annotations

from pathlib import Path

from lean3r.colmap_library import pycolmap
from lean3r.refine.job import MASKS, PICTURES, Group, Job
from lean3r.refine.kept import Kept
from lean3r.refine.progress import FEATURES, SEARCHED, say

# From octave 0 on, features are as large as the pixels of the picture allow; octave -1 doubles the picture before,
# which finds several times as many (small) ones in several times the time.
COARSE, FINE = 0, -1
SMALL = 1000  # longer side in pixels up to which a frame is small


def octaves(job: Job) -> tuple[int, ...]:
    """First octaves of the features, in turn. Small video frames need the finest features at once."""
    small = max(max(group.width, group.height) for group in job.groups) <= SMALL
    return (FINE,) if job.sequences and small else (COARSE, FINE)


def detect(job: Job, folder: Path, database: Path, first_octave: int, kept: Kept) -> None:
    """Find the features of all pictures, except for those that are kept; image v + 1 of the database is view v."""
    options = pycolmap.FeatureExtractionOptions()
    options.num_threads = job.threads
    options.sift.first_octave = first_octave
    options.sift.max_num_features = job.features
    options.sift.max_num_orientations = 1 if first_octave == COARSE else 2
    files = [view.file for view in job.views if view.file is not None]
    reader = pycolmap.ImageReaderOptions()
    if (folder / MASKS).is_dir():
        reader.mask_path = folder / MASKS
    # Files of one group share a folder; a job whose groups were split has more groups than folders.
    parted = len({file.split("/")[0] for file in files}) < len({v.group for v in job.views if v.file is not None})
    mode = pycolmap.CameraMode.PER_IMAGE if parted else pycolmap.CameraMode.PER_FOLDER
    # Images listed first are numbered in order; otherwise the order would depend on the threads.
    pycolmap.Database.open(database).close()
    pycolmap.import_images(database, folder / PICTURES, camera_mode=mode, image_names=files, options=reader)
    kept.recall_features(database)
    for start in range(0, len(files), SEARCHED):
        pycolmap.extract_features(
            database,
            folder / PICTURES,
            image_names=files[start : start + SEARCHED],
            camera_mode=mode,
            reader_options=reader,
            extraction_options=options,
        )
        say(folder, FEATURES, min(start + SEARCHED, len(files)), len(files))
    set_cameras(job, database)


def set_cameras(job: Job, database: Path) -> None:
    """Put the cameras that the job's groups start with into the database."""
    with pycolmap.Database.open(database) as opened:
        for image in opened.read_all_images():
            group = job.groups[job.views[files_to_view(job)[image.name]].group]
            opened.update_camera(camera_of(group, image.camera_id))


def files_to_view(job: Job) -> dict[str, int]:
    """The view of each picture file."""
    return {view.file: index for index, view in enumerate(job.views) if view.file is not None}


def camera_of(group: Group, camera_id: int = 1) -> pycolmap.Camera:
    """The camera that a group starts with."""
    return pycolmap.Camera(
        camera_id=camera_id,
        model=group.model,
        width=group.width,
        height=group.height,
        params=group.params,
        has_prior_focal_length=group.trusted or group.fixed,
    )


def pinhole(params, width: int, height: int) -> pycolmap.Camera:
    """A pinhole of fx, fy, cx, cy in pixels."""
    return pycolmap.Camera(model="PINHOLE", width=width, height=height, params=params)
