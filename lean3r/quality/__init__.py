"""The quality report: one printable page that says how far a result can be trusted, from a scene or a folder."""

from __future__ import annotations

from pathlib import Path

from lean3r.export.options import ExportOptions
from lean3r.types import Reconstruction

REPORT = "report.html"


def write(reconstruction: Reconstruction, directory: Path, options: ExportOptions) -> list[Path]:
    """Write report.html, the page of `report_of`."""
    path = directory / REPORT
    path.write_text(report_of(reconstruction), encoding="utf-8")
    return [path]


def report_of(result: Reconstruction | str | Path) -> str:
    """The report of a scene, or of a result folder as far as it can be read, as one HTML page.

    It needs no scripts and loads nothing. InputError if the folder is no result.
    """
    from lean3r.quality.facts import facts_of, facts_of_folder
    from lean3r.quality.page import page

    return page(facts_of(result) if isinstance(result, Reconstruction) else facts_of_folder(result))
