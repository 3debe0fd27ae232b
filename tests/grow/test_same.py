"""Other pictures under the names of a scene's own are found out before they are remembered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from export.scene import make_scene
from PIL import Image

import lean3r
from lean3r.errors import InputError
from lean3r.export import export
from lean3r.grow import run
from lean3r.grow.album import Album
from lean3r.grow.result import read_result
from lean3r.grow.same import are_alike, check_by_cloud
from lean3r.pipeline.observer import Observer


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A result with its pictures in photos/ beside it."""
    scene = make_scene(3, originals=[(384, 288)] * 3)
    (tmp_path / "photos").mkdir()
    for name, image in zip(scene.names, scene.images, strict=True):
        Image.fromarray(image).resize((384, 288)).save(tmp_path / "photos" / name, quality=95)
    info = {**scene.info, "config": {**scene.info["config"], "inputs": [str(tmp_path / "photos")]}}
    return export(replace(scene, info=info, registration=("refined",) * 3), tmp_path / "out", "npz,ply,cameras")


def others(folder: Path) -> Path:
    """The same names, each for the picture of another view."""
    paths = sorted(folder.iterdir())
    images = [Image.open(path).copy() for path in paths]
    for path, image in zip(paths, images[1:] + images[:1], strict=True):
        image.save(path)
    return folder


def compressed(folder: Path) -> Path:
    """The same pictures in half the size, badly compressed and a bit darker."""
    for path in folder.iterdir():
        Image.open(path).resize((192, 144)).point(lambda value: 0.9 * value).save(path, quality=40)
    return folder


def test_other_pictures_of_the_same_names_are_refused(out: Path) -> None:
    others(out.parent / "photos")
    new = out.parent / "new.png"
    Image.fromarray(make_scene(1).images[0]).save(new)
    before = sorted(path.name for path in out.iterdir())
    with pytest.raises(InputError, match=r"IMG_000\.jpg and 2 more of the scene's pictures are not found.*--stored"):
        lean3r.add(lean3r.load("nano"), out, new)
    assert sorted(path.name for path in out.iterdir()) == before


@pytest.mark.parametrize("change", [others, compressed])
def test_recalled_pictures_are_those_that_were_remembered(out: Path, change) -> None:
    """Also later, when only a few are looked at; the first time, copies of them serve as well."""
    adding = run._Adding(lean3r.load("nano"), read_result(out), Album(read_result(out), [], out), Observer())
    known = adding._remember()
    change(out.parent / "photos")
    if change is others:
        with pytest.raises(InputError, match=r"IMG_002\.jpg and 1 more"):
            adding._stored(known, [2, 0])
    else:
        assert [still.name for still in adding._stored(known, [2, 0])] == ["IMG_002.jpg", "IMG_000.jpg"]
        assert len(adding._remember().names) == 3


def test_without_a_cloud_of_its_own_nothing_is_known(out: Path) -> None:
    scene = read_result(out).scene
    images = np.roll(make_scene(3).images, 1, axis=0)
    with pytest.raises(InputError, match="other pictures"):
        check_by_cloud(scene, out, images)
    moved = replace(scene, cam_from_world=np.roll(scene.cam_from_world, 1, axis=0))
    check_by_cloud(moved, out, images)
    (out / "points.ply").write_text("ply of another program")
    check_by_cloud(scene, out, images)
    (out / "points.ply").unlink()
    check_by_cloud(scene, out, images)


def test_a_plain_wall_is_known_by_its_colour() -> None:
    noise = np.random.default_rng(0).normal(0, 1, (2, 200, 3))
    assert are_alike(*(128 + noise)) and not are_alike(128 + noise[0], 90 + noise[1])
    assert not are_alike(np.zeros((9, 3)), np.full((9, 3), 200))
