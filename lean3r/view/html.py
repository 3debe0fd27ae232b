"""view.html: the scene on one page that opens by a double click, without a network and without a program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lean3r.export.manifest import Written
from lean3r.export.options import ExportOptions
from lean3r.types import Reconstruction
from lean3r.view.content import of_scene
from lean3r.view.folder import surface_in
from lean3r.view.packing import Package
from lean3r.view.page import one_file

FILE, NOTEBOOK_POINTS = "view.html", 100_000


def write(reconstruction: Reconstruction, directory: Path, options: ExportOptions) -> list[Path]:
    """Write view.html with at most `html_points` points, and the mesh that is in the folder; the manifest tells its
    size."""
    content = replace(of_scene(reconstruction), surface=surface_in(directory, []))
    package = Package(content, most=options.html_points, in_one_file=True)
    path = directory / FILE
    size = write_page(path, [package])
    return Written([path], {"bytes": size, "points": package.points.count, "views": len(reconstruction.sources)})


def page(scene: Reconstruction) -> str:
    """The same page as text, with at most NOTEBOOK_POINTS points: for notebooks, which keep it."""
    return b"".join(one_file([Package(of_scene(scene), most=NOTEBOOK_POINTS, in_one_file=True)])).decode()


def write_page(path: Path, packages: Sequence[Package], aligned: str = "") -> int:
    """Write the page of these results, and return its size in bytes."""
    with path.open("wb") as file:
        return sum(file.write(piece) for piece in one_file(packages, aligned))
