"""Pages in folders, a server of files as any other, and a network that is none: its answers are easy to know."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from view.conftest import NPM, axe

from lean3r.web.runtime import PACKAGE, VERSION, runtime_files
from lean3r.web.site import write_site

__all__ = ["axe"]
SIZE = {"width": 760, "height": 520}
TURN = np.array([[0.96, 0.0, 0.28, 0.1], [0.0, 1.0, 0.0, 0.2], [-0.28, 0.0, 0.96, 0.3], [0, 0, 0, 1]], np.float32)
STEP = np.zeros((4, 4), np.float32)
STEP[0, 3] = -0.3
K = np.array([[230, 0, 144], [0, 240, 96], [0, 0, 1]], np.float32)


def answers(images: np.ndarray) -> dict[str, np.ndarray]:
    """What the stand-in says of images [S, 3, H, W]."""
    views = np.arange(len(images), dtype=np.float32)[:, None, None]
    mean = images.mean(axis=1, dtype=np.float32)
    poses, k = TURN + views * STEP, np.broadcast_to(K, (len(images), 3, 3))
    return {"depth": 2 + mean, "conf": 1 + images[:, 0], "cam_from_world": poses, "intrinsics": k}


def stand_in() -> bytes:
    """`answers` as ONNX."""
    onnx = pytest.importorskip("onnx", reason="no onnx: pip install onnx")
    helper, numpy_helper, kind = onnx.helper, onnx.numpy_helper, onnx.TensorProto
    constants = {
        "two": np.float32([2]), "one": np.float32([1]), "zero": np.int64(0), "ones": np.int64(1),
        "at2": np.int64([2]), "first": np.int64([0]), "second": np.int64([1]), "tail": np.int64([-1, 1, 1]),
        "batch": np.int64([0]), "turn": TURN, "step": STEP, "k": K, "lead": np.int64([1]), "three": np.int64([3, 3]),
    }  # fmt: skip
    nodes = [
        ("ReduceMean", ["images", "at2"], "mean", {"keepdims": 0}),
        ("Add", ["mean", "two"], "depth", {}),
        ("Slice", ["images", "first", "second", "at2"], "red1", {}),
        ("Squeeze", ["red1", "at2"], "red", {}),
        ("Add", ["red", "one"], "conf", {}),
        ("Shape", ["images"], "shape", {}),
        ("Gather", ["shape", "ones"], "views", {}),
        ("Range", ["zero", "views", "ones"], "numbers", {}),
        ("Cast", ["numbers"], "floats", {"to": kind.FLOAT}),
        ("Reshape", ["floats", "tail"], "column", {}),
        ("Mul", ["column", "step"], "moved", {}),
        ("Add", ["moved", "turn"], "poses", {}),
        ("Unsqueeze", ["poses", "batch"], "cam_from_world", {}),
        ("Unsqueeze", ["views", "batch"], "views1", {}),
        ("Concat", ["lead", "views1", "three"], "kshape", {"axis": 0}),
        ("Expand", ["k", "kshape"], "intrinsics", {}),
    ]
    shapes = {"depth": "hw", "conf": "hw", "cam_from_world": [4, 4], "intrinsics": [3, 3]}
    outputs = [
        helper.make_tensor_value_info(name, kind.FLOAT, [1, "S", *(("H", "W") if shape == "hw" else shape)])
        for name, shape in shapes.items()
    ]
    graph = helper.make_graph(
        [helper.make_node(operator, given, [made], **more) for operator, given, made, more in nodes],
        "stand-in",
        [helper.make_tensor_value_info("images", kind.FLOAT, [1, "S", 3, "H", "W"])],
        outputs,
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


@pytest.fixture(scope="session")
def dist() -> Path:
    """The files of onnxruntime-web, as npm installs them."""
    folder = NPM / PACKAGE / "dist"
    if not folder.is_dir():
        pytest.skip(f"no {PACKAGE}: npm install --prefix {NPM.parent} {PACKAGE}@{VERSION}")
    return folder


@pytest.fixture(scope="session")
def site(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page with the stand-in."""
    folder = tmp_path_factory.mktemp("site")
    write_site(stand_in(), runtime_files(dist), folder)
    return folder


class Quiet(SimpleHTTPRequestHandler):
    """Files, without a word."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder, from a server that knows files only."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()


class Opened:
    """The page in the browser, and what went wrong on it."""

    def __init__(self, page: Any, address: str, script: str = "") -> None:
        self.page, self.problems, self.asked = page, [], []
        page.on("console", lambda said: self.problems.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))
        if script:
            page.add_init_script(script)
        page.goto(address)
        page.wait_for_selector("html[data-state=choosing]")

    def begin(self, *files: tuple[str, bytes]) -> None:
        """Choose files, each a name and its content."""
        self.page.set_input_files(
            "#files", [{"name": name, "mimeType": "", "buffer": bytes_} for name, bytes_ in files]
        )

    def choose(self, *files: tuple[str, bytes]) -> None:
        """Choose files, and wait until there is a result or a problem."""
        self.begin(*files)
        self.page.wait_for_selector("html[data-state=still], #problem:visible", timeout=120_000)

    @property
    def problem(self) -> str:
        """What the page says went wrong."""
        return self.page.text_content("#problem")

    def found(self, what: str) -> Any:
        """Numbers of the result."""
        return np.array(self.page.evaluate(f"Array.from(lean3r.found.{what})"))

    def saved(self, button: str) -> bytes:
        """The file that a button saves."""
        with self.page.expect_download() as download:
            self.page.click(button)
        return Path(download.value.path()).read_bytes()


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Opened]]:
    """Open an address in a window of its own, which is closed after the test."""
    contexts = []

    def start(address: str, script: str = "", **options: Any) -> Opened:
        contexts.append(
            browser.new_context(**({"viewport": SIZE, "reduced_motion": "reduce", "color_scheme": "dark"} | options))
        )
        return Opened(contexts[-1].new_page(), address, script)

    yield start
    for context in contexts:
        context.close()
