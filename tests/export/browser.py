"""A GLB as a browser shows it: Chromium, three.js and its GLTFLoader over a local page."""

from __future__ import annotations

import base64
import io
import json
import queue
import shutil
import subprocess
import tempfile
import threading
import urllib.parse
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image

FLIP = np.diag([1.0, -1.0, -1.0, 1.0])  # OpenCV's axes and glTF's, both ways
NEAR, FAR = 1e-3, 1e3
SOFTWARE = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


def find_chromium() -> str | None:
    """The program, None where it is not installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Handler(SimpleHTTPRequestHandler):
    """Serves the page, three.js and one GLB; takes the picture."""

    def __init__(self, *args, glb: Path, three: Path, results: queue.Queue, **kwargs):
        self.glb, self.three, self.results = glb, three, results
        super().__init__(*args, **kwargs)

    def translate_path(self, path: str) -> str:
        name = urllib.parse.urlparse(path).path
        if name.startswith("/three/"):
            return str(self.three / name.removeprefix("/three/"))
        return str(self.glb if name == "/scene.glb" else Path(__file__).with_name("viewer.html"))

    def do_POST(self) -> None:
        self.results.put(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args) -> None:
        pass


def render(
    glb: Path, three: Path, cam_from_world: np.ndarray, intrinsics: np.ndarray, size: tuple[int, int], show: list[str]
) -> np.ndarray:
    """RGBA [H, W, 4] uint8 of the nodes `show` of a GLB of lean3r, from an OpenCV camera, in a picture of (W, H)."""
    width, height = size
    fx, fy, cx, cy = intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]]
    projection = np.array(
        [
            [2 * fx / width, 0, 1 - 2 * cx / width, 0],
            [0, 2 * fy / height, 2 * cy / height - 1, 0],
            [0, 0, -(FAR + NEAR) / (FAR - NEAR), -2 * FAR * NEAR / (FAR - NEAR)],
            [0, 0, -1, 0],
        ]
    )
    pose = FLIP @ np.linalg.inv(cam_from_world) @ FLIP
    view = {"width": width, "height": height, "show": show, "projection": projection.T.ravel().tolist()}
    query = urllib.parse.quote(json.dumps(view | {"world_from_cam": pose.T.ravel().tolist()}))
    results: queue.Queue[str] = queue.Queue()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, glb=glb, three=three, results=results))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        chromium = find_chromium()
        assert chromium is not None
        options = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", *SOFTWARE, f"--user-data-dir={profile}"]
        address = f"http://127.0.0.1:{server.server_port}/?view={query}"
        browser = subprocess.Popen([chromium, *options, address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            answer = results.get(timeout=120)
        finally:
            browser.terminate()
            browser.wait(30)
            server.shutdown()
            server.server_close()
    assert answer.startswith("data:image/png;base64,"), answer
    with Image.open(io.BytesIO(base64.b64decode(answer.split(",", 1)[1]))) as picture:
        return np.asarray(picture.convert("RGBA"))
