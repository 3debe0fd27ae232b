"""The pictures of the viewer in README and in docs/how-to/view.md, of photo scenes whose licence allows it.

    python benchmarks/view_pictures.py [--data ../shared/data]

Each scene is reconstructed and written as one page by the commands of the guide; Chromium opens that page at twice the
size, and its window becomes docs/images/view*.jpg.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import ROOT
from PIL import Image
from playwright.sync_api import Page, sync_playwright

SOFTWARE = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
LEAN3R = (sys.executable, "-P", "-m", "lean3r")
SIZE = {"width": 1200, "height": 720}
WIDTH, QUALITY = 840, 55


def whole(page: Page) -> None:
    """As it opens."""
    page.evaluate("lean3r.viewer.eye.orbit(0.2, 0.02), lean3r.viewer.eye.pan(0, -0.05), lean3r.viewer.moved()")


def photo(page: Page) -> None:
    """The view of a camera, half covered by its photo."""
    page.locator("#camera-lists button").nth(2).click()
    page.select_option("#colour", "confidence")


PICTURES: dict[str, tuple[str, list[str], list[str], Any, str]] = {
    "view.webp": ("brighton_beach_aerial", ["--gps"], [], whole, "dark"),
    "view-photo.webp": ("banana", [], [], photo, "light"),
}
"""File -> scene, options of reconstruct and of view, what is done on the page, dark or light."""


def settled(page: Page) -> None:
    """Wait until everything is drawn."""
    for _ in range(2):
        page.wait_for_selector("html[data-state=still]", state="attached", timeout=120_000)
        page.wait_for_timeout(300)


def main() -> None:
    """Make all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data", help="folder with scenes/NAME/images")
    parser.add_argument("--only", nargs="+", default=list(PICTURES), choices=list(PICTURES))
    parser.add_argument("--keep", type=Path, help="folder of results that are used if they are there, and stay")
    args = parser.parse_args()
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        raise SystemExit("no Chromium: apt-get install chromium")
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        folder = args.keep or Path(scratch)
        browser = playwright.chromium.launch(executable_path=program, args=SOFTWARE)
        for name in args.only:
            scene, making, viewing, act, scheme = PICTURES[name]
            out, html = folder / scene, folder / f"{scene}.html"
            if not out.exists():
                images = str(args.data / "scenes" / scene / "images")
                subprocess.run([*LEAN3R, "reconstruct", images, "-o", str(out), "-q", *making], check=True)
            subprocess.run([*LEAN3R, "view", str(out), "--html", str(html), "--overwrite", "-q", *viewing], check=True)
            page = browser.new_page(viewport=SIZE, device_scale_factor=2, color_scheme=scheme, reduced_motion="reduce")
            page.goto(html.resolve().as_uri())
            settled(page)
            act(page)
            settled(page)
            with Image.open(io.BytesIO(page.screenshot())) as shot:
                small = shot.convert("RGB").resize(
                    (WIDTH, WIDTH * SIZE["height"] // SIZE["width"]), Image.Resampling.LANCZOS
                )
                small.save(ROOT / "docs" / "images" / name, quality=QUALITY, method=6)
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
