"""A browser for the page, and small results to show in it; tests that need what is not installed skip and say so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from export.scene import make_scene

from lean3r.export import export
from lean3r.types import Reconstruction

SIZE = {"width": 760, "height": 520}
NPM = Path.home() / ".cache" / "lean3r-tests" / "node_modules"
FORMATS = "cameras,npz,ply"


def small_scene(views: int = 4, **changes: Any) -> Reconstruction:
    """A room with a box, and a view of each registration."""
    scene = make_scene(views, **changes)
    states = ("refined", "fallback", "predicted", "uncertain")
    return replace(scene, registration=tuple(states[view % 4] for view in range(views)))


@pytest.fixture(scope="session")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, cameras, depth, points, and the page view.html."""
    folder = tmp_path_factory.mktemp("results") / "room"
    scene = small_scene()
    export(scene, folder, FORMATS + ",html")
    write_pictures(scene, folder)
    return folder


def write_pictures(scene: Reconstruction, folder: Path) -> None:
    """images/ of a result, as large as the network's."""
    from PIL import Image

    (folder / "images").mkdir()
    for name, image in zip(scene.names, scene.images, strict=True):
        Image.fromarray(image).save(folder / "images" / name)


class Opened:
    """A page in the browser, and what went wrong on it."""

    def __init__(self, page: Any, address: str) -> None:
        self.page, self.problems, self.asked = page, [], []
        page.on("console", lambda said: self.problems.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))
        page.goto(address)
        self.settle()

    def settle(self) -> None:
        """Wait until everything is loaded and drawn."""
        for _ in range(2):
            self.page.wait_for_selector("html[data-state=still], html[data-state=failed]", timeout=30_000)
            self.page.wait_for_timeout(60)

    def shot(self) -> Any:
        """The pixels of the view [H, W, 3] uint8."""
        import io

        import numpy as np
        from PIL import Image

        self.settle()
        self.page.evaluate("window.lean3r.viewer.present()")
        with Image.open(io.BytesIO(self.page.locator("#view").screenshot())) as picture:
            return np.asarray(picture.convert("RGB")).astype(int)


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Opened]]:
    """Open an address or a file in a window of its own, which is closed after the test."""
    contexts = []

    def start(address: str | Path, **options: Any) -> Opened:
        settings = {"viewport": SIZE, "reduced_motion": "reduce", "color_scheme": "dark"} | options
        contexts.append(browser.new_context(**settings))
        return Opened(contexts[-1].new_page(), address.as_uri() if isinstance(address, Path) else address)

    yield start
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def axe() -> str:
    """The text of axe-core."""
    path = NPM / "axe-core" / "axe.min.js"
    if not path.is_file():
        pytest.skip(f"no axe-core: npm install --prefix {NPM.parent} axe-core")
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three photos of the room."""
    from PIL import Image

    folder, scene = tmp_path_factory.mktemp("photos"), small_scene(3)
    for name, image in zip(scene.names, scene.images, strict=True):
        Image.fromarray(image).resize((192, 144)).save(folder / name)
    return folder
