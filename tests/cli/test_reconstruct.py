"""`lean3r reconstruct`: what it writes where, and how it ends when things go wrong."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lean3r.cli.console import Console, group_skips
from lean3r.cli.main import main
from lean3r.errors import MissingExtraError
from lean3r.pipeline import predicted

QUICK = ["--resolution", "96", "-f", "npz,cameras", "--refine", "off"]


@pytest.fixture
def run(weights: Path, photos: Path, tmp_path: Path) -> Callable[..., int]:
    """Reconstruct the pictures to tmp_path/out, with more arguments."""

    def call(*arguments: str) -> int:
        return main(["reconstruct", str(photos), "-o", str(tmp_path / "out"), "--weights", str(weights), *arguments])

    return call


def test_path_on_stdout_and_the_run_on_stderr(run, tmp_path: Path, capsys) -> None:
    assert run(*QUICK) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'out'}\n"
    for text in (
        "model",
        "nano",
        "Apache-2.0",
        "device",
        "3 used, 1 skipped",
        "network",
        "summary",
        "points",
        "MB peak",
    ):
        assert text in err
    assert "skipped img_4.jpg: " in err and "\x1b" not in err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "cameras.json", "config.toml", "manifest.json", "predictions.npz",
    }  # fmt: skip


def test_json_has_its_schema_and_quiet_says_nothing(run, tmp_path: Path, capsys) -> None:
    assert run(*QUICK, "--json", "-q", "--seed", "7") == 0
    out, err = capsys.readouterr()
    assert err == ""
    done = json.loads(out)
    keys = {
        "out",
        "warnings",
        "views",
        "skipped",
        "seconds",
        "peak_memory_mb",
        "points",
        "scale",
        "refinement",
        "stereo",
        "files",
    }
    assert set(done) == keys
    assert done["views"] == ["img_1.jpg", "img_2.jpg", "img_3.jpg"]
    assert [s["name"] for s in done["skipped"]] == ["img_4.jpg"] and done["skipped"][0]["reason"]
    assert set(done["seconds"]) == {"loading", "reading", "network", "points", "writing"}
    assert done["points"] > 0 and done["peak_memory_mb"] > 50 and done["scale"] == "relative"
    assert all((tmp_path / "out" / name).is_file() for name in done["files"])
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["model"] == "nano" and manifest["weights_hash"] and manifest["licence"] == "Apache-2.0"
    config = tomllib.loads((tmp_path / "out" / "config.toml").read_text())
    assert config["seed"] == 7 and config["format"] == ["cameras", "npz"] and config["resolution"] == 96


def test_a_path_comes_out_whatever_the_encoding_of_standard_output(photos, weights, tmp_path: Path) -> None:
    for encoding, name, shown in (("ascii", "\u042f", rb"\u042f"), ("utf-8:strict", os.fsdecode(b"\xe9"), b"\xe9")):
        command = [sys.executable, "-m", "lean3r", "reconstruct", str(photos), "--weights", str(weights), *QUICK]
        environment = os.environ | {"PYTHONIOENCODING": encoding}
        done = subprocess.run([*command, "-o", tmp_path / name], capture_output=True, env=environment, check=False)
        assert (done.returncode, done.stdout) == (0, os.fsencode(tmp_path) + b"/" + shown + b"\n"), done.stderr


def test_the_next_command_names_the_folder_that_holds_the_pictures(photos, tmp_path: Path, capsys) -> None:
    shutil.copytree(photos, tmp_path / "scene" / "images")
    for place, home in ((photos, photos), (tmp_path / "scene", tmp_path / "scene" / "images")):
        out = tmp_path / f"of {place.name}"
        assert main(["reconstruct", str(place), "-o", str(out), *QUICK, "-f", "colmap"]) == 0
        model, database = (shlex.quote(str(out / name)) for name in ("sparse/0", "database.db"))
        line = f"colmap gui --import_path {model} --database_path {database} --image_path {shlex.quote(str(home))}\n"
        assert line in capsys.readouterr().err


def test_many_views_are_the_students_and_the_run_says_so(photos, tmp_path: Path, capsys, monkeypatch) -> None:
    def done(name: str, *more: str) -> tuple[str, dict, dict]:
        out = tmp_path / name
        usual = ["reconstruct", str(photos), "-o", str(out), "--device", "cpu", "--refine", "off", "-f", "npz"]
        assert main([*usual, "--resolution", "96", *more]) == 0
        config = tomllib.loads((out / "config.toml").read_text())
        return capsys.readouterr().err, json.loads((out / "manifest.json").read_text()), config

    told, manifest, config = done("few")
    assert manifest["weights"] == "nano.safetensors" and config["model_reason"] == "chosen for 4 pictures" in told
    monkeypatch.setattr("lean3r.models.MANY", 4)
    told, manifest, config = done("many")
    assert manifest["weights"] == "nano-gsa-fp8.safetensors" and manifest["plan"] is not None
    assert config["model_loaded"] == "nano-gsa-fp8"
    assert config["model_reason"] == "chosen for 4 pictures on a CPU" in told
    assert done("asked", "--model", "nano")[1]["weights"] == "nano.safetensors"


def test_formats_repeat_and_take_commas_and_known_aliases_work(photos, weights, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    arguments = ["reconstruct", str(photos / "img_1.jpg"), "--export-dir", out, "--weights", str(weights)]
    assert main([*arguments, "--resolution", "96", "--export-format", "npz, ply", "-f", "cameras"]) == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"predictions.npz", "points.ply", "cameras.json"} <= written and "scene.glb" not in written


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--no-such-option"], 2, "no-such-option"),
        (["--model", "nanno"], 2, "Perhaps you meant nano"),
        (["--format", "glbb"], 2, "glbb"),
        (["--dtype", "float8"], 2, "float8"),
        (["--conf-percentile", "100"], 2, "conf_percentile is 100"),
        (["--max-points", "0"], 2, "max_points is 0"),
        (["--resolution", "8"], 2, "resolution"),
        (["--image-factors", "2,x"], 2, "expected numbers like 2,4,8"),
        (["--image-factors", "1"], 2, "image_factors"),
        (["--colmap-points", "-1"], 2, "colmap_points is -1"),
        (["--fps", "2", "--every", "3"], 2, "contradict"),
        (["--weights", "nowhere.safetensors"], 6, "nowhere.safetensors"),
    ],
)
def test_bad_use_and_bad_weights(run, tmp_path: Path, capsys, arguments: list[str], code: int, says: str) -> None:
    assert run(*arguments) == code
    out, err = capsys.readouterr()
    assert says in err and out == "" and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_missing_gps_ends_the_run_before_its_work(run, tmp_path: Path, capsys) -> None:
    assert run("--gps") == 3
    err = capsys.readouterr().err
    assert "0 of 4 pictures have a GPS position" in err and "loading" not in err
    assert list(tmp_path.iterdir()) == []


def test_unusable_input(weights: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.jpg").write_text("no picture")
    for name in ("empty", "notes.jpg", "missing"):
        source, out = str(tmp_path / name), str(tmp_path / "out")
        assert main(["reconstruct", source, "-o", out, "--weights", str(weights), "-q"]) == 3
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and name in err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a usable GPU")
def test_an_explicit_device_is_refused_with_the_reason(run, capsys) -> None:
    assert run("--device", "cuda") == 2
    assert "cuda is not usable" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (MissingExtraError.of("drawing", "eval"), 4, "pip install 'lean3r[eval]'"),
        (MemoryError(), 5, "--max-views"),
        (torch.OutOfMemoryError("CUDA out of memory"), 5, "--max-views"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), 5, "--max-views"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "disk is full"),
        (ZeroDivisionError("a bug"), 1, "unexpected ZeroDivisionError: a bug"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_every_exit_has_its_code_and_loses_nothing(
    run, tmp_path: Path, capsys, monkeypatch, error: BaseException, code: int, says: str
) -> None:
    (tmp_path / "out").mkdir()
    listed = '{"lean3r": "0.1", "layout_version": 1, "files": ["manifest.json", "points.ply"]}'
    (tmp_path / "out" / "manifest.json").write_text(listed)
    (tmp_path / "out" / "points.ply").write_text("the old result")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("lean3r.models.nano.Nano.encode", fail)
    assert run(*QUICK, "--overwrite") == code
    err = capsys.readouterr().err
    assert says in err and "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "points.ply").read_text() == "the old result"


def test_verbose_shows_the_traceback_of_a_bug(run, capsys, monkeypatch) -> None:
    monkeypatch.setattr(predicted, "predict", lambda *_: 1 / 0)
    assert run(*QUICK, "-v") == 1
    assert "Traceback" in capsys.readouterr().err


def test_nan_from_the_network_is_an_error_that_names_it(run, capsys, monkeypatch) -> None:
    def broken(*arguments):
        found = predict(*arguments)
        depth = found.depth.clone()
        depth[0, 2, 5, 5] = float("nan")
        return replace(found, depth=depth)

    predict = predicted.predict
    monkeypatch.setattr(predicted, "predict", broken)
    assert run(*QUICK) == 1
    err = capsys.readouterr().err
    assert "NaN" in err and "depth of view 3 (img_3.jpg)" in err and "bug of lean3r" not in err


def test_an_earlier_result_is_replaced_only_with_overwrite(run, tmp_path: Path, capsys) -> None:
    assert run(*QUICK) == 0
    before = (tmp_path / "out" / "manifest.json").stat().st_ino
    capsys.readouterr()
    assert run(*QUICK) == 2
    err = capsys.readouterr().err
    assert "--overwrite" in err and "loading" not in err, "refused before any work"
    assert (tmp_path / "out" / "manifest.json").stat().st_ino == before
    assert main(["reconstruct", str(tmp_path / "out"), "-o", str(tmp_path / "out"), "--overwrite"]) == 2
    assert (
        main(["reconstruct", ".", "--cameras", str(tmp_path / "out"), "-o", str(tmp_path / "out"), "--overwrite"]) == 2
    )
    assert capsys.readouterr().err.count("which --overwrite would replace") == 2, "inputs do not give way"
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert run(*QUICK, "--overwrite") == 0
    assert (tmp_path / "out" / "manifest.json").stat().st_ino != before
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_version_and_no_command(capsys) -> None:
    assert main(["--version"]) == 0 and capsys.readouterr().out.startswith("lean3r ")
    assert main([]) == 2 and main(["nonsense"]) == 2


def test_a_reader_that_leaves_early_is_not_an_error() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "lean3r", "--help"]
    ended = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_library_warnings_are_single_lines_and_the_logger_is_left_as_it_was(run, capsys, monkeypatch) -> None:
    before = logging.getLogger("lean3r").handlers[:]

    def talkative(*arguments):
        warnings.warn("something odd", stacklevel=1)
        return predict(*arguments)

    predict = predicted.predict
    monkeypatch.setattr(predicted, "predict", talkative)
    assert run(*QUICK) == 0
    assert "\nwarning: something odd\n" in capsys.readouterr().err
    logger = logging.getLogger("lean3r")
    assert logger.handlers == before
    assert run(*QUICK, "--overwrite", "--quiet") == 0
    assert logger.isEnabledFor(logging.WARNING)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Yes."""
        return True


def test_a_terminal_sees_bars_and_both_see_the_final_line() -> None:
    streams = Terminal(), io.StringIO()
    for stream in streams:
        console = Console(stream=stream)
        with console.stage("reading") as progress:
            for done in range(1, 5):
                progress(done, 4)
        assert "reading    4/4" in stream.getvalue()
    assert "\x1b" in streams[0].getvalue() and streams[1].getvalue().count("\n") == 1


def test_a_step_of_a_stage_shows_its_own_name() -> None:
    for stream in (Terminal(), io.StringIO()):
        console = Console(stream=stream)
        with console.stage("refinement"):
            console.advanced("matches", 20, 90)
            if console._bar is not None:
                task = console._bar.tasks[0]
                assert (task.description, task.completed, task.total) == ("matches", 20, 90)
            console.advanced("refinement", 0, 0)
        assert stream.getvalue().splitlines()[-1].endswith("refinement                 0.0 s")


def test_many_files_with_one_reason_make_one_line() -> None:
    skipped = [(f"{i}.jpg", "left out") for i in range(100)] + [("a.jpg", "empty")]
    assert group_skips(skipped) == ["0.jpg and 99 more: left out", "a.jpg: empty"]
