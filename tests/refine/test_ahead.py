"""Photos that are searched while torch and the network are loaded: the same features, found earlier."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lean3r.inputs.pictures import Pictures
from lean3r.refine import KnownCameras, RefineOptions, features, photo_searcher, run, worker
from lean3r.refine.ahead import ahead_of_photos
from lean3r.refine.job import Answer, Job

sys.path.insert(0, str(Path(__file__).parent))
import scenes

OPTIONS = RefineOptions(features=500, side=300)
POSES = scenes.arc(4)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of them: JPEG among PNG, one lying on its side, and a file that is no picture."""
    folder = tmp_path / "photos"
    folder.mkdir()
    scenes.write(POSES, folder)
    (folder / "notes.txt").write_text("of the walk")
    first, second = sorted(folder.glob("*.png"))[:2]
    Image.open(first).convert("RGB").save(first.with_suffix(".jpg"), quality=95)
    first.unlink()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(second).transpose(Image.Transpose.ROTATE_90).save(second, exif=exif)
    return folder


def prepared(photos: Path, folder: Path, kept: Path | None) -> Job:
    folder.mkdir()
    scene = scenes.scene(POSES)
    pictures = Pictures(photos)
    pictures.kept = kept
    sources = tuple(replace(source, name=name) for name, source in zip(pictures.names, scene.sources, strict=True))
    return run.prepare(replace(scene, sources=sources), pictures, OPTIONS, KnownCameras(), None, folder)


def test_photos_searched_ahead_need_no_other_search_and_give_the_same_cameras(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert searched([str(photos)], tmp_path / "search", None) == 2 * len(POSES)
    found: list[int] = []
    extract = features.pycolmap.extract_features

    def counting(database: Path, *arguments: Any, **options: Any) -> None:
        with features.pycolmap.Database.open(database) as opened:
            found.append(sum(opened.num_keypoints_for_image(image.image_id) > 0 for image in opened.read_all_images()))
        extract(database, *arguments, **options)

    monkeypatch.setattr(features.pycolmap, "extract_features", counting)
    answers = []
    for name, folder in (("ahead", tmp_path / "search" / "kept"), ("plain", None)):
        worker.solve(prepared(photos, tmp_path / name, folder), tmp_path / name)
        answers.append(Answer.read(tmp_path / name))
    ahead, plain = answers
    assert ahead is not None and plain is not None
    half = len(found) // 2
    assert set(found[:half]) == {len(POSES)} and set(found[half:]) == {0}
    for name in ("cam_from_world", "xyz", "point", "view", "xy", "error_px"):
        np.testing.assert_array_equal(getattr(ahead, name), getattr(plain, name))


def test_only_photos_in_use_are_searched_and_folders_of_films_are_not(photos: Path, tmp_path: Path) -> None:
    assert searched([str(photos)], tmp_path / "three", 3) == 2 * 3, "coarse and fine features of each"
    Image.new("L", (32, 32)).save(photos / "film.gif", save_all=True, append_images=[Image.new("L", (32, 32), 99)])
    assert searched([str(photos / "film.gif"), str(photos)], tmp_path / "film", None) == 0


def searched(inputs: list[str], folder: Path, max_views: int | None) -> int:
    """The number of pictures and octaves whose features are kept."""
    kept, work = folder / "kept", folder / "work"
    kept.mkdir(parents=True)
    work.mkdir()
    photo_searcher.search(work, kept, inputs, max_views, OPTIONS.side, OPTIONS.features)
    return len(list(kept.glob("*.npz")))


def test_the_search_stops_when_it_is_told_and_leaves_nothing(photos: Path) -> None:
    with ahead_of_photos([str(photos)], 3, OPTIONS) as ahead:
        process, kept = ahead.process, ahead.kept
        assert process is not None and process.poll() is None and kept is not None
        ahead.end()
        assert process.poll() is not None and ahead.process is None and kept.is_dir()
    assert not kept.exists()


def test_what_is_not_there_and_a_full_disk_are_left_to_the_run(tmp_path: Path) -> None:
    with ahead_of_photos([str(tmp_path / "nothing")], None, OPTIONS) as ahead:
        assert ahead.process is not None and ahead.process.wait(240) != 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lean3r.refine.ahead.temporary_folder", _full)
        with ahead_of_photos(["photos"], None, OPTIONS) as ahead:
            assert ahead.process is None and ahead.kept is None


def _full(purpose: str) -> None:
    raise OSError(28, "No space left on device")


def test_the_search_needs_no_torch() -> None:
    code = "import sys, lean3r.refine.photo_searcher, lean3r.refine.ahead; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
