"""Options: declared once, the same in calls, flags and records; keywords of before go on with a warning."""

from __future__ import annotations

import dataclasses
import errno
import inspect
import json
import os
import tomllib
from pathlib import Path

import numpy as np
import pytest
from contracts.tiny import tiny
from PIL import Image

import lean3r
from lean3r.cli.flags import flags
from lean3r.cli.main import explain, main
from lean3r.cli.reconstruct import Reconstruct
from lean3r.options import options_of
from lean3r.pipeline.old_keywords import NOW_IN, OldKeywords
from lean3r.pipeline.options import MemoryOptions, RunOptions
from lean3r.refine.options import ScaleOptions
from lean3r.stereo.options import StereoOptions

GROUPS = (
    lean3r.FrameChoice,
    lean3r.CameraOptions,
    lean3r.RefineOptions,
    lean3r.PointOptions,
    lean3r.ExportOptions,
    RunOptions,
    MemoryOptions,
    ScaleOptions,
    StereoOptions,
    lean3r.StreamOptions,
)


@pytest.fixture(scope="module")
def model() -> object:
    return lean3r.load("nano")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    large = Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)).resize((400, 300))
    for index in range(4):
        large.crop((8 * index, 0, 8 * index + 320, 240)).save(folder / f"{index}.jpg")
    return folder


def test_about_ten_parameters_and_every_option_in_one_class() -> None:
    named = [p for p in inspect.signature(lean3r.reconstruct).parameters.values() if p.kind != p.VAR_KEYWORD]
    assert len(named) <= 14
    names = [name for group in GROUPS for name in options_of(group)]
    assert len(names) == len(set(names)), "an option is declared once"
    for group in GROUPS:
        made = flags(group)()
        assert made.options == group(), "flags have the defaults of the class"
        assert all(f.metadata["help"].endswith(".") for f in options_of(group).values())


def test_options_of_the_command_line_are_in_config_toml(photos: Path, tmp_path: Path) -> None:
    options = ["--max-views", "3", "--conf-percentile", "30", "--resolution", "112", "--image-factors", "none"]
    command = ["reconstruct", str(photos), "-o", str(tmp_path / "out"), "-f", "cameras", "--refine", "off", "-q"]
    assert main([*command, *options]) == 0
    config = tomllib.loads((tmp_path / "out" / "config.toml").read_text())
    wanted = {"max_views": 3, "conf_percentile": 30.0, "resolution": 112, "image_factors": [], "max_points": 1_000_000}
    assert {name: config[name] for name in wanted} == wanted
    assert config["refine"]["when"] == "off" and config["inputs"] == [str(photos)]
    groups = [group for group in GROUPS if group is not lean3r.StreamOptions]
    names = {name for group in groups for name, f in options_of(group).items() if f.default is not None}
    assert names - {"refine", "lens", "share_lens", "memory_allow"} <= config.keys(), "every choice that has a value"
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["command"]


def test_old_keywords_mean_what_they_meant(model, photos: Path) -> None:
    now = lean3r.reconstruct(
        model,
        photos,
        frames=lean3r.FrameChoice(max_views=3),
        refine="off",
        points=lean3r.PointOptions(max_points=200, conf_percentile=10),
        resolution=112,
    )
    with pytest.warns(
        FutureWarning, match=r"use frames=FrameChoice\(max_views=3\); points=PointOptions\(max_points=200"
    ):
        before = lean3r.reconstruct(
            model, photos, max_views=3, refine="off", max_points=200, conf_percentile=10, resolution=112
        )
    assert np.array_equal(now.points.xyz, before.points.xyz) and now.info["config"] == before.info["config"]
    with pytest.warns(FutureWarning, match=r"FrameChoice\(frames=5\)"):
        assert len(lean3r.reconstruct(model, photos, frames=5, refine="off", resolution=112).names) == 4
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_wiews'"):
        lean3r.reconstruct(model, photos, max_wiews=3)  # type: ignore[call-arg]
    assert set(NOW_IN) == {*OldKeywords.__annotations__, "frames"}


def test_old_names_mean_what_they_meant_to_every_input(model, photos: Path) -> None:
    few = {"refine": "off", "resolution": 112}
    with pytest.warns(FutureWarning, match="use pictures "):
        assert len(lean3r.reconstruct(model, inputs=photos, **few).names) == 4
    with pytest.warns(FutureWarning, match="FrameChoice"):
        scene = lean3r.reconstruct(model, photos, frames=np.int64(5), **few)  # type: ignore[arg-type]
    assert scene.info["config"]["frames"] == 5
    views = lean3r.Pictures(photos).views(resolution=112, patch=model.patch)
    with pytest.warns(FutureWarning, match="FrameChoice"):
        assert len(lean3r.reconstruct(model, views, max_views=2, fps=None, **few).names) == 4
    with pytest.warns(FutureWarning), pytest.raises(lean3r.LeanError, match="known is 'al'"):
        lean3r.reconstruct(model, photos, known="al", **few)  # type: ignore[arg-type]
    with pytest.warns(FutureWarning, match="CameraOptions"):
        lean3r.reconstruct(model, photos, known="poses", known_poses="start", **few)
    with pytest.warns(FutureWarning, match="CameraOptions"):
        scene = lean3r.reconstruct(model, photos, intrinsics=np.array([300.0, 300, 160, 120]), **few)  # type: ignore[arg-type]
    assert scene.info["config"]["intrinsics"] == [300, 300, 160, 120]
    with pytest.raises(TypeError, match="pictures twice"):
        lean3r.reconstruct(model, photos, inputs=photos)


def test_named_masks_take_precedence_over_those_of_the_pictures(model, photos: Path, tmp_path: Path) -> None:
    for name, count in (("one", 1), ("all", 4)):
        (tmp_path / name).mkdir()
        for picture in sorted(photos.iterdir())[:count]:
            Image.new("L", (320, 240), 255).save(tmp_path / name / f"{picture.name}.png")
    pictures = lean3r.Pictures(photos, masks=tmp_path / "all")
    for masks, views in ((None, 4), (tmp_path / "one", 1)):
        scene = lean3r.reconstruct(model, pictures, masks=masks, refine="off", resolution=112)
        assert scene.info["masks"]["views"] == views


def test_a_name_is_not_a_model(photos: Path) -> None:
    with pytest.raises(lean3r.LeanError, match="the model is a str; expected a loaded model"):
        lean3r.reconstruct("nano", photos)  # type: ignore[arg-type]


def test_records_are_not_edited_from_outside(model, photos: Path) -> None:
    scene = lean3r.reconstruct(model, photos, refine="off", resolution=112)
    assert scene.point_options == lean3r.PointOptions()
    with pytest.raises(dataclasses.FrozenInstanceError):
        scene.point_options.max_points = 3  # type: ignore[misc]
    with pytest.raises(lean3r.LeanError, match="frames cannot be chosen for Pictures, which are final"):
        lean3r.reconstruct(model, lean3r.Pictures(photos), frames=lean3r.FrameChoice(max_views=2))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--memory-allow", "exact"], "--memory-allow exact limits the changes for --memory, which is missing"),
        (["--images", "always"], "--images always writes pictures only with the formats colmap and nerfstudio"),
        (["--refine", "off", "--lens", "radial"], "--lens radial is of a refinement, and --refine off leaves it out"),
        (["--refine", "off", "--refine-seconds", "9"], "--refine-seconds 9.0 is of a refinement"),
        (["--refine", "off", "--share-lens", "never"], "--share-lens never is of a refinement, and --refine off"),
    ],
)
def test_options_that_nothing_follows_are_refused(photos: Path, tmp_path: Path, capsys, given: list, says: str) -> None:
    assert main(["reconstruct", str(photos), "-o", str(tmp_path / "out"), "-f", "cameras", *given]) == 2
    assert says in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"lens": "radial"}, "--lens radial is of a refinement, which --refine auto leaves out for vggt; use"),
        ({"share_lens": "never"}, "--share-lens never"),
        ({"seconds": 9.0}, "--refine-seconds 9.0"),
    ],
)
def test_refinement_that_auto_leaves_out_is_not_stated(photos: Path, options: dict, says: str) -> None:
    """Large models are not refined by default: the lens that was asked for was nowhere in the result."""
    with pytest.raises(lean3r.LeanError, match=says):
        lean3r.reconstruct(tiny("vggt"), photos, refine=lean3r.RefineOptions(**options))


def test_one_camera_for_all_pictures_needs_no_refinement(photos: Path, tmp_path: Path) -> None:
    command = ["reconstruct", str(photos), "-o", str(tmp_path / "out"), "-f", "colmap", "--resolution", "112", "-q"]
    assert main([*command, "--refine", "off", "--shared-camera"]) == 0


def test_options_that_no_format_reads_are_named(caplog: pytest.LogCaptureFixture) -> None:
    options = lean3r.ExportOptions(html_points=9, colmap_points=9, ground_cell=0.1, shared_camera=True)
    options.warn_of_unread(["cameras", "colmap"])
    assert [record.args for record in caplog.records] == [
        ("ground-cell", "ground_cell", "geotiff"),
        ("html-points", "html_points", "html"),
    ]
    lean3r.ExportOptions().warn_of_unread([])
    assert len(caplog.records) == 2
    options.warn_of_unread(["colmap", "geotiff", "html"])
    assert len(caplog.records) == 2
    options.warn_of_unread(["geotiff", "html", "ply"])
    lean3r.ExportOptions(image_factors=(4,)).warn_of_unread(["colmap"])
    lean3r.ExportOptions(image_factors=(4,), undistort=True).warn_of_unread(["colmap"])
    said = [record.getMessage() for record in caplog.records[2:]]
    assert [text.partition(" ")[0] for text in said] == ["--shared-camera", "--colmap-points", "--image-factors"]


def test_no_input_is_bad_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = (["reconstruct"], ["reconstruct", "--view"], ["stream"], ["inspect", "attention"], ["add", "scene"])
    for command in commands:
        assert main([*command, "-o", str(tmp_path / "out")]) == 2
        assert "no input is named" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_file_that_may_not_be_read_is_not_called_an_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = PermissionError(errno.EACCES, "Permission denied", str(tmp_path))
    assert explain(error) == (f"cannot write: Permission denied ({tmp_path}). Use another -o.", 2)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK)
    assert explain(error) == (f"cannot read {tmp_path}: Permission denied.", 3)


def test_a_home_within_quotes_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(Reconstruct, "lead", lambda self, _: seen.append(self.out))
    seen: list[Path] = []
    assert main(["reconstruct", "photos", "-o", "~/a room"]) in (0, None)
    assert seen == [tmp_path / "a room"]


@pytest.mark.parametrize("command", ["stream", "reconstruct", "add scene"])
def test_inputs_that_are_not_there_are_told_before_anything_is_loaded(tmp_path, capsys, monkeypatch, command):
    """Torch and the model take seconds, and a name is soon misspelt."""

    def refuse(*_, **__):
        raise AssertionError("the model is loaded before the inputs are looked at")

    monkeypatch.setattr("lean3r.pipeline.load.load", refuse)
    assert main([*command.split(), str(tmp_path / "flim.mp4"), "-o", str(tmp_path / "out")]) == 3
    said = capsys.readouterr()
    assert "no such file or folder" in said.err and "flim.mp4" in said.err and said.out == ""
    assert "loading" not in said.err and list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_empty_is_told_before_a_stream_loads_anything(tmp_path, capsys, monkeypatch):
    """As in `reconstruct`, which makes its folder first."""
    for name in ("film.mp4", "out/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    monkeypatch.setattr("lean3r.pipeline.load.load", lambda *_, **__: pytest.fail("the model is loaded"))
    assert main(["stream", str(tmp_path / "film.mp4"), "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "exists and is not empty" in said and "loading" not in said
