"""What the refining process gets: views, the cameras that they share, and pictures that it searches."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from lean3r.geometry.lens import LENSES, scale_lens
from lean3r.inputs.masks import Masks
from lean3r.inputs.past import Past
from lean3r.inputs.pictures import Pictures
from lean3r.refine.job import MASKS, PICTURES, Group, Job, View
from lean3r.refine.options import KnownCameras, RefineOptions
from lean3r.refine.pairs import likely_pairs
from lean3r.refine.pictures import scale_of, size_of, write_masks, write_pictures
from lean3r.refine.sequence import pairs_along, sequences
from lean3r.refine.world import are_apart
from lean3r.types import Reconstruction, Source

THREADS = 2
SAME_FOCAL = 1e-3  # relative: one focal length stands for both, and one distortion for four that overfit


def prepare(
    reconstruction: Reconstruction,
    pictures: Pictures | None,
    options: RefineOptions,
    known: KnownCameras,
    masks: Masks | None,
    folder: Path,
) -> Job:
    """Write the job and its pictures into a folder."""
    sources = reconstruction.sources
    scales = [scale_of(source, options.side) for source in sources]
    keys = list(zip(camera_keys(sources, options, known), scales, strict=True))  # photos, frames of their size: apart
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    files = [f"{numbers[key]}/{view:06d}.bmp" for view, key in enumerate(keys)]
    paths = [folder / PICTURES / file for file in files]
    written = write_pictures(reconstruction, pictures, options.side, paths)
    if masks is not None:
        write_masks(masks, sources, options.side, [folder / MASKS / f"{file}.png" for file in files])
    views = tuple(
        View(numbers[key], scale, file if is_there else None, source.timestamp_s)
        for key, scale, file, is_there, source in zip(keys, scales, files, written, sources, strict=True)
    )
    matrices = reconstruction.original_intrinsics * np.array(scales)[:, None, None]
    pinholes = matrices[:, [0, 1, 0, 1], [0, 1, 2, 2]]
    groups = tuple(
        _group(sources, [v for v, key in enumerate(keys) if key == wanted], pinholes, scales, options, known)
        for wanted in numbers
    )
    start, held = reconstruction.cam_from_world, known.has_pose(len(sources))
    if known.cam_from_world is not None:
        start = np.where(held[:, None, None], known.cam_from_world, start)
    if not known.are_fixed or not are_apart(start[held]):
        held = np.zeros(len(sources), bool)
    runs = sequences(sources)
    job = Job(
        views,
        groups,
        reconstruction.cam_from_world,
        pinholes,
        start,
        held,
        likely_pairs(reconstruction),
        options.features,
        THREADS,
        tuple(map(tuple, runs)),
        None if pictures is None else pictures.kept,
        0 if pictures is None else pictures.meeting,
        () if pictures is None else pictures.joined,
        follows=pictures is not None and pictures.follows,
        calibrated=pictures is not None and pictures.calibrated,
    )
    if pictures is not None and pictures.past is not None and runs == [list(range(len(sources)))]:
        job = with_past(job, pictures.past, [source.name for source in sources], folder)
    job.write(folder)
    return job


def with_past(job: Job, past: Past, names: Sequence[str], folder: Path) -> Job:
    """The job of frames with these names of a video, with the frames of the past before them."""
    count, first = len(past.times_s), job.views[0]
    files = [f"{first.group}/past_{number:06d}.bmp" for number in range(count)]
    for picture, file in zip(past.pictures, files, strict=True):
        Image.fromarray(picture).save(folder / PICTURES / file)
    views = tuple(replace(first, file=file, timestamp_s=at) for file, at in zip(files, past.times_s, strict=True))
    unknown = np.full((4, 4), np.nan)
    run = range(count + len(job.views))
    return replace(
        job,
        views=views + job.views,
        # Found before, not by the network: its fit is that of the other views.
        cam_from_world=np.concatenate([np.tile(unknown, (count, 1, 1)), job.cam_from_world]),
        pinholes=np.concatenate([np.tile(job.pinholes[:1], (count, 1)), job.pinholes]),
        start=np.concatenate([past.cam_from_world, [past.known.get(name, unknown) for name in names]]),
        held=np.zeros(len(run), bool),
        pairs=pairs_along([run]),
        sequences=(tuple(run),),
        joined=tuple(view + count for view in job.joined),
        past=count,
        ends=past.ends,
    )


def camera_keys(sources: Sequence[Source], options: RefineOptions, known: KnownCameras) -> list[Hashable]:
    """A key for each view; views with the same key share a camera. Pictures without a focal length in EXIF join those
    of their size, if these state only one."""
    if options.share_lens == "never":
        return list(range(len(sources)))
    stated = {
        (s.width, s.height): {t.focal_px for t in sources if (t.width, t.height) == (s.width, s.height)} - {None}
        for s in sources
    }
    keys: list[Hashable] = []
    for view, source in enumerate(sources):
        stands = known.intrinsics is not None and np.isfinite(known.intrinsics[view]).all()
        matrix = tuple(known.intrinsics[view].ravel()) if known.intrinsics is not None and stands else None
        is_one = options.share_lens == "always" or len(stated[source.width, source.height]) <= 1
        lens = known.lenses[view] if known.lenses else None
        keys.append((source.width, source.height, None if is_one else source.focal_px, matrix, lens))
    return keys


def _group(
    sources: Sequence[Source],
    views: list[int],
    pinholes: np.ndarray,
    scales: list[float],
    options: RefineOptions,
    known: KnownCameras,
) -> Group:
    first = views[0]
    source, scale = sources[first], scales[first]
    width, height = size_of(source, scale)
    if known.lenses and (lens := known.lenses[first]) is not None:
        return Group(width, height, lens.model, scale_lens(lens, scale, scale).params, fixed=True)
    matrices = known.intrinsics
    model = "SIMPLE_RADIAL" if options.lens == "auto" else options.lens.upper().replace("-", "_")
    if matrices is not None and np.isfinite(matrices[first]).all():
        fx, fy, cx, cy = (float(value) * scale for value in matrices[first][[0, 1, 0, 1], [0, 1, 2, 2]])
        # An adjustment cannot hold the focal lengths of some cameras alone.
        if "PINHOLE" in model or not np.isfinite(matrices).all():
            return Group(width, height, "PINHOLE", (fx, fy, cx, cy), fixed=True)
        model = model if abs(fx / fy - 1) < SAME_FOCAL else "OPENCV"
        focals, more = LENSES[model]
        params = (*([(fx + fy) / 2] if focals == 1 else [fx, fy]), cx, cy, *[0.0] * more)
        return Group(width, height, model, params, trusted=True, focal_fixed=True)
    stated = [sources[view].focal_px for view in views]
    stated = [value for value in stated if value is not None]
    trusted = 2 * len(stated) > len(views)
    focal = float(np.median(stated)) * scale if trusted else float(np.median(pinholes[views][:, :2]))
    focals, more = LENSES[model]
    params = (*[focal] * focals, source.width * scale / 2, source.height * scale / 2, *[0.0] * more)
    assumed = options.share_lens == "auto"  # EXIF stays the same where a picture is cropped and enlarged afterwards
    lens_assumed = options.lens == "auto"
    return Group(width, height, model, params, trusted=trusted, assumed=assumed, lens_assumed=lens_assumed)
