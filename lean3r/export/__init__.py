"""From a Reconstruction to files: one row of EXPORTERS a format, one folder that appears whole."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lean3r.errors import UsageError
from lean3r.export.atomic import atomic_folder
from lean3r.export.options import ExportOptions, PictureUse
from lean3r.options import as_record
from lean3r.registry import Registry

if TYPE_CHECKING:
    from lean3r.export.manifest import Written
    from lean3r.types import Lens, Reconstruction, Source

__all__ = ["DEFAULT_FORMATS", "EXPORTERS", "ExportOptions", "atomic_folder", "export", "parse_formats", "write_all"]


class Format(NamedTuple):
    """An export format.

    - `at`: the place of its function `write(reconstruction, directory, options) -> files`.
    - `files`: what appears in the folder; `about`: what these files contain.
    - `default`: written unless the user chooses formats. It costs little time, no extra package and no copies of the
      pictures.
    - `needs`: if it needs an extra package, the place of a function that raises MissingExtraError without it.
    - `check`: the place of a function that raises UsageError for cameras that it cannot write; see `check_cameras`.
    - `pictures`: whether pictures are written beside the files: only those that are not files yet ("beside"), or copies
      of all ("needed").
    - `is_heavy`: it uses all threads by itself, or files of the others, and is written after them.
    - `after`: the format whose files it takes up; with that it is written last.
    - `shows_depth`: it is nothing but depth, so that a scene without any has none of its files.
    """

    at: str
    files: str
    about: str
    default: bool = False
    needs: str = ""
    check: str = ""
    pictures: PictureUse = "no"
    is_heavy: bool = False
    after: str = ""
    shows_depth: bool = False


EXPORTERS = Registry(
    "format",
    {
        "cameras": Format("lean3r.export.cameras:write", "cameras.json", "one entry per view", default=True),
        "npz": Format(
            "lean3r.export.npz:write", "predictions.npz", "depth, confidence, cameras as arrays", default=True
        ),
        "depth": Format(
            "lean3r.export.depth:write",
            "depth/",
            "one 16-bit PNG per view, scale.json, preview/ in colour",
            default=True,
            shows_depth=True,
        ),
        "ply": Format("lean3r.export.ply:write", "points.ply", "coloured points", default=True),
        "glb": Format(
            "lean3r.export.glb:write", "scene.glb", "coloured points, camera frusta and cameras, y up", default=True
        ),
        "colmap": Format(
            "lean3r.export.colmap:write",
            "sparse/0/",
            "COLMAP model (binary)",
            default=True,
            check="lean3r.export.lenses:check",
            pictures="beside",
        ),
        "preview": Format(
            "lean3r.export.preview:write", "preview.jpg", "the cloud and the cameras from two sides", default=True
        ),
        "html": Format(
            "lean3r.view.html:write",
            "view.html",
            "the scene to turn round in a browser, without a network",
            after="mesh",
        ),
        "nerfstudio": Format(
            "lean3r.export.nerfstudio:write",
            "transforms.json, points.ply",
            "cameras and points for nerfstudio",
            check="lean3r.export.nerfstudio:check",
            pictures="needed",
            is_heavy=True,
        ),
        "mesh": Format(
            "lean3r.export.mesh:write",
            "mesh.glb, mesh.ply",
            "a coloured surface",
            needs="lean3r.export.mesh:marching_cubes",
            is_heavy=True,
            shows_depth=True,
        ),
        "trajectory": Format(
            "lean3r.export.trajectory:write",
            "trajectory_tum.txt, trajectory_kitti.txt, times.txt",
            "poses over time, for programs for odometry",
        ),
        "csv": Format("lean3r.export.camera_table:write", "cameras.csv", "a row per view, with its residuals"),
        "las": Format(
            "lean3r.export.las:write_las",
            "points.las",
            "coloured points, z up or in UTM",
            needs="lean3r.export.geo:check",
        ),
        "laz": Format(
            "lean3r.export.las:write_laz", "points.laz", "the same, compressed", needs="lean3r.export.geo:check"
        ),
        "geotiff": Format(
            "lean3r.export.geotiff:write",
            "elevation.tif, orthophoto.tif",
            "heights and colours from straight above",
            needs="lean3r.export.geo:check",
            shows_depth=True,
        ),
        "report": Format("lean3r.quality:write", "report.html", "what to trust, as a page to read and to print"),
    },
)
NO_PICTURES = (
    "images/ is not written, and the pictures that transforms.json names there are missing: pass those of the scene, "
    "ExportOptions(pictures=lean3r.Pictures('photos/'))"
)
DEFAULT_FORMATS = tuple(name for name in EXPORTERS if EXPORTERS[name].default)


def export(
    reconstruction: Reconstruction,
    out: str | Path,
    formats: str | Iterable[str] = DEFAULT_FORMATS,
    *,
    overwrite: bool = False,
    options: ExportOptions | None = None,
) -> Path:
    """Write `reconstruction` to the folder `out` and return `out`; all files appear at once or none does.

    `formats` are names of EXPORTERS ("all" for each). Raises UsageError for an unknown format, for a texture without
    the mesh that it is for, for undistorted or copied pictures without `pictures`, for a non-empty `out` without
    `overwrite`, and for a full disk.
    """
    chosen = parse_formats(formats)
    if options is not None:
        _check(options, chosen)
        options.warn_of_unread(chosen)
    with atomic_folder(out, overwrite=overwrite) as directory:
        write_all(_with_record(_with_caution(reconstruction, chosen, options), options), directory, chosen, options)
    return Path(out).expanduser()


def _check(options: ExportOptions, chosen: Sequence[str]) -> None:
    """UsageError if the options contradict these formats, or lack the pictures that they ask for."""
    if options.texture and "mesh" not in chosen:
        raise UsageError(f"texture paints the format mesh, and formats are {', '.join(chosen)}; add mesh.")
    options.check(picture_uses(chosen))
    options.check_pictures()


def _with_caution(
    reconstruction: Reconstruction, chosen: Sequence[str], options: ExportOptions | None
) -> Reconstruction:
    """The scene, with a warning if one of the formats names pictures that are not written."""
    from lean3r.types import with_warning

    options = options or ExportOptions()
    if "needed" not in picture_uses(chosen) or options.pictures is not None or options.images == "never":
        return reconstruction
    return with_warning(reconstruction, "no-pictures", NO_PICTURES)


def _with_record(reconstruction: Reconstruction, options: ExportOptions | None) -> Reconstruction:
    """The scene with these options in its config, by which programs know how to read the folder; an earlier export of
    the scene may have had others."""
    config, record = reconstruction.info.get("config", {}), as_record(options or ExportOptions())
    if options is None:
        record = {name: value for name, value in record.items() if name in config}
    return replace(reconstruction, info={**reconstruction.info, "config": {**config, **record}})


def write_all(
    reconstruction: Reconstruction,
    directory: Path,
    formats: str | Iterable[str] = DEFAULT_FORMATS,
    options: ExportOptions | None = None,
    others: Iterable[Path] = (),
) -> Written:
    """Write the chosen formats, then config.toml and manifest.json, into an existing folder; return the files, and the
    figures of formats that have any, by format. `others` are files there that belong to the result, too."""
    from lean3r.export import manifest
    from lean3r.parallel import by_threads

    def write(name: str) -> tuple[list[Path], float]:
        start = time.perf_counter()
        files = EXPORTERS.get(name)(reconstruction, directory, options or ExportOptions())
        return files, round(time.perf_counter() - start, 4)

    began = time.perf_counter()
    chosen = parse_formats(formats)
    waits = {name: EXPORTERS[name].after in chosen for name in chosen}
    names = sorted(chosen, key=lambda name: (EXPORTERS[name].is_heavy or waits[name], waits[name]))
    light = [name for name in names if not (EXPORTERS[name].is_heavy or waits[name])]
    written = by_threads(write, light) + [write(name) for name in names[len(light) :]]
    files = [*others]
    files += [file for format_files, _ in written for file in format_files]
    seconds = {name: duration for name, (_, duration) in zip(names, written, strict=True)}
    figures = {
        name: format_files.figures
        for name, (format_files, _) in zip(names, written, strict=True)
        if isinstance(format_files, manifest.Written)
    }
    took = time.perf_counter() - began
    return manifest.Written(files + manifest.write(reconstruction, directory, files, seconds, took, figures), figures)


def picture_uses(formats: Iterable[str]) -> set[PictureUse]:
    """How the formats use the pictures."""
    return {EXPORTERS[name].pictures for name in formats}


def check_extras(formats: Iterable[str]) -> None:
    """Raise MissingExtraError, before any work is done, if a format needs a package that is not installed."""
    for needs in (EXPORTERS[name].needs for name in formats):
        if needs:
            _function(needs)()


def check_cameras(
    formats: Iterable[str], options: ExportOptions, sources: Sequence[Source], lenses: Sequence[Lens | None]
) -> None:
    """Raise UsageError, before any work is done, if a format cannot hold the cameras of pictures with such sources, of
    which these lenses are known (None: not yet)."""
    for check in (EXPORTERS[name].check for name in formats):
        if check:
            _function(check)(options, sources, lenses)


def _function(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def without_depth_formats(asked: Iterable[str]) -> tuple[str, ...]:
    """The default formats for a scene without depth, or those that are asked for; UsageError if these show depth."""
    chosen = parse_formats(asked)
    for name in chosen:
        if EXPORTERS[name].shows_depth:
            raise UsageError(f"the format {name} shows depth, which --dense off leaves out; choose one of the two.")
    return tuple(chosen) or tuple(name for name in DEFAULT_FORMATS if not EXPORTERS[name].shows_depth)


def parse_formats(formats: str | Iterable[str]) -> Sequence[str]:
    """Names of EXPORTERS in the order of the table, from "glb,ply", ["glb", "ply"] or "all"; UsageError if unknown."""
    parts = [formats] if isinstance(formats, str) else formats
    names = {name.strip().lower() for part in parts for name in part.split(",") if name.strip()}
    if "all" in names:
        return tuple(EXPORTERS)
    for name in names:
        EXPORTERS.check(name)
    return tuple(name for name in EXPORTERS if name in names)
