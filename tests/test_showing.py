"""How results print: a few lines, sizes and units, no array, nothing that a terminal or browser obeys."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from export.scene import make_scene

import lean3r
from lean3r.errors import UsageError
from lean3r.types import Known, PointCloud, Prediction, Reconstruction, Source, TokenLayout, Tokens, Views

HOSTILE = "\x1b[31m<script>alert('&')</script>\n" + "x" * 500


def results() -> list[object]:
    """One of each, with a hostile name and values that are no numbers."""
    scene = hostile_scene()
    images = torch.rand(1, 2, 3, 32, 48)
    known = Known(intrinsics=torch.eye(3).expand(1, 2, 3, 3))
    eye = torch.eye(4).expand(2, 2, 4, 4)
    intrinsics = torch.eye(3).expand(2, 2, 3, 3)
    views = Views(images, torch.ones(1, 2, 32, 48, dtype=torch.bool), scene.sources[:2], known)
    return [
        scene,
        scene.points,
        *scene.sources[:1],
        known,
        views,
        Tokens({"last": torch.rand(1, 2, 7, 8)}, TokenLayout(2, 1, 2, 3), views),
        Prediction(eye, intrinsics, torch.full((2, 2, 32, 48), torch.nan), None, is_metric=True),
        Prediction(eye, intrinsics, None, None),
        Prediction(eye.to("meta"), intrinsics.to("meta"), torch.rand(2, 2, 3, 4, device="meta"), None),
        PointCloud(*(np.empty(shape) for shape in ((0, 3), (0, 3), 0, 0, (0, 2), (0, 3)))),
    ]


def hostile_scene() -> Reconstruction:
    """The scene of the exporters' tests, its first picture with a name that means harm."""
    scene = make_scene()
    warnings = [{"code": "any", "text": f"look at {HOSTILE}", "views": []}] * 5
    sources = (replace(scene.sources[0], name=HOSTILE), *scene.sources[1:])
    return replace(scene, sources=sources, info={**scene.info, "warnings": warnings}, skipped=((HOSTILE, "why"),))


@pytest.mark.parametrize("result", results(), ids=lambda result: type(result).__name__)
def test_a_result_prints_in_a_few_plain_lines(result: object) -> None:
    shown = repr(result)
    assert shown.startswith(f"{type(result).__name__}(")
    assert shown.count("\n") <= 11 and max(map(len, shown.splitlines())) <= 330
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert not re.search(r"array|tensor|\d+\.\d+,? +-?\d+\.\d+,? +-?\d+\.\d+", shown), "no array is dumped"


def test_what_is_said_is_true() -> None:
    scene = make_scene()
    shown = repr(scene)
    count, height, width = scene.depth.shape
    assert f"Reconstruction({count} views of {width}x{height} px)" in shown
    known = scene.depth[scene.depth > 0]
    assert f"{known.min():.3g} to {known.max():.3g}" in shown and f"{len(scene.points.xyz):,}" in shown
    assert "1.5 to 2.5 m" in repr(
        Prediction(torch.eye(4)[None, None], torch.eye(3)[None, None], torch.tensor([[[[1.5, 2.5]]]]), None, True)
    )
    assert repr(Source("a.jpg", 40, 30, focal_px=35.2)) == "Source('a.jpg', 40x30 px, focal 35 px by EXIF)"
    assert repr(Views(torch.rand(2, 3, 3, 8, 16))).startswith("Views(2 scenes of 3 views of 16x8 px)")


class Page(HTMLParser):
    """The tags, links and text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.pages: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        self.pages += [value or "" for name, value in attrs if name == "srcdoc"]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_frame_holds_a_whole_page_that_cannot_leave_it(tmp_path) -> None:
    frame = hostile_scene().show(height=300)
    shown, page = Page(), Page()
    shown.feed(frame._repr_html_())
    page.feed(frame.page)
    assert shown.tags == {"iframe"} and shown.links == [] and shown.text == ""
    (inner,) = shown.pages
    assert inner == frame.page and frame.save(tmp_path / "scene.html").read_text(encoding="utf-8") == frame.page
    assert {"html", "title", "canvas"} <= page.tags and all(link.startswith(("data:", "#")) for link in page.links)
    assert "<script>alert" not in frame.page, "names are data, not part of the page"
    with pytest.raises(UsageError, match="height is 10; expected"):
        hostile_scene().show(10)


def test_a_notebook_shows_a_picture_and_figures_and_runs_nothing() -> None:
    shown = hostile_scene()._repr_html_()
    page = Page()
    page.feed(shown)
    assert page.tags == {"img", "table", "tr", "th", "td"} and len(shown) < 400_000
    (picture,) = page.links
    assert picture.startswith("data:image/jpeg;base64,")
    assert "<script>" in page.text and "warnings" in page.text, "as text"
    assert isinstance(hostile_scene(), lean3r.Reconstruction)
