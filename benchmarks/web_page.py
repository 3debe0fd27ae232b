"""nano in a browser against nano in Python: the same numbers, how long it takes, and how many photos it takes.

    python benchmarks/web_page.py nano.onnx RUNTIME [--photos DIR] [--views 4 16 32]

`nano.onnx` is written by `lean3r export-model nano nano.onnx`; RUNTIME is dist/ of npm's onnxruntime-web. Chromium runs
the page of `lean3r export-page` on photos, WebAssembly in one thread, without a graphics processor; Python runs the
network in one thread, too. Differences of depth and of cameras: for photos (each program reads them itself), and for
PNG files of the network's own size, which both read alike. Writes benchmarks/results/web_page.json.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import hardware, write_result
from PIL import Image
from playwright.sync_api import Page, sync_playwright

import lean3r
from lean3r.inputs.pictures import Pictures
from lean3r.models.base import Backbone
from lean3r.web.runtime import VERSION, runtime_files
from lean3r.web.site import write_site

SOFTWARE = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
PHOTOS = Path(__file__).parents[2] / "shared" / "data" / "scenes" / "fountain_p11" / "images"
PATIENCE_MS = 600_000


def in_page(page: Page, address: str, files: Sequence[Path]) -> dict[str, Any]:
    """What the page finds, its seconds in the network, and in all from the choice of the photos to the cloud."""
    page.goto(address)
    page.wait_for_selector("html[data-state=choosing]")
    start = time.perf_counter()
    page.set_input_files("#files", list(files))
    page.wait_for_selector("html[data-state=still], #problem:visible", timeout=PATIENCE_MS)
    whole = time.perf_counter() - start
    if problem := page.text_content("#problem"):
        raise SystemExit(problem)
    found = page.evaluate(
        "(() => { const { prediction: p, seconds } = lean3r.found;"
        "return { seconds, poses: [...p.poses], depth: [...p.depth], shape: [p.views, p.height, p.width] }; })()"
    )
    return {
        "network": found["seconds"],
        "whole": whole,
        "poses": np.array(found["poses"]).reshape(found["shape"][0], -1, 4)[:, :3],
        "depth": np.array(found["depth"]).reshape(found["shape"]),
    }


def in_python(model: Backbone, files: Sequence[Path]) -> dict[str, Any]:
    """The same of lean3r's network, unrefined."""
    views = Pictures(list(files)).views(resolution=model.resolution, patch=model.patch)
    with torch.inference_mode():
        model.decode(model.encode(views))
        start = time.perf_counter()
        found = model.decode(model.encode(views))
        seconds = time.perf_counter() - start
    assert found.depth is not None
    return {"network": seconds, "poses": found.cam_from_world[0, :, :3].numpy(), "depth": found.depth[0].numpy()}


def apart(page: dict[str, Any], python: dict[str, Any]) -> dict[str, float]:
    """How far the two are apart: depth relative, median and of one pixel in a thousand; rotation in degrees, place
    relative to the cameras' extent, largest of all views."""
    depth = np.abs(page["depth"] / python["depth"] - 1)
    turned = np.linalg.norm(page["poses"][..., :3] - python["poses"][..., :3], axis=(1, 2)) / np.sqrt(2)
    centres = [-np.einsum("sji,sj->si", poses[..., :3], poses[..., 3]) for poses in (page["poses"], python["poses"])]
    extent = np.linalg.norm(np.ptp(centres[1], axis=0))
    return {
        "depth_median": float(np.median(depth)),
        "depth_999": float(np.quantile(depth, 0.999)),
        "rotation_deg": float(np.degrees(turned.max())),
        "place": float(np.linalg.norm(centres[0] - centres[1], axis=1).max() / extent),
    }


def exact_files(files: Sequence[Path], model: Backbone, folder: Path) -> list[Path]:
    """The photos as PNG at the network's size, which need no resampling."""
    views = Pictures(list(files)).views(resolution=model.resolution, patch=model.patch)
    made = []
    for number, image in enumerate(views.images[0]):
        made.append(folder / f"{number}.png")
        Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()).save(made[-1])
    return made


class Quiet(SimpleHTTPRequestHandler):
    """Files, without a word."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", type=Path)
    parser.add_argument("runtime", type=Path)
    parser.add_argument("--photos", type=Path, default=PHOTOS)
    parser.add_argument("--views", type=int, nargs="+", default=[4, 16, 32])
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, photos = lean3r.load("nano", device="cpu"), sorted(given.photos.iterdir())
    record: dict[str, Any] = {
        "hardware": hardware(),
        "onnxruntime_web": VERSION,
        "photos": given.photos.name,
        "runs": {},
    }
    with tempfile.TemporaryDirectory() as name, sync_playwright() as started:
        site, exact = Path(name) / "site", Path(name) / "exact"
        site.mkdir()
        exact.mkdir()
        write_site(given.network.read_bytes(), runtime_files(given.runtime), site)
        record["megabytes"] = round(sum(path.stat().st_size for path in site.iterdir()) / 1e6, 1)
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        chromium = started.chromium.launch(executable_path="/usr/bin/chromium", args=SOFTWARE)
        for count in given.views:
            # Fewer photos than asked for are given again and again: that costs as much.
            files = [photos[i % len(photos)] for i in range(count)]
            copies = [Path(name) / f"{number:02}{path.suffix}" for number, path in enumerate(files)]
            for path, copy in zip(files, copies, strict=True):
                copy.write_bytes(path.read_bytes())
            page = chromium.new_page()
            ours, theirs = in_page(page, address, copies), in_python(model, copies)
            row = {"page_s": ours["network"], "page_whole_s": ours["whole"], "python_s": theirs["network"]}
            row |= {"photos_apart": apart(ours, theirs)}
            if count == 4:
                same = exact_files(copies, model, exact)
                row["same_pixels_apart"] = apart(in_page(page, address, same), in_python(model, same))
            page.close()
            record["runs"][str(count)] = row
            print(count, row)
        chromium.close()
        server.shutdown()
    write_result("web_page", record)


if __name__ == "__main__":
    main()
