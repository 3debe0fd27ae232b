"""Options, shared folders, and a hostile memory allocator for all tests."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_numbers import folder_option, golden_folder
from quick_triton import make_quick

SOFTWARE = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--data", default="../shared/data", help="folder of photographs, scenes and bad inputs")
    parser.addoption("--golden", help="folder of golden numbers (../shared/golden, or those that are shipped)")
    npm = Path.home() / ".cache" / "lean3r-tests" / "node_modules"
    parser.addoption("--node-modules", default=str(npm), help="folder of npm's three and gltf-validator")
    parser.addoption("--peer", action="append", default=[], help="NAME=PATH of a clone of official code (tests/parity)")


def pytest_configure(config: pytest.Config) -> None:
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported: kernels then run on the CPU
        make_quick()
    torch.set_num_threads(1)  # the tests run in two processes
    # Fresh memory holds NaN, so that reading what was never written shows.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    gc.disable()  # collecting makes objects by the million, nearly all of which stay


def pytest_collection_finish() -> None:
    gc.enable()
    gc.freeze()  # what stays is not looked at again


@pytest.fixture(scope="session")
def data_dir(request: pytest.FixtureRequest) -> Path:
    """Folder of shared data; skips where it is absent."""
    folder = folder_option(request.config, "--data")
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}: name the folder with --data DIR")
    return folder


@pytest.fixture(scope="session")
def golden_dir(request: pytest.FixtureRequest) -> Path:
    """Folder of golden numbers (`golden_folder`)."""
    return golden_folder(request.config)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the weights of an untrained nano: most tests do not care how good they are."""
    import torch

    from lean3r.models import MODELS
    from lean3r.models.checkpoint import save_weights

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS.get("nano")()
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    save_weights(model.state_dict(), path, {"model": "nano"})
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, without a screen, drawing in software.

    For one module at a time: Playwright keeps an event loop running in the process, under which neither a second
    Playwright nor `asyncio.run` of another test could start.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=program, args=SOFTWARE)
        yield chromium
        chromium.close()
