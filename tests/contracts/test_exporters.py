"""Every exporter writes every kind of scene, says what it wrote, and others can read it back."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pycolmap
import pytest
import trimesh
from export.scene import make_scene
from PIL import Image

from lean3r.export import (
    DEFAULT_FORMATS,
    EXPORTERS,
    ExportOptions,
    Format,
    atomic_folder,
    export,
    parse_formats,
    preview,
)
from lean3r.geometry.fusion import fuse
from lean3r.registry import Registry
from lean3r.types import PointCloud

NO_POINTS = PointCloud(
    np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8), np.zeros(0, np.float32), np.zeros(0, np.int32),
    np.zeros((0, 2), np.float32), np.zeros((0, 3), np.float32),
)  # fmt: skip
ODD_NAMES = ["ä ö.jpg", "", "two\nlines.png", "same.jpg", "sub/same.jpg", "..", "x" * 255, "\udcff.jpg", "日本.heic"]


@pytest.fixture(autouse=True)
def coarse_preview(monkeypatch):
    """One sample a pixel: what is tested here is not the beauty of the picture."""
    monkeypatch.setattr(preview, "SAMPLES", 1)


def empty():
    scene = make_scene(2, height=24, width=32)
    return replace(scene, depth=np.zeros_like(scene.depth), points=NO_POINTS)


def unknown_and_outliers():
    scene = make_scene(3, height=48, width=64)
    depth = scene.depth.copy()
    depth[0, :8], depth[1, :8], depth[2, 20:24] = np.nan, 1e4, np.inf
    fields = ("images", "conf", "mask", "cam_from_world", "intrinsics")
    return replace(scene, depth=depth, points=fuse(depth=depth, **{f: getattr(scene, f) for f in fields}))


SCENES = {
    "landscape": lambda: make_scene(3, height=48, width=64),
    "portrait": lambda: make_scene(3, height=85, width=48),
    "mixed sizes": lambda: make_scene(3, height=64, width=64, originals=[(640, 480), (480, 641), (500, 500)]),
    "one view": lambda: make_scene(1, height=37, width=53),
    "no points": empty,
    "odd names": lambda: make_scene(len(ODD_NAMES), height=24, width=32, names=ODD_NAMES),
    "unknown depth and outliers": unknown_and_outliers,
}


def numbers(path):
    with np.load(path) as arrays:
        return sum(arrays[name].size for name in arrays)


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture).size


READERS = {
    ".json": lambda path: len(json.loads(path.read_text(encoding="utf-8"))),
    ".npz": numbers,
    ".png": pixels,
    ".jpg": pixels,
    ".glb": lambda path: len(trimesh.load(path).geometry),
    ".bin": lambda path: pycolmap.Reconstruction(path.parent).num_images(),
}
"""Suffix -> how many things a program that is not ours finds in the file; of other suffixes bytes are counted."""


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("name", list(EXPORTERS))
def test_writes_what_others_read(tmp_path, name, scene):
    files = EXPORTERS.get(name)(SCENES[scene](), tmp_path, ExportOptions())
    assert files and all(READERS.get(path.suffix, lambda path: path.stat().st_size)(path) for path in files)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(files)
    declared = [tmp_path / place for place in EXPORTERS[name].files.split(", ")]
    assert all(any(path.is_relative_to(place) for place in declared) for path in files)


def test_a_format_is_written_by_default_only_if_its_row_says_so() -> None:
    assert set(parse_formats(DEFAULT_FORMATS)) == {name for name in EXPORTERS if EXPORTERS[name].default}
    added = Registry("format", {"xyz": Format("lean3r.export.xyz:write", "points.xyz", "a line a point")})
    assert not added["xyz"].default


@pytest.mark.parametrize("scene", SCENES)
def test_all_formats_together(tmp_path, scene):
    out = export(SCENES[scene](), tmp_path / "out é", "all")
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert set(manifest["files"]) == {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert [path.name for path in tmp_path.iterdir()] == ["out é"]


@pytest.mark.parametrize("name", list(EXPORTERS))
def test_an_interrupt_in_the_middle_leaves_nothing(tmp_path, name):
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "out") as folder:
        EXPORTERS.get(name)(SCENES["one view"](), folder, ExportOptions())
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_names_come_back_as_they_were(tmp_path):
    out = export(SCENES["odd names"](), tmp_path / "out", "cameras,npz")
    cameras = json.loads((out / "cameras.json").read_text(encoding="utf-8"))
    assert [view["name"] for view in cameras["views"]] == ODD_NAMES
    with np.load(out / "predictions.npz") as arrays:
        assert arrays["names"].tolist() == ODD_NAMES
