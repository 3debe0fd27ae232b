"""`report` says all that a copy lacks, `open_set` refuses values that are no option of a set."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from data import tiny
from data.tiny import colmap

from lean3r.data.sets import roots
from lean3r.data.sets.colmap import ColmapFolder
from lean3r.data.sets.formats.files import read_npy
from lean3r.data.sets.roots import open_set, options_of, report
from lean3r.data.sets.scenes import Camera, FolderSet, Frame
from lean3r.errors import InputError, UsageError

# Frames are the pictures that are there: no other file of these sets names them.
PICTURES_ALONE = ("dtu64", "hypersim")


def frames_of(name: str, root: Path) -> Sequence[Frame]:
    """The first scene's frames, as the set's class lists them."""
    scenes = open_set(name, root, tiny.WRITERS[name].options)
    if not isinstance(scenes, FolderSet):
        pytest.skip("no folders")
    return scenes._frames_of(0)


@pytest.mark.parametrize("name", list(tiny.WRITERS))
@pytest.mark.parametrize("part", ["picture", "map"])
def test_a_file_that_is_gone_is_told(name: str, part: str, tmp_path: Path) -> None:
    tiny.write(name, tmp_path)
    options = tiny.WRITERS[name].options
    assert report(tmp_path, name, options).problems == []
    frame = frames_of(name, tmp_path)[1]
    if part == "picture" and name not in PICTURES_ALONE:
        frame.image.unlink()
    elif part == "map" and frame.depth is not None:
        # 7-Scenes: SimpleRecon's map is a substitute.
        Path(str(frame.depth).replace(".proj.png", ".png")).unlink()
    else:
        pytest.skip("has no such file, or none that others name")
    problems = report(tmp_path, name, options).problems
    assert problems and len(set(problems)) == len(problems) <= 2, problems


@pytest.mark.parametrize("kind", ["lowres_wide", "lowres_depth", "lowres_wide_intrinsics"])
def test_frames_of_arkitscenes_that_would_be_used_are_complete(kind: str, tmp_path: Path) -> None:
    """As in a raw video, the tiny copy has pictures without a pose, and these have no depth."""
    tiny.write("arkitscenes", tmp_path)
    video = tmp_path / "Training" / "41048191"
    for path in sorted((video / kind).iterdir())[1:5]:
        path.unlink()
    used = open_set("arkitscenes", tmp_path, {}).scene(1).views
    assert used < tiny.VIEWS
    (problem,) = report(tmp_path, "arkitscenes").problems
    assert problem.startswith(f"{tiny.VIEWS - used} frames of {video} have a pose, but lack"), problem
    (video / "lowres_wide" / "preview.png").write_bytes(b"")
    assert any("preview is not a file name of ARKitScenes" in what for what in report(tmp_path).problems)


class Plain(FolderSet[Frame]):
    """A set as in docs/how-to/add-a-data-set.md, which says nothing of its own about files that are missing."""

    name, title, licence, source, layout = "plain", "Plain", "none", "nowhere", "SCENE/images/, SCENE/depth/"
    parts = ("images", "depth")

    def frames(self, scene: str) -> Sequence[Frame]:
        places = (self.root / scene / "images" / f"{v}.png" for v in range(4))
        camera = Camera(np.diag([50.0, 50.0, 1.0]), np.eye(4), 8, 6)
        return [Frame(image, camera, image.parents[1] / "depth" / f"{image.stem}.npy") for image in places]

    def read_depth(self, frame: Frame) -> np.ndarray:
        assert frame.depth is not None
        return read_npy(frame.depth)


@pytest.mark.parametrize("part", ["images/2.png", "depth/1.npy"])
def test_files_missing_from_a_set_of_ones_own_are_told(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roots, "sets", lambda: {"plain": Plain})
    monkeypatch.setattr(roots, "open_set", lambda name, root, options: Plain(root, **options))
    for scene in ("a", "b"):
        for v in range(4):
            tiny.save_png(tmp_path / scene / "images" / f"{v}.png", np.zeros((6, 8, 3), np.uint8))
            (tmp_path / scene / "depth").mkdir(exist_ok=True)
            np.save(tmp_path / scene / "depth" / f"{v}.npy", np.ones((6, 8), np.float32))
    assert report(tmp_path).problems == []
    (tmp_path / "b" / part).unlink()
    found = report(tmp_path)
    assert found.problems == [f"1 of 4 views of {tmp_path / 'b'} lack their picture or map"] and found.views == 7
    shutil.rmtree(tmp_path / "b" / "depth")
    (tmp_path / "b" / "depth").mkdir()
    problems = report(tmp_path).problems
    assert any(f"none of 4 views has its files; missing: {tmp_path}" in what and ".npy" in what for what in problems)


def write_with_maps(root: Path) -> None:
    """The tiny COLMAP folders with a folder of maps: .npy, and the last as .png in 1/500 of a unit."""
    colmap.write(root, tiny.scenes())
    for number, scene in enumerate(tiny.scenes()):
        folder = root / f"scene_{number}" / "maps"
        tiny.save_png(folder / "005.png", np.rint(scene.depth[5] * 500).astype(np.uint16))
        for v in range(5):
            np.save(folder / f"{v:03}.npy", scene.depth[v])


def test_a_view_without_its_map_is_left_out_not_its_scene(tmp_path: Path) -> None:
    write_with_maps(tmp_path)
    options = {"depth": "maps", "units_per_metre": "500"}
    assert report(tmp_path, options=options).problems == []
    (tmp_path / "scene_1" / "maps" / "001.npy").unlink()
    (tmp_path / "scene_1" / "images" / "002.png").unlink()
    scenes = open_set("colmap", tmp_path, options)
    assert [scenes.view_name(1, v) for v in range(scenes.scene(1).views)] == ["000", "003", "004", "005"]
    np.testing.assert_allclose(scenes.view(1, 3).depth, tiny.scenes()[1].depth[5], atol=1.1e-3)
    problems = report(tmp_path, options=options).problems
    assert len(problems) == 2 and "1 of 6 pictures" in problems[0] and "1 of 5 views" in problems[1], problems
    for path in (tmp_path / "scene_1" / "maps").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"no picture of .*scene_1 has a depth map in .*maps; expected NAME\.npy or"):
        open_set("colmap", tmp_path, options).scene(1)
    assert report(tmp_path, options=options).scenes == 1


WRONG = {
    "colmap": {
        "units_per_metre": ("abc", "nan", "inf", "0", "-1000", ""),
        "is_metric": ("maybe", "1", "0", ""),
    },
    "arkitscenes": {"upright": ("0", "no")},
    "wildrgbd": {"foreground": ("yes", "2")},
    "co3dv2": {"min_quality": ("high", "nan"), "foreground": ("on",)},
    "dtu": {"light": ("3.5", "bright", "true")},
    "tanks": {"focal": ("wide", "inf")},
    "bonn": {"prepared": ("110",), "undistort": ("none",)},
}


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [(name, key, value) for name, own in WRONG.items() for key, values in own.items() for value in values],
)
def test_values_of_another_type_are_refused(name: str, key: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{key}.* is '?{re.escape(value)}.*; expected a|; expected true or false"):
        open_set(name, tmp_path, options_of([f"{key}={value}"]))


@pytest.mark.parametrize(
    ("name", "key", "expected"),
    [("colmap", "scenes", "depth or units_per_metre or is_metric"), ("dtu", "root", "light"), ("kitti", "x", "none")],
)
def test_unknown_options_are_refused(name: str, key: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{name} has no option {key}; expected {expected}"):
        open_set(name, tmp_path, {key: "scene_0"})


def test_options_are_given_as_texts_or_values(tmp_path: Path) -> None:
    write_with_maps(tmp_path)
    for scene in tmp_path.iterdir():
        (scene / "maps").rename(scene / "007")
    texts = options_of(["depth=007", "units_per_metre=5e2", "is_metric=True"])
    for options in (texts, {"depth": "007", "units_per_metre": 500, "is_metric": True}):
        scenes = open_set("colmap", tmp_path, options)
        assert isinstance(scenes, ColmapFolder) and scenes.scene(0).views == 6
        assert (scenes.depth, scenes.units_per_metre, scenes.is_metric) == ("007", 500.0, True)
    assert open_set("colmap", tmp_path, {"is_metric": "false"}).is_metric is False
    with pytest.raises(UsageError, match="finite number above 0"):
        ColmapFolder(tmp_path, units_per_metre=-1.0)


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("images.txt", lambda words: [words[0], "1", "0", "0", "0", *words[5:]], "do not lie where the pictures saw"),
        ("images.txt", lambda words: [*words[:7], "50.0", *words[8:]], "do not lie where the pictures saw"),
        ("cameras.txt", lambda words: [*words[:2], *(str(2 * int(w)) for w in words[2:4]), *words[4:]], "another size"),
    ],
)
def test_colmap_models_that_contradict_themselves_are_told(
    file: str, change: Callable[[list[str]], list[str]], said: str, tmp_path: Path
) -> None:
    tiny.write("colmap", tmp_path)
    path = tmp_path / "scene_0" / "sparse" / "0" / file
    first, *lines = path.read_text().splitlines()
    path.write_text("\n".join([" ".join(change(first.split())), *lines]) + "\n")
    (problem,) = report(tmp_path, "colmap", {}).problems
    assert said in problem and "scene_0" in problem
    assert problem in ColmapFolder(tmp_path).gaps(0) and not ColmapFolder(tmp_path).gaps(1), "scores name it, too"


def test_depth_of_another_unit_or_without_any_is_told(tmp_path: Path) -> None:
    made = tiny.write("colmap", tmp_path)
    for number, scene in enumerate(made):
        for view, depth in enumerate(scene.depth):
            place = tmp_path / f"scene_{number}" / "depth" / f"{view:03}.npy"
            place.parent.mkdir(exist_ok=True)
            np.save(place, depth)
    assert report(tmp_path, "colmap", {"depth": "depth"}).problems == []
    for path in tmp_path.glob("scene_0/depth/*.npy"):
        np.save(path, np.load(path) / 1000)
    for path in tmp_path.glob("scene_1/depth/*.npy"):
        np.save(path, np.zeros_like(np.load(path)))
    problems = report(tmp_path, "colmap", {"depth": "depth"}).problems
    assert "scene_0" in problems[0] and "0.001 times" in problems[0] and "unit" in problems[0]
    assert problems[-1] == f"{tmp_path}/scene_1 has no depth at any pixel of its first and last view"
