"""Where the pictures of a result are found again: in folders that got more, moved, or hold copies of another size."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export.scene import make_scene
from PIL import Image

from lean3r.errors import InputError
from lean3r.export import export
from lean3r.grow.album import Album
from lean3r.grow.masking import masks_of
from lean3r.grow.memory import print_of
from lean3r.grow.result import Result, read_result
from lean3r.grow.run import once
from lean3r.inputs.decoding import exif, open_image
from lean3r.inputs.listing import Still
from lean3r.inputs.masks import Masks

SIZE = (64, 48)


def picture(path: Path, value: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((SIZE[1], SIZE[0], 3), value, np.uint8)).save(path)
    return path


def value_of(still: Still) -> int:
    with still.open() as file, Image.open(file) as image:
        return int(np.asarray(image.convert("RGB"))[0, 0, 0])


@pytest.fixture
def result(tmp_path: Path) -> Result:
    """Views a.png and b.png from first/, c.png from second/, and a~2.png, which was added from more/ as a.png."""
    names = ("a.png", "b.png", "c.png", "a~2.png")
    scene = make_scene(4, originals=[SIZE] * 4)
    scene = replace(scene, sources=tuple(replace(s, name=n) for s, n in zip(scene.sources, names, strict=True)))
    for value, path in enumerate(("first/a.png", "first/b.png", "second/c.png", "more/a.png")):
        picture(tmp_path / path, 50 * value)
    inputs = [str(tmp_path / "first"), str(tmp_path / "second")]
    info = {**scene.info, "config": {**scene.info["config"], "inputs": inputs}}
    found = read_result(export(replace(scene, info=info), tmp_path / "out", "npz,ply,cameras"))
    added = [{"inputs": [str(tmp_path / "more")], "views": {"a~2.png": "a.png"}}]
    return replace(found, manifest={**found.manifest, "added": added})


def looked_up(result: Result, tmp_path: Path, *stored: str, remembers: bool = True) -> dict[str, int]:
    """What is found of all views."""
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    album = Album(result, [tmp_path / folder for folder in stored], scratch)
    if remembers:
        paths = {name: picture(tmp_path / "prints" / name, 50 * i) for i, name in enumerate(result.scene.names)}
        album.prints = {name: print_of(Still(name, lambda path=path: path.open("rb"))) for name, path in paths.items()}
    return {still.name: value_of(still) for still in album.stills(result.scene.names)}


RIGHT = {"a.png": 0, "b.png": 50, "c.png": 100, "a~2.png": 150}


@pytest.mark.parametrize("remembers", [False, True])
def test_a_folder_gets_a_picture_whose_name_another_folder_has(result: Result, tmp_path: Path, remembers: bool) -> None:
    """Then names are listed with their folders."""
    assert looked_up(result, tmp_path, remembers=remembers) == RIGHT
    picture(tmp_path / "second" / "b.png", 200)
    assert looked_up(result, tmp_path, remembers=remembers) == RIGHT


def test_pictures_that_were_added_are_found_where_they_moved_under_the_name_that_they_had(
    result: Result, tmp_path: Path
) -> None:
    moved = {name: f"{name}-moved" for name in ("first", "second", "more")}
    for before, now in moved.items():
        (tmp_path / before).rename(tmp_path / now)
    with pytest.raises(InputError, match="--stored"):
        looked_up(result, tmp_path)
    assert looked_up(result, tmp_path, *moved.values()) == RIGHT
    (tmp_path / "more-moved").rename(tmp_path / "more")
    assert looked_up(result, tmp_path, "first-moved", "second-moved") == RIGHT, "what stayed is found, too"
    with pytest.raises(InputError, match="nowhere"):
        looked_up(result, tmp_path, "nowhere")


def test_what_is_remembered_decides_between_pictures_of_one_name(result: Result, tmp_path: Path) -> None:
    """A folder of another addition is not that of the scene's own pictures."""
    assert looked_up(result, tmp_path, "more") == RIGHT


def test_masks_are_of_the_pictures_as_they_came(result: Result, tmp_path: Path) -> None:
    """Copies in images/ are turned, and masks of photos that EXIF turns are not."""
    for name in result.scene.names:
        picture(result.folder / "images" / name, 255)
    files = [*result.manifest["files"], *(f"images/{name}" for name in result.scene.names)]
    copied = replace(result, manifest={**result.manifest, "files": files})
    assert set(looked_up(copied, tmp_path, remembers=False).values()) == {255}
    masked = replace(copied, config={**copied.config, "masks": str(tmp_path / "masks")})
    assert looked_up(masked, tmp_path, remembers=False) == RIGHT
    shutil.rmtree(tmp_path / "first")
    shutil.rmtree(tmp_path / "second")
    assert looked_up(masked, tmp_path, remembers=False)["b.png"] == 255, "better than nothing"


def test_masks_are_found_from_any_folder_and_missed_aloud(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    picture(tmp_path / "masks" / "b.png.png", 255)
    monkeypatch.chdir(tmp_path)
    place = Masks.find(Path("masks"), ["b.png"]).place
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    masked = replace(result, config={**result.config, "masks": place})
    found = masks_of(masked, None, {})
    assert found is not None and [*found.files] == ["b.png"] and not caplog.text
    shutil.rmtree(tmp_path / "masks")
    assert masks_of(masked, None, {}) is None
    assert f"the folder of masks {place} is gone" in caplog.text


def test_copies_of_another_size_are_brought_to_that_of_the_scene(result: Result, tmp_path: Path) -> None:
    """With what their files say: here they are turned, and have a focal length."""
    notes: Any = Image.Exif()
    notes[0x0112] = 6
    notes.get_ifd(0x8769)[0xA405] = 31
    upright = np.zeros((24, 32, 3), np.uint8)
    upright[:, 16:] = 255
    Image.fromarray(upright).rotate(90, expand=True).save(tmp_path / "small.jpg", exif=notes)
    album = Album(result, [], tmp_path)
    small = Still("small.jpg", lambda: (tmp_path / "small.jpg").open("rb"))
    assert album.in_size(small, (32, 24)) is small
    still = album.in_size(small, SIZE)
    with still.open() as file, open_image(file) as image:
        assert image.size == SIZE and exif(image, "") == (1, 31.0)
        assert np.asarray(image)[:, 40:].min() > 200 > 50 > np.asarray(image)[:, :24].max()


def test_what_is_added_is_left_out_no_longer() -> None:
    before = [("a.png", "left out: 3 views at most"), ("b.png", "left out: 3 views at most"), ("a.png", "damaged")]
    assert once(before, [("c.png", "empty")], {"a.png"}) == (*before[1:], ("c.png", "empty"))
