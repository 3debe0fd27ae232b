"""GLB files in other people's programs: the colours of the pictures in a browser, no fault for Khronos' validator."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from export.browser import find_chromium, render
from export.gltf import read_glb, shown_rgb
from export.scene import make_scene
from lean3r.export import EXPORTERS, ExportOptions
from lean3r.types import Reconstruction

VALIDATE = """
require("gltf-validator").validateBytes(new Uint8Array(require("fs").readFileSync(process.argv[1])))
  .then(report => console.log(JSON.stringify(report.issues)));
"""


@pytest.fixture
def modules(request: pytest.FixtureRequest) -> Path:
    """Folder of npm's packages."""
    return (request.config.rootpath / request.config.getoption("--node-modules")).resolve()


def write_scene(scene: Reconstruction, directory: Path) -> dict[str, Path]:
    """scene.glb and mesh.glb, without and with a texture, by the node that shows the pictures' colours."""
    for name in ("glb", "mesh"):
        EXPORTERS.get(name)(scene, directory, ExportOptions())
    (directory / "mesh.glb").rename(directory / "plain.glb")
    EXPORTERS.get("mesh")(scene, directory, ExportOptions(texture=True))
    return {"points": directory / "scene.glb", "mesh": directory / "plain.glb", "texture": directory / "mesh.glb"}


@pytest.mark.parametrize("show", ["points", "mesh", "texture"])
def test_colours_in_a_browser_are_those_of_the_pictures(tmp_path, modules, show):
    if find_chromium() is None:
        pytest.skip("no Chromium: apt-get install chromium")
    if not (modules / "three").is_dir():
        pytest.skip(f"no three.js in {modules}: npm install three")
    scene = make_scene(4, height=144, width=192)
    glb = write_scene(scene, tmp_path)[show]
    size = scene.images.shape[2], scene.images.shape[1]
    node = "mesh" if show == "texture" else show
    drawn = render(glb, modules / "three", scene.cam_from_world[1], scene.intrinsics[1], size, [node])
    seen = drawn[..., 3] == 255
    assert seen.mean() > 0.4  # the cloud is thinned, the mesh has a rim
    rgb, truth = drawn[seen][:, :3].astype(int), scene.images[1][seen].astype(int)
    assert np.abs(rgb.mean(axis=0) - truth.mean(axis=0)).max() < 2
    assert np.median(np.abs(rgb - truth)) <= 6
    if show == "points":  # each pixel is a point's own colour: no light, no fog
        colours = shown_rgb(*read_glb(glb), show).astype(int)
        nearest = np.array([np.abs(colours - pixel).max(axis=1).min() for pixel in np.unique(rgb, axis=0)[::10]])
        assert nearest.max() <= 1


def test_validator_finds_no_fault(tmp_path, modules):
    if shutil.which("node") is None or not (modules / "gltf-validator").is_dir():
        pytest.skip(f"no gltf-validator in {modules}: npm install gltf-validator")
    for path in write_scene(make_scene(4), tmp_path).values():
        command = ["node", "-e", VALIDATE, str(path)]
        issues = json.loads(subprocess.check_output(command, cwd=modules.parent, timeout=120))
        assert issues["numErrors"] == issues["numWarnings"] == 0, issues["messages"]
