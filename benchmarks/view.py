"""The page of three million points: how large, how long until a first picture, and how fluent, drawn in software.

    python benchmarks/view.py [--points 3000000 250000]

A synthetic surface with normals, seen by 24 cameras, as `lean3r view` serves it and as one file. Chromium draws without
a graphics processor. Seconds from opening the address until the first picture, until all points are drawn, of packing;
frames a second while the view turns. Writes benchmarks/results/view.json.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import hardware, write_result
from playwright.sync_api import Page, sync_playwright

from lean3r.types import Source
from lean3r.view.content import Content, Points, make_camera
from lean3r.view.html import write_page
from lean3r.view.packing import Package
from lean3r.view.server import Server, Shown

SOFTWARE = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
SIZE = {"width": 1280, "height": 800}
VIEWS, TURN_S = 24, 5
TURN = """(seconds) => new Promise((done) => {
  const start = performance.now(), { viewer } = lean3r;
  let frames = 0;
  const step = (now) => {
    if (now - start > 1000 * seconds) return done(frames / seconds);
    frames++;
    viewer.eye.orbit(0.02, 0);
    viewer.moved();
    requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
})"""


class NoPictures:
    """An album without any picture."""

    def photo(self, view: int, side: int) -> None:
        """None."""

    def depth(self, view: int) -> None:
        """None."""

    def conf(self, view: int) -> None:
        """None."""


def landscape(count: int) -> Content:
    """Hills of so many points, with cameras around them."""
    rng = np.random.default_rng(0)
    x, z = rng.uniform(-2, 2, (2, count))
    y = 0.25 * np.sin(3 * x) * np.cos(2 * z) + 0.03 * np.sin(31 * x) * np.sin(29 * z)
    slope = np.stack(
        [-0.75 * np.cos(3 * x) * np.cos(2 * z), np.full(count, -1.0), 0.5 * np.sin(3 * x) * np.sin(2 * z)], 1
    )
    normals = slope / np.linalg.norm(slope, axis=1, keepdims=True)
    rgb = (127 + 100 * np.sin(np.stack([7 * x, 9 * z, 11 * y + x], 1)) + rng.normal(0, 12, (count, 3))).clip(0, 255)
    cameras = []
    for view, angle in enumerate(np.linspace(0, 2 * np.pi, VIEWS, endpoint=False)):
        ahead = -np.array([np.sin(angle), -0.6, np.cos(angle)]) / np.hypot(1, 0.6)
        right = np.cross([0, 1, 0], ahead) / np.linalg.norm(np.cross([0, 1, 0], ahead))
        pose = np.eye(4)
        pose[:3, :3] = np.stack([right, np.cross(ahead, right), ahead])
        pose[:3, 3] = pose[:3, :3] @ ahead * 3
        k = np.array([[900.0, 0, 640], [0, 900, 480], [0, 0, 1]])
        cameras.append(make_camera(Source(f"{view}.jpg", 1280, 960), pose, k, "refined"))
    points = Points(
        np.stack([x, y, z], 1).astype(np.float32), rgb.astype(np.uint8), rng.uniform(1, 9, count).astype(np.float32),
        normals.astype(np.float32), np.full(count, -1, np.int32),
    )  # fmt: skip
    return Content("landscape", tuple(cameras), points, NoPictures())


def open_page(page: Page, address: str) -> dict[str, float]:
    """Seconds from opening until there is a picture, and until all points are drawn; then frames a second."""
    start = time.perf_counter()
    page.goto(address, wait_until="commit")
    page.wait_for_selector("html[data-drawn]", state="attached", timeout=300_000)
    first = time.perf_counter() - start
    page.wait_for_selector("html[data-state=still]", state="attached", timeout=300_000)
    return {
        "first_picture_s": first,
        "all_points_s": time.perf_counter() - start,
        "turning_frames_a_second": page.evaluate(TURN, TURN_S),
        "turning_points": page.evaluate("Math.round(lean3r.viewer.renderer.budget)"),
    }


def measure(count: int, browser: Any) -> dict[str, Any]:
    """Figures of one number of points, served and in one file."""
    content = landscape(count)
    start = time.perf_counter()
    shown = Shown()
    shown.put([Package(content)], is_done=True)
    figures: dict[str, Any] = {"points": count, "packing_s": time.perf_counter() - start}
    figures["bytes_of_points"] = sum(map(len, shown.packages[0].points.levels))
    server = Server(shown)
    page = browser.new_page(viewport=SIZE)
    figures["served"] = open_page(page, server.address)
    page.close()
    server.close()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        figures["file_bytes"] = write_page(path, [Package(content, in_one_file=True)])
        page = browser.new_page(viewport=SIZE)
        figures["file"] = open_page(page, path.as_uri())
        page.close()
    return figures


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, nargs="+", default=[3_000_000, 250_000])
    args = parser.parse_args()
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        raise SystemExit("no Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=SOFTWARE)
        result = {"hardware": hardware(), "chromium": browser.version, "canvas": SIZE, "renderer": "SwiftShader"}
        rows = [measure(count, browser) for count in args.points]
        browser.close()
    for row in rows:
        print(row)
    print(write_result("view", result | {"rows": rows}))


if __name__ == "__main__":
    main()
