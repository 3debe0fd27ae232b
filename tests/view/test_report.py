"""The quality report in a real browser, as it is read on a screen, on a phone and on paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from quality.reported import rich_scene

from lean3r.export import preview
from lean3r.quality import report_of

NAMES = ["a" * 40 + ".jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preview, "SAMPLES", 1)
        path.write_text(report_of(rich_scene(NAMES)), encoding="utf-8")
    return path


@pytest.mark.parametrize("width", [1280, 375], ids=["desktop", "phone"])
def test_nothing_serious_is_wrong_for_those_who_see_badly(report: Path, browser: Any, axe: str, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800})
    page = context.new_page()
    page.goto(report.as_uri())
    page.evaluate(axe)
    serious = []
    for media, scheme in (("screen", "light"), ("screen", "dark"), ("print", "light"), ("print", "dark")):
        page.emulate_media(media=media, color_scheme=scheme)
        found = page.evaluate("axe.run(document).then(done => done.violations)")
        serious += [(media, scheme, each["id"], each["nodes"][0]["html"][:90]) for each in found
                    if each["impact"] in ("serious", "critical")]  # fmt: skip
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert media == "print" or wide <= 0, "the page itself does not scroll to the side"
    context.close()
    assert serious == []
