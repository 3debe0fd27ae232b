"""pycolmap and the other libraries in one process: its zlib and the system's do not get mixed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lean3r.colmap_library import pycolmap

SAVE = """
import io, zlib
from PIL import Image
file = io.BytesIO()
Image.linear_gradient("L").save(file, "PNG")
assert zlib.decompress(zlib.compress(bytes(10_000))) == bytes(10_000)
print("saved", len(file.getvalue()) > 0)
"""

NPZ = """
import numpy, torch
numpy.savez_compressed(io.BytesIO(), a=torch.arange(11.0).numpy())
print(torch.nn.functional.conv1d(torch.ones(1, 1, 55), torch.ones(1, 1, 55)).item())
"""


def fresh(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


def test_pictures_are_saved_after_a_model_was_read(tmp_path: Path) -> None:
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(
        pycolmap.Camera(camera_id=1, model="PINHOLE", width=60, height=40, params=[50, 50, 30, 20])
    )
    image = pycolmap.Image(name="a.jpg", keypoints=np.zeros((0, 2)), camera_id=1, image_id=1)
    model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(np.eye(4)[:3]))
    model.write(tmp_path)
    done = fresh(f"from lean3r.inputs.cameras import read_given\nassert read_given({str(tmp_path)!r}).cameras\n{SAVE}")
    assert done.stdout == "saved True\n", done.stderr


@pytest.mark.parametrize("first", ["import lean3r, pycolmap", "import lean3r.colmap_library"])
def test_pictures_are_saved_when_lean3r_is_imported_first(first: str) -> None:
    assert fresh(f"{first}\n{SAVE}").stdout == "saved True\n"


@pytest.mark.parametrize("after", ["", "import zlib", "from PIL import Image", "import torch"])
def test_pycolmap_may_come_first(after: str) -> None:
    """Its zlib is bound into the system's; whoever is loaded after it, pictures, npz and torch work."""
    done = fresh(f"import pycolmap\n{after}\nimport lean3r\n{SAVE}\n{NPZ}")
    assert done.stdout == "saved True\n55.0\n", done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep the libraries of packages apart")
def test_an_intact_zlib_is_left_alone() -> None:
    done = fresh("import zlib, pycolmap\nfrom lean3r.inputs.zlib_repair import repair\nprint(repair())")
    assert done.stdout == "0\n", done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_signals_are_answered_as_before() -> None:
    """Whoever answers them, and in whatever thread the library is loaded."""
    done = fresh(
        """
import os, signal, threading
signal.signal(signal.SIGTERM, lambda *_: (print("ours", flush=True), os._exit(0)))
thread = threading.Thread(target=__import__, args=("lean3r.colmap_library",))
thread.start()
thread.join()
os.kill(os.getpid(), signal.SIGTERM)
signal.pause()
"""
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ours\n", "")
