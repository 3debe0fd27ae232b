"""Stereo as a step of a run: limits on memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stereo.rendered import scene, truth

from lean3r.pipeline.budget import Budget
from lean3r.pipeline.densifying import bytes_of_stereo, densify_scene
from lean3r.pipeline.memory import parse_memory, used_bytes
from lean3r.pipeline.observer import Observer
from lean3r.processes import memory_status_mb

CPU = torch.device("cpu")
PEAK = """
import json, pathlib, sys, lean3r
from lean3r.pipeline import reconstruct
from lean3r.pipeline.densifying import bytes_of_stereo, densify_scene
from lean3r.processes import memory_status_mb

def measured(scene, *more):
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = memory_status_mb("VmRSS")
    found = densify_scene(scene, *more)
    reckoned = bytes_of_stereo(scene.depth[0].size, len(scene.depth)) / 1e6
    print(json.dumps([reckoned, memory_status_mb("VmHWM") - before, scene.depth.shape]))
    return found

reconstruct.densify_scene = measured
lean3r.reconstruct(lean3r.load("nano", device="cpu"), sys.argv[1], memory="8GB", refine="off",
    dense=lean3r.StereoOptions(dense="stereo", depth_size=int(sys.argv[2])))
"""


def test_stereo_that_does_not_fit_into_memory_is_left_out_with_a_warning() -> None:
    before = scene(truth(3, 3, 60, 80))
    needed = used_bytes(CPU) + bytes_of_stereo(60 * 80, 3)
    kept = densify_scene(before, Observer(), CPU, budget=Budget(needed - (1 << 24)))
    assert kept.info["stereo"]["status"] == "kept" and "of memory" in kept.info["stereo"]["reason"]
    assert [warning["code"] for warning in kept.info["warnings"]] == ["stereo-kept"]
    np.testing.assert_array_equal(kept.depth, before.depth)
    advised = parse_memory(kept.info["stereo"]["reason"].split("--memory ")[1].split()[0])
    measured = densify_scene(before, Observer(), CPU, budget=Budget(advised))
    assert measured.info["stereo"]["status"] == "measured"


@pytest.mark.slow
@pytest.mark.skipif(memory_status_mb("VmHWM") is None, reason="the system does not tell peak memory")
@pytest.mark.parametrize("size", [240, 320])
def test_memory_of_stereo_is_what_is_reckoned(tmp_path: Path, size: int) -> None:
    for view, image in enumerate(truth(1, 8, 480, 640).images[0].permute(0, 2, 3, 1)):
        Image.fromarray((image * 255).round().byte().numpy()).save(tmp_path / f"{view}.png")
    program = [sys.executable, "-c", PEAK, str(tmp_path), str(size)]
    told = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    reckoned, needed, (views, height, width) = json.loads(told.splitlines()[-1])
    assert views == 8 and abs((height * width) ** 0.5 - size) < 8
    assert 0.5 * reckoned < needed < reckoned
