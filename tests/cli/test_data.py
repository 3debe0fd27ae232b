"""`lean3r data`: sound copies are drawn, everything that is wrong with one is said, and packing keeps what is there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data import tiny
from PIL import Image

from lean3r.cli.data_picture import reproject
from lean3r.cli.main import main
from lean3r.data import DATASETS
from lean3r.data.sets.blendedmvs import BlendedMVS
from lean3r.data.sets.formats.files import write_pfm


@pytest.fixture(scope="module")
def blended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound copy."""
    root = tmp_path_factory.mktemp("blendedmvs")
    tiny.write("blendedmvs", root)
    return root


def test_list_names_every_set_and_where_it_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in rows} == set(DATASETS) - {"synthetic"}
    assert all(row["licence"] and row["source"] and row["layout"] for row in rows)
    assert main(["data", "list"]) == 0
    shown = capsys.readouterr().out
    assert all(row["name"] in shown for row in rows)


def test_an_intact_copy_is_recognised_and_drawn(
    blended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "check", str(blended)]) == 0
    shown = capsys.readouterr()
    assert shown.out.strip() == "blendedmvs-sample.png" and "12 views" in shown.err and "CC BY 4.0" in shown.err
    assert Image.open("blendedmvs-sample.png").width > 3 * tiny.WIDTH
    assert main(["data", "check", str(blended), "-q"]) == 0, "a sample is written over"
    Image.new("RGB", (9, 9)).save("mine.png")
    mine = Path("mine.png").read_bytes()
    for name, says in (("mine.png", "was not written by data check"), ("sample.jpg", "not a .png")):
        assert main(["data", "check", str(blended), "-o", name]) == 2 and says in capsys.readouterr().err
    assert Path("mine.png").read_bytes() == mine and not Path("sample.jpg").exists()
    assert main(["data", "check", str(blended), "--json", "-o", "a/b.png", "--scene", "1", "--views", "0", "5"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["set"], found["scenes"], found["views"], found["problems"]) == ("blendedmvs", 2, 12, [])
    assert Path(found["picture"]).is_file()
    for wrong in (["--scene", "2"], ["--views", "0", "6"], ["--set", "synthetic"], ["--options", "light"]):
        assert main(["data", "check", str(blended), *wrong]) == 2
    assert (
        main(["data", "check", str(blended), "--options", "light=3"]) == 2 and main(["data", "pack", str(blended)]) == 2
    )
    assert main(["data", "check"]) == 2 and main(["data", "list", str(blended)]) == 2


def test_a_reprojection_lands_where_the_other_view_looks(blended: Path) -> None:
    scenes = BlendedMVS(blended)
    one, other = scenes.view(0, 0), scenes.view(0, 1)
    seen = reproject(one, other)
    known = seen.any(-1)
    right = np.abs(seen[known].astype(int) - other.image[known]).mean()
    wrong = np.abs(seen[known].astype(int) - one.image[known]).mean()
    assert known.mean() > 0.2 and right < 0.8 * wrong


Break = Callable[[Path], Path | None]


def only_some(root: Path) -> None:
    scene = sorted(root.iterdir())[0]
    shutil.rmtree(scene / "rendered_depth_maps")


def a_map_less(root: Path) -> None:
    (sorted(root.iterdir())[1] / "rendered_depth_maps" / "00000002.pfm").unlink()


def cut_off(root: Path) -> None:
    picture = sorted(root.iterdir())[0] / "blended_images" / "00000000.jpg"
    picture.write_bytes(picture.read_bytes()[:500])


def scaled_pose(root: Path) -> None:
    file = sorted(root.iterdir())[0] / "cams" / "00000003_cam.txt"
    lines = file.read_text().splitlines()
    lines[1:4] = [" ".join(str(2 * float(x)) for x in line.split()) for line in lines[1:4]]
    file.write_text("\n".join(lines))


def nan_depth(root: Path) -> None:
    file = sorted(root.iterdir())[0] / "rendered_depth_maps" / "00000000.pfm"
    depth = np.ones((tiny.HEIGHT, tiny.WIDTH), np.float32)
    depth[0, :7] = np.nan
    write_pfm(file, depth)


def emptied(root: Path) -> Path:
    (root / "none").mkdir()
    return root / "none"


def one_level_down(root: Path) -> Path:
    return sorted(root.iterdir())[0]


def pictures_alone(root: Path) -> Path:
    folder = root / "photos"
    folder.mkdir()
    for i in range(3):
        tiny.save_jpeg(folder / f"{i}.jpg", tiny.scenes()[0].images[i])
    return folder


def nowhere(root: Path) -> Path:
    return root / "nowhere"


def single_views(root: Path) -> Path:
    """One image: a COLMAP model with a single posed picture."""
    tiny.write("colmap", root / "colmap")
    scene = root / "colmap" / "scene_0"
    images = scene / "sparse" / "0" / "images.txt"
    images.write_text(images.read_text().splitlines()[0] + "\n\n")
    (scene / "sparse" / "0" / "points3D.txt").write_text("")
    shutil.rmtree(root / "colmap" / "scene_1")
    return root / "colmap"


BROKEN: dict[str, tuple[Break, list[str], str]] = {
    "a part is missing": (only_some, [], "rendered_depth_maps is missing"),
    "a file is missing": (a_map_less, [], "1 of 6 views are missing"),
    "a file is cut off": (cut_off, [], "is damaged"),
    "no rotation": (scaled_pose, [], "not a rotation"),
    "nan": (nan_depth, [], "not finite at 7 pixels"),
    "empty": (emptied, [], "is empty"),
    "another set was named": (lambda root: None, ["--set", "dtu"], "does not look like DTU, but like BlendedMVS"),
    "a folder too deep": (one_level_down, [], "looks like BlendedMVS: give this folder instead"),
    "pictures alone": (pictures_alone, ["--set", "colmap"], "pictures without cameras"),
    "absent": (nowhere, [], "no such folder"),
    "one image": (single_views, [], "only one view"),
}


@pytest.mark.parametrize("case", list(BROKEN))
def test_defects_are_reported(case: str, blended: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, arguments, message = BROKEN[case]
    root = tmp_path / "copy"
    shutil.copytree(blended, root)
    root = change(root) or root
    assert main(["data", "check", str(root), *arguments, "-o", str(tmp_path / "sample.png")]) == 3
    shown = capsys.readouterr().err
    assert message in shown and "unexpected" not in shown, shown


def test_a_packed_set_can_be_checked(blended: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "shards"
    assert main(["data", "pack", str(blended), "-o", str(out), "-q"]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert main(["data", "check", str(out), "--json", "-o", str(tmp_path / "s.png")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["set"], found["scenes"], found["views"]) == ("shards", 2, 12)
    assert main(["data", "pack", str(blended), "-o", str(out)]) == 2, "an earlier result stays"
