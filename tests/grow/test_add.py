"""Pictures added to a result: the old cameras stay, the new ones are right, and no result is ever lost."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch
from inputs.reading import video
from PIL import Image

import lean3r
from lean3r.cli.main import main
from lean3r.errors import UsageError
from lean3r.export import ExportOptions
from lean3r.geometry.align import align_cameras
from lean3r.grow import place, run
from lean3r.grow.masking import masks_of
from lean3r.grow.memory import FILE, print_of
from lean3r.grow.recall import cover
from lean3r.grow.result import read_result
from lean3r.inputs.cameras import read_given
from lean3r.inputs.frames import FrameChoice
from lean3r.inputs.masks import Masks
from lean3r.inputs.pictures import Pictures
from lean3r.options import as_record
from lean3r.pipeline import enlarging

sys.path.insert(0, str(Path(__file__).parents[1] / "refine"))
import scenes

POSES = scenes.arc(8, 0.5)
STORED, NEW, LATER = (0, 1, 3, 4, 6, 7), (2,), (5,)
QUICK = ["--resolution", "120", "--dense", "network"]
FORMATS = ["-f", "cameras,npz,ply,colmap,depth"]


def photo(view: int, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scenes.photograph(POSES[view])[0]).save(path)
    return path


@pytest.fixture(scope="module")
def model() -> object:
    return lean3r.load("nano")


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos/ and a refined result of them, out/."""
    folder = tmp_path_factory.mktemp("album")
    for number, view in enumerate(STORED):
        photo(view, folder / "photos" / f"{number}.png")
    assert main(["reconstruct", str(folder / "photos"), "-o", str(folder / "out"), "-q", *QUICK, *FORMATS]) == 0
    assert set(read_result(folder / "out").scene.registration) == {"refined"}
    return folder


@pytest.fixture
def out(album: Path, tmp_path: Path) -> Path:
    """A copy of the result."""
    return Path(shutil.copytree(album / "out", tmp_path / "out"))


def add(out: Path, *arguments: str | Path) -> int:
    return main(["add", str(out), *map(str, arguments), "-q"])


def files_of(folder: Path) -> dict[str, str]:
    """The content of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def assert_old_ones_stay(before: Path, after: Path) -> None:
    """Every number about the old cameras, in every file, and all triangulated points."""
    views = [json.loads((folder / "cameras.json").read_text())["views"] for folder in (before, after)]
    assert views[1][: len(views[0])] == views[0]
    old, new = (np.load(folder / "predictions.npz") for folder in (before, after))
    count, (height, width) = len(old["names"]), old["depth"].shape[1:]
    for key in old.files:
        if key != "scale":
            kept = new[key][:count]
            kept = kept[:, :height, :width] if key in ("depth", "conf", "mask") else kept
            if key == "lens_params":  # filled with NaN where other lenses have more parameters
                kept, rest = np.split(kept, [old[key].shape[1]], axis=1)
                assert np.isnan(rest).all()
            assert kept.dtype.kind == old[key].dtype.kind and (kept == old[key]).all(), key
    points = [read_result(folder).scene.sparse for folder in (before, after)]
    assert points[0] is not None and points[1] is not None
    assert (points[1].xyz[: len(points[0].xyz)] == points[0].xyz).all() and len(points[0].xyz) > 50
    theirs = points[1].view < count
    rows = np.column_stack([points[1].point, points[1].view, points[1].xy])[theirs]
    wanted = np.column_stack([points[0].point, points[0].view, points[0].xy])
    assert set(map(tuple, wanted)) <= set(map(tuple, rows))
    cameras = [pycolmap.Reconstruction(folder / "sparse" / "0") for folder in (before, after)]
    images = [{image.name: image for image in each.images.values()} for each in cameras]
    for name, image in images[0].items():
        assert (image.cam_from_world().matrix() == images[1][name].cam_from_world().matrix()).all()


def wrong_by(out: Path, views: dict[str, int]) -> float:
    """Largest error of cameras, in degrees or in per cent of a world unit, after a similarity by the stored ones."""
    scene = read_result(out).scene
    truth = {f"{number}.png": view for number, view in enumerate(STORED)} | views
    own = torch.from_numpy(np.stack([scene.cam_from_world[scene.names.index(name)] for name in truth]))
    true = torch.from_numpy(np.stack([POSES[view] for view in truth.values()]))
    _, fit = align_cameras(own[: len(STORED)], true[: len(STORED)])
    moved = fit.apply_to_poses(own).numpy()
    turn = np.einsum("sij,skj->sik", moved[:, :3, :3], true.numpy()[:, :3, :3])
    angle = np.degrees(np.arccos(((np.trace(turn, axis1=1, axis2=2) - 1) / 2).clip(-1, 1)))
    away = np.linalg.norm(moved[:, :3, 3] - true.numpy()[:, :3, 3], axis=1)
    return float(max(angle.max(), 100 * away.max()))


def test_new_cameras_join_the_old_ones_which_stay(
    album: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A name that is taken, and a picture that is there already under another one, in an archive.
    photo(NEW[0], tmp_path / "more" / "0.png")
    shutil.copy(album / "photos" / "3.png", tmp_path / "more" / "copy.png")
    archive = shutil.make_archive(str(tmp_path / "more"), "zip", tmp_path / "more")
    (out / "mine.txt").write_text("not of the result")
    assert main(["add", str(out), archive, "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["added"] == ["0~2.png"] and done["uncertain"] == [] and done["views"] == 7
    assert done["skipped"] == [{"name": "copy.png", "reason": "it is already in the scene, as 3.png"}]
    assert_old_ones_stay(album / "out", out)
    assert wrong_by(out, {"0~2.png": NEW[0]}) < 3.0
    assert (out / "mine.txt").exists()
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["added"][0]["views"] == {"0~2.png": "0.png"} and 3 <= len(done["recalled"]) <= 4
    assert set(files_of(out)) == {*manifest["files"], "mine.txt"}
    assert tomllib.loads((out / "config.toml").read_text())["inputs"] == [str(album / "photos")]

    # Again: nothing of the scene is looked at but what is recalled, and that may be a picture of the first time.
    monkeypatch.setattr(run.remember, "make_memory", None)
    monkeypatch.setattr(run.remember, "look_at", None)
    shutil.copytree(out, tmp_path / "once")
    later = photo(LATER[0], tmp_path / "later" / "5.png")
    later.rename(tmp_path / "later" / "second.png")
    shutil.copy(tmp_path / "more" / "copy.png", tmp_path / "later")
    assert add(out, tmp_path / "later") == 0
    assert [each["name"] for each in json.loads((out / "manifest.json").read_text())["skipped"]] == ["copy.png"], "once"
    assert_old_ones_stay(tmp_path / "once", out)
    assert wrong_by(out, {"0~2.png": NEW[0], "second.png": LATER[0]}) < 3.0
    assert len(json.loads((out / "manifest.json").read_text())["added"]) == 2

    # The points are observed where they are seen, by new views, too, and other commands read the result.
    model = pycolmap.Reconstruction(out / "sparse" / "0")
    new = [image for image in model.images.values() if image.name in ("0~2.png", "second.png")]
    assert all(image.num_points3D > 30 for image in new)
    assert model.compute_mean_reprojection_error() < 1.0
    assert len(read_given(out).cameras) == 8
    again = ["reconstruct", str(album / "photos"), "-o", str(tmp_path / "again"), "-q", *QUICK, "-f", "npz"]
    assert main([*again, "--refine", "off", "--cameras", str(out)]) == 0

    # All of it is there now.
    unchanged = files_of(out)
    assert add(out, tmp_path / "later", archive) == 0 and files_of(out) == unchanged


def test_another_shape_and_a_picture_of_elsewhere(album: Path, out: Path, tmp_path: Path, model) -> None:
    larger = scenes.photograph(POSES[NEW[0]])[0]
    Image.fromarray(larger[:, 70:250]).save(tmp_path / "portrait.png")
    noise = np.random.default_rng(0).integers(0, 255, (30, 40), dtype=np.uint8)
    Image.fromarray(noise).resize((320, 240)).save(tmp_path / "elsewhere.png")
    before = files_of(out)
    found = lean3r.add(model, out, [tmp_path / "portrait.png", tmp_path / "elsewhere.png"], tmp_path / "new")
    assert files_of(out) == before, "the result itself stays"
    assert_old_ones_stay(album / "out", tmp_path / "new")
    assert found.names[-2:] == ("elsewhere.png", "portrait.png")
    assert found.registration[-2:] == ("uncertain", "refined")
    assert found.info["warnings"][-1]["code"] == "uncertain-views"
    assert found.info["warnings"][-1]["views"] == ["elsewhere.png"]
    assert wrong_by(tmp_path / "new", {"portrait.png": NEW[0]}) < 3.0
    assert not (found.points.view == 6).any() and (found.points.view == 7).any()


def test_a_zoomed_picture_gets_a_lens_of_its_own(
    out: Path, tmp_path: Path, model, caplog: pytest.LogCaptureFixture
) -> None:
    """It has the size of the others, and nothing says that it was zoomed: their --shared-camera holds no more."""
    config = (out / "config.toml").read_text()
    (out / "config.toml").write_text(config.replace("shared_camera = false", "shared_camera = true"))
    zoomed = scenes.photograph(POSES[NEW[0]], focal=1.4 * scenes.FOCAL)[0]
    Image.fromarray(zoomed).save(tmp_path / "zoomed.png")
    found = lean3r.add(model, out, tmp_path / "zoomed.png")
    assert found.registration[-1] == "refined"
    assert found.lenses[-1].params[0] == pytest.approx(1.4 * scenes.FOCAL, rel=0.05)
    assert "--shared-camera does not hold" in caplog.text
    assert pycolmap.Reconstruction(out / "sparse" / "0").num_cameras() == 2
    assert wrong_by(out, {"zoomed.png": NEW[0]}) < 10.0  # the price of another lens


@pytest.mark.parametrize(("resolution", "has_room", "side"), [(120, True, 140), (120, False, 120), (160, True, 160)])
def test_recalled_views_have_their_depth_at_any_size(
    out: Path, tmp_path: Path, model, monkeypatch: pytest.MonkeyPatch, resolution: int, has_room: bool, side: int
) -> None:
    """At that of the record, which the maps may lack, at the network's, or if memory does not suffice."""
    config = out / "config.toml"
    config.write_text(config.read_text().replace('dense = "network"', 'dense = "stereo"\ndepth_size = 140'))
    scene, parts = read_result(out).scene, []
    monkeypatch.setattr(place, "densify_scene", lambda part, *_, **__: parts.append(part) or part)
    if not has_room:
        monkeypatch.setattr(enlarging, "available_bytes", lambda device: 1)
    found = lean3r.add(model, out, photo(NEW[0], tmp_path / "new.png"), resolution=resolution)
    assert found.registration[-1] == "refined" and (found.depth[-1] > 0).mean() > 0.5
    [part] = parts
    assert abs(part.mask[0].sum() ** 0.5 - side) < 0.04 * side
    for at, name in enumerate(part.names[:-1]):
        view = scene.names.index(name)
        (scale, offset), (own, start) = (
            np.reshape(each.original_from_network, (2, 2)) for each in (part.sources[at], scene.sources[view])
        )
        y, x = np.nonzero(part.depth[at])
        assert len(y) > 0.85 * (scene.depth[view] > 0).mean() * part.mask[at].sum()
        columns, rows = np.floor(((np.stack([x, y], 1) + 0.5) * scale + offset - start) / own).astype(int).T
        stored, confidence = (each[view, rows, columns] for each in (scene.depth, scene.conf))
        assert np.quantile(np.abs(part.depth[at, y, x] / stored - 1), 0.95) < 0.02
        assert np.median(np.abs(part.conf[at, y, x] - confidence)) < 0.1 * np.median(confidence)


@pytest.mark.parametrize("resolution", [None, 160])
def test_without_refinement_the_worlds_are_joined(album: Path, tmp_path: Path, model, resolution: int | None) -> None:
    off = ["-q", "--refine", "off", "--resolution", "120", "-f", "npz,cameras"]
    assert main(["reconstruct", str(album / "photos"), "-o", str(tmp_path / "out"), *off]) == 0
    before = read_result(tmp_path / "out").scene
    photo(NEW[0], tmp_path / "new.png")
    found = lean3r.add(model, tmp_path / "out", tmp_path / "new.png", resolution=resolution)
    height, width = before.depth.shape[1:]
    assert (found.cam_from_world[:6] == before.cam_from_world).all()
    assert (found.depth[:6, :height, :width] == before.depth).all()
    join = found.info["added"][0]["join"]
    assert found.registration[-1] == ("uncertain" if join["bad"] else "predicted")
    assert join["shared"] == len(found.info["added"][0]["recalled"]) and join["frames"] > 0
    assert set(files_of(tmp_path / "out")) == {"manifest.json", "config.toml", "cameras.json", "predictions.npz", FILE}


def test_the_larger_scene_says_that_bars_of_an_added_film_stayed(out: Path, tmp_path: Path, model) -> None:
    barred = np.pad(scenes.photograph(POSES[NEW[0]])[0], ((0, 40), (0, 0)))
    film = video(tmp_path / "film.mp4", [np.stack([barred] * 3, axis=2)] * 2, crf="12")
    found = lean3r.add(model, out, film, frames=FrameChoice(frames=1), refine="off")
    assert ["film.mp4 has a bar" in each["text"] for each in found.info["warnings"] if each["code"] == "bars"] == [True]


def test_masks_are_those_of_the_names_in_each_input(album: Path, out: Path, tmp_path: Path) -> None:
    """The new 0.png becomes 0~2.png: its mask is its own, and the stored 0.png has none."""
    half = np.full((240, 320), 255, np.uint8)
    half[:, :160] = 0
    for part, folder in ((half, "more"), (np.flip(half), "later")):
        (tmp_path / folder).mkdir()
        Image.fromarray(part).save(tmp_path / folder / "0.png.png")
    assert add(out, photo(NEW[0], tmp_path / "0.png"), "--masks", tmp_path / "more") == 0
    result = read_result(out)
    depth, names = result.scene.depth, result.scene.names
    middle = depth.shape[2] // 2
    masked, stored = depth[names.index("0~2.png")], depth[names.index("0.png")]
    assert not masked[:, : middle - 1].any() and masked[:, middle + 1 :].any() and stored[:, : middle - 1].any()

    new = {"0~3.png": "0.png"}
    later = masks_of(result, Masks.find(tmp_path / "later", ["0.png"]), new)
    files = {"0~2.png": tmp_path / "more" / "0.png.png"}
    assert later is not None and later.files == files | {"0~3.png": tmp_path / "later" / "0.png.png"}
    config = {"masks": str(tmp_path / "later")}
    own = masks_of(replace(result, config=config), None, new)
    assert own is not None and own.files == files | {"0.png": tmp_path / "later" / "0.png.png"}


def test_a_killed_run_leaves_the_result_as_it_was(out: Path, tmp_path: Path) -> None:
    photo(NEW[0], tmp_path / "new.png")
    before = files_of(out)
    code = (
        "import os, sys\nfrom lean3r.grow import run\nfrom lean3r.cli.main import main\n"
        "def write(scene, folder, *_):\n    (folder / 'cameras.json').write_text('half')\n    os._exit(9)\n"
        "run.write_all = write\nmain(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "add", str(out), str(tmp_path / "new.png")]
    assert subprocess.run(command, capture_output=True).returncode == 9
    assert files_of(out) == before
    assert add(out, tmp_path / "new.png") == 0
    assert len(read_result(out).scene.sources) == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.png", "out"], "no leftovers"


def test_interrupted_refinement_changes_nothing(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    photo(NEW[0], tmp_path / "new.png")
    before = files_of(out)
    monkeypatch.setattr("lean3r.pipeline.refining.refine", interrupt)
    assert add(out, tmp_path / "new.png") == 130
    assert files_of(out) == before


def test_pictures_that_moved(album: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = out / "config.toml"
    config.write_text(config.read_text().replace(str(album / "photos"), "gone"))
    photo(NEW[0], tmp_path / "new.png")
    assert add(out, tmp_path / "new.png") == 3
    assert "--stored" in capsys.readouterr().err
    for number in range(len(STORED)):
        (tmp_path / "small").mkdir(exist_ok=True)
        image = Image.open(album / "photos" / f"{number}.png")
        image.resize((image.width // 2, image.height // 2)).save(tmp_path / "small" / f"{number}.png")
    points = {}
    for folder in (album / "photos", tmp_path / "small"):  # copies may be smaller
        target = tmp_path / f"with {folder.name}"
        assert add(out, tmp_path / "new.png", "--stored", folder, "-o", target) == 0
        assert wrong_by(target, {"new.png": NEW[0]}) < 0.5
        points[folder.name] = len(read_result(target).scene.sparse.xyz)
    assert points["small"] < 1.3 * points["photos"]


def change(key: str, value: object) -> Callable[[Path], None]:
    def spoil(out: Path) -> None:
        manifest = json.loads((out / "manifest.json").read_text())
        (out / "manifest.json").write_text(json.dumps(manifest | {key: value}))

    return spoil


def rewrite(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda out: (out / name).write_bytes(content) and None


def undistorted_for_nerfstudio(out: Path) -> None:
    change("seconds_by_format", {"npz": 0.1, "nerfstudio": 0.1})(out)
    rewrite("config.toml", b"undistort = true\nimage_factors = []")(out)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (shutil.rmtree, "no such folder"),
        (lambda out: (out / "manifest.json").unlink(), "no manifest.json"),
        (rewrite("manifest.json", b"{}"), "no manifest.json"),
        (change("layout_version", 99), "layout 99"),
        (lambda out: (out / "points.ply").unlink(), "points.ply"),
        (rewrite("stream.json", b"{}"), "lean3r reconstruct FILM PICTURES -o NEW"),
        (change("views", []), "another command"),
        (rewrite("predictions.npz", b"PK"), "damaged"),
        (rewrite("config.toml", b"= 3"), "TOML"),
        (rewrite("config.toml", b"undistort = true"), "lean3r reconstruct ITS_PICTURES NEW_PICTURES -o OTHER --undis"),
        (rewrite("config.toml", b'undistort = true\ninputs = ["my photos"]'), "reconstruct 'my photos' -o OTHER; "),
        (undistorted_for_nerfstudio, "--undistort"),
        (rewrite("sparse/0/points3D.bin", b"\7"), "damaged"),
        (change("files", ["manifest.json"]), "predictions.npz"),
    ],
)
def test_a_bad_scene_is_refused_and_stays(
    out: Path, tmp_path: Path, spoil: Callable[[Path], None], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    photo(NEW[0], tmp_path / "new.png")
    spoil(out)
    before = files_of(out)
    assert add(out, tmp_path / "new.png") == 3
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1
    assert files_of(out) == before


def test_what_is_no_folder_and_no_pictures_are_named(out: Path, model) -> None:
    for wrong in (3, None, object()):
        with pytest.raises(UsageError, match=f"the scene is a {type(wrong).__name__}; expected the folder"):
            lean3r.add(model, wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"add\(\) needs pictures: add"):
        lean3r.add(model, out)


def test_new_pictures_must_not_lie_in_the_scene(out: Path, tmp_path: Path) -> None:
    photo(NEW[0], out / "new" / "a.png")
    assert add(out, out / "new") == 2


def test_a_picture_that_exif_turns_is_known_by_its_upright_copy(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(scenes.photograph(POSES[0])[0]).save(tmp_path / "phone.jpg", exif=exif)
    pictures = Pictures(tmp_path)
    [still] = pictures.stills(tmp_path)
    pictures.write(pictures.names, tmp_path / "images")  # what a result remembers such pictures by
    [copy] = Pictures(tmp_path / "images").stills(tmp_path)
    assert copy.open().read() != still.open().read() and print_of(copy) == print_of(still)


def test_a_larger_scene_is_written_with_the_options_of_the_scene() -> None:
    wanted = ExportOptions(shared_camera=True, colmap_points=7, crs="enu", ground_cell=0.5, html_points=9, texture=True)
    assert run._export_options(as_record(wanted)) == wanted


def test_few_views_cover_all_pictures() -> None:
    matches = np.zeros((6, 40))
    matches[:, 7], matches[:3, 8], matches[3:, 9] = 30, 100, 100
    matches[5] = 0
    assert sorted(cover(matches)) == [7, 8, 9]
    assert cover(np.zeros((2, 3))) == []
    assert cover(np.array([[100.0, 90, 12]])) == [0, 1], "twelve may be chance"
