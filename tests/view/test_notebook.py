"""A notebook that shows a scene: as it runs, and as nbconvert exports it, in a real browser."""

from __future__ import annotations

import html
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

CELLS = """
import sys
sys.path[:0] = PATHS
from export.scene import make_scene
from lean3r.export import preview
preview.SAMPLES = 1
scene = make_scene(3)
scene
---
scene.show(height=300)
---
scene.points
"""
HEIGHT = 1400  # of a window that shows the whole notebook: frames outside it do not draw


@pytest.fixture(scope="module")
def notebook() -> Any:
    """The notebook with its outputs, after it ran and was written and read."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    root = Path(__file__).parents[2]
    paths = repr([str(root), str(root / "tests")])
    cells = [nbformat.v4.new_code_cell(cell.strip().replace("PATHS", paths)) for cell in CELLS.split("---")]
    ran = nbclient.NotebookClient(nbformat.v4.new_notebook(cells=cells), timeout=120).execute()
    return nbformat.reads(nbformat.writes(ran), 4)


def test_a_notebook_that_runs_keeps_what_it_shows(notebook: Any) -> None:
    small, frame, points = (cell["outputs"][-1]["data"] for cell in notebook.cells)
    assert small["text/html"].startswith("<img") and small["text/plain"].startswith("Reconstruction(3 views")
    shown = frame["text/html"]
    assert shown.startswith("<iframe ") and shown.count("<") == 2, "one frame, and nothing outside it"
    assert "<canvas" in html.unescape(shown)
    assert "a page of" in frame["text/plain"] and "text/html" not in points


def test_what_nbconvert_exports_shows_the_scene_and_asks_for_nothing(
    notebook: Any, browser: Any, tmp_path: Path
) -> None:
    nbconvert = pytest.importorskip("nbconvert")
    page_text, _ = nbconvert.HTMLExporter().from_notebook_node(notebook)
    path = tmp_path / "notebook.html"
    path.write_text(page_text, encoding="utf-8")
    context = browser.new_context(viewport={"width": 1000, "height": HEIGHT}, reduced_motion="reduce")
    page, ours, asked = context.new_page(), [], []
    page.on("request", lambda request: (asked if request.frame == page.main_frame else ours).append(request.url))
    # nbconvert's own page loads MathJax and require.js from elsewhere.
    page.route("http*://**", lambda route: route.abort())
    page.goto(path.as_uri(), wait_until="domcontentloaded")
    page.frame_locator("iframe").locator("html[data-state=still]").wait_for(state="attached", timeout=30_000)
    picture = page.locator("img[src^='data:image/jpeg']")
    assert picture.count() == 1 and picture.evaluate("image => image.naturalWidth") > 100
    with Image.open(io.BytesIO(page.locator("iframe").screenshot())) as shot:
        assert len(shot.convert("RGB").getcolors(1 << 20) or ()) > 500, "the canvas shows points"
    context.close()
    assert [url for url in ours if not url.startswith(("data:", "blob:", "about:"))] == []
    assert path.as_uri() in asked
