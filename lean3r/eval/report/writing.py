"""Write a report into a folder: report.md with its plots and pictures, report.html, report.json."""

from __future__ import annotations

import json
from pathlib import Path

from lean3r.eval.report.content import REPORT, Report
from lean3r.eval.report.html import html
from lean3r.eval.report.markdown import markdown
from lean3r.eval.report.page import Gallery, Heading, Plot
from lean3r.eval.report.sections import blocks


def write_report(report: Report, folder: Path, version: str) -> None:
    """Write all files into an empty folder; `report.folder` is where it will be at the end."""
    page = list(blocks(report))
    assert isinstance(page[0], Heading)
    for block in page:
        if isinstance(block, Plot):
            (folder / "plots").mkdir(exist_ok=True)
            (folder / "plots" / f"{block.name}.svg").write_text(block.svg, encoding="utf-8")
        elif isinstance(block, Gallery):
            for picture in block.pictures:
                if picture.jpeg is not None:
                    (folder / "pictures").mkdir(exist_ok=True)
                    (folder / "pictures" / f"{picture.name}.jpg").write_bytes(picture.jpeg)
    record = json.dumps(report.record(version), indent=1, allow_nan=False)
    (folder / REPORT).write_text(record + "\n", encoding="utf-8")
    (folder / "report.md").write_text(markdown(page), encoding="utf-8")
    (folder / "report.html").write_text(html(page[0].text, page), encoding="utf-8")
