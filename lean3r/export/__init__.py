"""From a Reconstruction to files: one row of EXPORTERS a format, one folder that appears whole."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lean3r.export.atomic import atomic_folder
from lean3r.export.options import ExportOptions
from lean3r.parallel import by_threads
from lean3r.registry import Registry

if TYPE_CHECKING:
    from lean3r.types import Reconstruction

__all__ = ["DEFAULT_FORMATS", "EXPORTERS", "ExportOptions", "atomic_folder", "export", "parse_formats", "write_all"]

# Each row: write(reconstruction, directory, options) -> the files written.
EXPORTERS = Registry(
    "format",
    {
        "cameras": "lean3r.export.cameras:write",
        "npz": "lean3r.export.npz:write",
        "depth": "lean3r.export.depth:write",
        "ply": "lean3r.export.ply:write",
        "glb": "lean3r.export.glb:write",
        "colmap": "lean3r.export.colmap:write",
        "preview": "lean3r.export.preview:write",
        "nerfstudio": "lean3r.export.nerfstudio:write",
        "mesh": "lean3r.export.mesh:write",
    },
)
# Those that cost nothing to ask for: transforms.json wants the pictures copied, a mesh takes time and an extra.
DEFAULT_FORMATS = tuple(name for name in EXPORTERS if name not in ("nerfstudio", "mesh"))


def export(
    reconstruction: Reconstruction,
    out: str | Path,
    formats: str | Iterable[str] = DEFAULT_FORMATS,
    *,
    overwrite: bool = False,
    options: ExportOptions | None = None,
) -> Path:
    """Write `reconstruction` to the folder `out` and return it; all files appear at once or none does.

    `formats` are names of EXPORTERS ("all" for each). Raises UsageError for an unknown format, for a non-empty
    `out` without `overwrite`, and for a full disk.
    """
    chosen = parse_formats(formats)
    with atomic_folder(out, overwrite=overwrite) as directory:
        write_all(reconstruction, directory, chosen, options)
    return Path(out)


def write_all(
    reconstruction: Reconstruction,
    directory: Path,
    formats: str | Iterable[str] = DEFAULT_FORMATS,
    options: ExportOptions | None = None,
) -> list[Path]:
    """Write the chosen formats, then config.toml and manifest.json, into an existing folder; return the files."""
    from lean3r.export import manifest

    def write(name: str) -> tuple[list[Path], float]:
        start = time.perf_counter()
        files = EXPORTERS.get(name)(reconstruction, directory, options or ExportOptions())
        return files, round(time.perf_counter() - start, 4)

    names = parse_formats(formats)
    written = by_threads(write, names)
    files = [file for of_format, _ in written for file in of_format]
    seconds = {name: taken for name, (_, taken) in zip(names, written, strict=True)}
    return files + manifest.write(reconstruction, directory, files, seconds)


def parse_formats(formats: str | Iterable[str]) -> Sequence[str]:
    """Names of EXPORTERS in the order of the table, from "glb,ply", ["glb", "ply"] or "all"; UsageError if unknown."""
    parts = [formats] if isinstance(formats, str) else formats
    names = {name.strip().lower() for part in parts for name in part.split(",") if name.strip()}
    if "all" in names:
        return tuple(EXPORTERS)
    for name in names:
        EXPORTERS.check(name)
    return tuple(name for name in EXPORTERS if name in names)
