"""Many scenes: each ends for itself, what is there stays, and the table says what failed."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lean3r.cli.main import main
from lean3r.errors import InputError, UsageError
from lean3r.pipeline.batch import Batch, Outcome, failure, find_scenes

QUICK = ["--refine", "off", "--dense", "network", "--resolution", "96", "--format", "cameras"]


def photos(folder: Path, count: int = 2) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 255, (9, 12, 3), np.uint8)
        Image.fromarray(noise).resize((96, 72)).save(folder / f"{number}.jpg")


def batch(scenes: Path, out: Path, **more) -> Batch:
    return Batch(find_scenes(scenes, out), out, QUICK, **more)


def states(outcomes: list[Outcome]) -> dict[str, str]:
    return {outcome.name: outcome.state for outcome in outcomes}


def test_one_failure_is_not_the_end_and_the_rest_is_not_done_again(tmp_path: Path, capsys) -> None:
    scenes, out = tmp_path / "scenes", tmp_path / "out"
    photos(scenes / "=a 'b' {c}")
    (scenes / "empty").mkdir()
    with zipfile.ZipFile(scenes / "packed.zip", "w") as archive:
        archive.writestr("torn.jpg", b"\xff\xd8\xff" + bytes(99))
    call = ["batch", str(scenes), "-o", str(out), "--jobs", "2", "--json", f"--options={' '.join(QUICK)}"]
    assert main(call) == 3
    said = capsys.readouterr()
    assert "2 of 3 scenes failed: empty, packed.zip" in said.err
    rows = {row["name"]: row for row in json.loads(said.out)}
    assert rows["=a 'b' {c}"]["figures"]["views"] == 2 and rows["=a 'b' {c}"]["reason"] == ""
    assert {name: row["status"] for name, row in rows.items()} == {"=a 'b' {c}": 0, "empty": 3, "packed.zip": 3}
    assert "no usable" in rows["empty"]["reason"] or "no picture" in rows["empty"]["reason"]
    table = list(csv.DictReader((out / "batch.csv").open()))
    assert table[0]["name"] == "'=a 'b' {c}" and table[1]["state"] == "failed" and table[1]["reason"]
    assert not list(out.glob("empty*")) and "error" in (out / "logs" / "empty.txt").read_text()
    # A scene that was mended is tried again; the done one keeps its files.
    before = (out / "=a 'b' {c}" / "manifest.json").stat()
    with zipfile.ZipFile(scenes / "packed.zip", "w") as archive:
        for path in (scenes / "=a 'b' {c}").iterdir():
            archive.write(path, path.name)
    again = batch(scenes, out).run()
    assert states(again) == {"=a 'b' {c}": "done", "empty": "failed", "packed.zip": "done"}
    assert (out / "=a 'b' {c}" / "manifest.json").stat() == before
    assert again[0].figures["views"] == 2, "remembered"
    with pytest.raises(UsageError, match="was begun with the options"):
        Batch(find_scenes(scenes, out), out, ["--refine", "off"]).run()
    elsewhere = scenes.rename(tmp_path / "another day")
    with pytest.raises(UsageError, match=r"the result of another =a .*scenes.* remove batch\.json"):
        batch(elsewhere, out).run()
    (out / "batch.json").unlink()
    assert set(states(batch(elsewhere, out).run()).values()) >= {"done"}


def test_what_counts_as_a_scene(tmp_path: Path) -> None:
    scenes = tmp_path / "scenes"
    for name in ("room10", "room2", ".hidden", "logs", "out"):
        (scenes / name).mkdir(parents=True)
    for name in ("clip.mp4", "clip.zip", "readme.txt", "one.jpg"):
        (scenes / name).touch()
    found = find_scenes(scenes, scenes / "out")
    assert [scene.path.name for scene in found] == ["clip.mp4", "clip.zip", "logs", "room2", "room10"]
    assert [scene.name for scene in found] == ["clip.mp4", "clip.zip", "logs~2", "room2", "room10"]
    (scenes / "clip").mkdir()
    assert {scene.name for scene in found} < {scene.name for scene in find_scenes(scenes, scenes / "out")}, (
        "none renamed"
    )
    for wrong in (scenes / "room2", scenes / "nowhere", scenes / "one.jpg"):
        with pytest.raises(InputError, match=r"expected one that holds|holds no scenes"):
            find_scenes(wrong, tmp_path)


@pytest.mark.parametrize("option", ["-o", "--overwrite", "--json", "--out=there"])
def test_options_that_the_batch_sets_are_refused(option: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be an option of all scenes"):
        Batch([], tmp_path / "out", [option])
    assert not (tmp_path / "out").exists()
    minutes = [["--minutes", wrong] for wrong in ("0", "nan", "inf", "35792")]
    for wrong in (["--jobs", "0"], *minutes, ["--options='"]):
        assert main(["batch", str(tmp_path), "-o", str(tmp_path / "out"), *wrong]) == 2
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be the folder of the results: Not a directory"):
        Batch([], tmp_path / "file")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("--max-view 2", "Unrecognized options: --max-view, 2"),
        ("--resolution some", "Error parsing --resolution"),
        ("--max-views 0", "--max-views must be positive, got 0"),
        ("--format nonsense", "unknown format 'nonsense'"),
        ("--known poses", "--cameras, which is missing"),
        ("--help", "cannot be an option of all scenes"),
    ],
)
def test_a_wrong_option_ends_the_batch_before_the_first_scene(wrong: str, said: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "scenes" / "hall").mkdir(parents=True)
    out = tmp_path / "out"
    assert main(["batch", str(tmp_path / "scenes"), "-o", str(out), f"--options={wrong}"]) == 2
    shown = capsys.readouterr()
    assert said in shown.err and shown.out == "" and not out.exists()


def test_a_parser_in_a_box_is_quoted_and_options_may_change_until_a_scene_is_done(tmp_path: Path) -> None:
    scenes, out = tmp_path / "scenes", tmp_path / "out"
    photos(scenes / "hall")
    (outcome,) = Batch(find_scenes(scenes, out), out, ["--max-view", "2"]).run()
    assert (outcome.state, outcome.status) == ("failed", 2)
    assert outcome.reason == "Unrecognized options: --max-view, 2"
    assert states(batch(scenes, out).run()) == {"hall": "done"}
    (out / "batch.json").write_text((out / "batch.json").read_text().replace('"done"', '"waiting"'))
    with pytest.raises(UsageError, match="was begun with the options"):
        Batch(find_scenes(scenes, out), out, []).run()


def test_names_that_begin_with_a_dash_are_no_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "-x")
    (outcome,) = batch(Path(), Path("-out")).run()
    assert outcome.state == "done" and outcome.name == "-x", outcome.reason
    assert json.loads((tmp_path / "-out" / "-x" / "manifest.json").read_text())["views"]


def test_a_scene_that_takes_too_long_is_ended_and_leaves_nothing(tmp_path: Path) -> None:
    photos(tmp_path / "scenes" / "slow")
    (outcome,) = batch(tmp_path / "scenes", tmp_path / "out", minutes=0.005).run()
    assert outcome.state == "failed" and "longer than 0.005 minutes" in outcome.reason
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"batch.json", "batch.csv", "logs", ".lean3r-batch"}
    assert failure([outcome], tmp_path) is not None and failure([Outcome("a", "done")], tmp_path) is None


def test_ctrl_c_ends_the_running_scenes_and_keeps_the_done_ones(tmp_path: Path) -> None:
    scenes, out = tmp_path / "scenes", tmp_path / "out"
    photos(scenes / "a")
    photos(scenes / "b", 12)
    code = f"import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.path[:] = {sys.path!r}"
    call = ["batch", str(scenes), "-o", str(out), f"--options={' '.join(QUICK)}"]
    run = subprocess.Popen(
        [sys.executable, "-c", f"{code}\nfrom lean3r.cli.main import main\nsys.exit(main({call!r}))"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    until = time.monotonic() + 60
    while not (out / "a" / "manifest.json").exists() and time.monotonic() < until:
        time.sleep(0.05)
    busy = Batch(find_scenes(scenes, out), out, QUICK)
    with pytest.raises(UsageError, match="another batch works on"):
        busy.run()
    os.kill(run.pid, signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130 and b"interrupted" in said
    assert sorted(path.name for path in out.iterdir() if path.is_dir() and path.name != "logs") in (["a"], ["a", "b"])
    assert states(busy.run()) == {"a": "done", "b": "done"}
