"""Runs: predictions first, whatever happens to the program; scores from the files."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import truth
from data import tiny
from PIL import Image
from programs import Walk

from lean3r.cli.main import main
from lean3r.errors import InputError, LeanError, UsageError, WeightsError
from lean3r.eval.protocols.items import Item, NoiseItem
from lean3r.eval.runs import folder
from lean3r.eval.runs.data import items_of, left_out
from lean3r.eval.runs.predicting import Task, predict_all
from lean3r.eval.runs.scoring import listing, score_benchmark
from lean3r.scratch import part_name

ITEMS = tuple(
    NoiseItem(id=f"s{n}", names=tuple(f"s{n}v{v}" for v in range(3)), seed=n, height=16, width=24) for n in range(4)
)


def predict(run: Path, program: Walk, processes: int = 1, items: Sequence[Item] = ITEMS) -> list[int]:
    """Predict items as a run; return the numbers of finished items as they were reported."""
    done: list[int] = []

    def begin(description: dict[str, Any]) -> None:
        data = {"synthetic": {"data": "synthetic", "root": None, "items": listing(items)}}
        config = {"format": folder.FORMAT, **description, "settings": {}, "benchmarks": data}
        folder.begin(run, config, overwrite=False)

    tasks = [Task(item, run / "synthetic" / item.id) for item in items]
    with folder.locked(run):
        predict_all(program, tasks, processes=processes, begin=begin, advanced=done.append)
    return done


def errors(run: Path) -> dict[str, str | None]:
    return {item.id: json.loads((run / "synthetic" / item.id / "item.json").read_text())["error"] for item in ITEMS}


@pytest.mark.parametrize(("what", "reason"), [("dies", "signal 9"), ("raises", "ValueError: this scene is too much")])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_failed_scene_is_a_row_and_is_tried_again(what: str, reason: str, processes: int, tmp_path: Path) -> None:
    run, note = tmp_path / "run", tmp_path / "note"
    assert predict(run, Walk(what, "s1v0", note), processes)[-1] == 4
    found = errors(run)
    assert reason in str(found.pop("s1")) and set(found.values()) == {None}
    scores = score_benchmark("synthetic", ITEMS, run)
    assert scores["failed"] >= 1 and reason in scores["rows"][1]["error"] and len(scores["rows"]) == 4
    note.unlink()
    assert predict(run, Walk(note=note), processes)[0] == 3
    assert note.read_text().split() == ["s1v0"], "what was done is not done again"
    assert set(errors(run).values()) == {None}
    assert not list(run.rglob("*.part*")) and not list(run.rglob(".part-*"))


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    """What a kill leaves: an unfinished folder, and predictions without their record."""
    run, note = tmp_path / "run", tmp_path / "note"
    predict(run, Walk())
    (run / "synthetic" / "s2" / "item.json").unlink()
    (run / "synthetic" / "s2" / ".part-left").mkdir()
    predict(run, Walk(note=note))
    assert note.read_text().split() == ["s2v0"] and not (run / "synthetic" / "s2" / ".part-left").exists()


def test_a_run_grows_and_loses_nothing(tmp_path: Path) -> None:
    """A larger --limit adds items to what is done, a smaller one leaves them; other views of an item are refused."""
    run, note = tmp_path / "run", tmp_path / "note"

    def listed() -> list[dict[str, Any]]:
        return json.loads((run / "run.json").read_text())["benchmarks"]["synthetic"]["items"]

    predict(run, Walk(note=note), items=ITEMS[:2])
    assert listed() == listing(ITEMS[:2])
    assert predict(run, Walk(note=note))[0] == 2
    assert listed() == listing(ITEMS)
    assert predict(run, Walk(note=note), items=ITEMS[:1]) == [1]
    assert listed() == listing(ITEMS) and set(errors(run).values()) == {None}
    assert note.read_text().split() == ["s0v0", "s1v0", "s2v0", "s3v0"], "nothing is predicted twice"
    turned = [replace(item, names=item.names[::-1]) for item in ITEMS[:2]]
    with pytest.raises(UsageError, match=r"number 1 on \(s0\): .*choice of views"):
        predict(run, Walk(note=note), items=turned)


def test_pictures_that_changed_since_are_named(tmp_path: Path) -> None:
    """Others under the same names, in another --root for example: the predictions are of those of before."""
    run = tmp_path / "run"
    predict(run, Walk())
    said = [row["problems"] for row in score_benchmark("synthetic", ITEMS, run)["rows"]]
    assert not any("other pictures" in what for problems in said for what in problems)
    changed = [replace(ITEMS[0], seed=9), *ITEMS[1:]]
    said = [row["problems"] for row in score_benchmark("synthetic", changed, run)["rows"]]
    assert [any("other pictures" in what for what in problems) for problems in said] == [True, False, False, False]


COMMAND = """
import sys
from pathlib import Path
from programs import Walk
from test_run_folders import predict

if __name__ == "__main__":
    predict(Path(sys.argv[1]), Walk("sleeps", "s1v0"))
"""


def test_views_that_count_twice_are_named(tmp_path: Path) -> None:
    run, items = tmp_path / "run", (*ITEMS[:2], replace(ITEMS[0], id="again"))
    predict(run, Walk(), items=items)
    first, other, again = score_benchmark("synthetic", items, run)["rows"]
    twice = "its pictures are those of s0: the same views count twice"
    assert again["problems"] == [*first["problems"], twice] and other["problems"] == first["problems"]


def test_no_process_outlives_a_command_that_was_killed(tmp_path: Path) -> None:
    """A scene may take an hour: its process would write into the run that goes on."""
    script = tmp_path / "command.py"
    script.write_text(COMMAND)
    run, paths = tmp_path / "run", os.pathsep.join([*filter(None, sys.path), str(Path(__file__).parent)])
    command = subprocess.Popen(
        [sys.executable, script, run], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": paths}, text=True
    )
    assert command.stdout is not None and command.stdout.readline() == "s1v0 begins\n"
    command.kill()
    command.communicate(timeout=60)  # its output ends when no process has it open
    assert predict(run, Walk())[-1] == 4


def test_a_full_disk_ends_the_run_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the disk is full"):
        predict(tmp_path / "run", Walk("disk", "s1v0"))
    assert (tmp_path / "run/synthetic/s0/predictions.npz").is_file()
    assert not (tmp_path / "run/synthetic/s1/item.json").exists(), "it is no failure of the scene"
    assert not [path.name for path in (tmp_path / "run").rglob(".*")], "nothing is half written"
    note = tmp_path / "note"
    predict(tmp_path / "run", Walk(note=note))
    assert note.read_text().split() == ["s1v0", "s2v0", "s3v0"]


@pytest.mark.parametrize("where", ["pictures.jpg", "scores.json"])
def test_a_disk_that_is_full_while_scores_are_written(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is no failure of a scene: nothing is half written, old scores stay, and the same command goes on."""
    [item] = items_of("synthetic@2", {}, limit=1)
    run = tmp_path / "run"
    truth.write(item, run / "synthetic@2" / item.id)
    call = ["score", str(run), "--benchmark", "synthetic@2", "--limit", "1", "-q"]
    assert main(call) == 0
    before = {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}
    fine = {"write_text": Path.write_text, "save": Image.Image.save}

    def full(self: Any, first: Any, *more: Any, **options: Any) -> Any:
        path = first if isinstance(self, Image.Image) else self
        if path.name == part_name(Path(where)):
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return fine["save" if isinstance(self, Image.Image) else "write_text"](self, first, *more, **options)

    monkeypatch.setattr(Path, "write_text", full)
    monkeypatch.setattr(Image.Image, "save", full)
    capsys.readouterr()
    assert main(call) == 2
    assert capsys.readouterr().err.startswith("error: the disk is full at ")
    assert {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()} == before
    monkeypatch.undo()
    assert main(call) == 0


def test_a_program_that_does_not_start_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="missing"):
        predict(tmp_path / "run", Walk("no weights"))
    with pytest.raises(LeanError, match="signal 9"):
        predict(tmp_path / "run", Walk("dies at once"))
    assert not list((tmp_path / "run").iterdir())


def test_a_run_keeps_its_configuration(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config: dict[str, Any] = {"format": 1, "lean3r": "1", "model": "a", "plan": None, "weights": "x", "settings": {}}

    def items(**views: list[str]) -> dict[str, Any]:
        return {"benchmarks": {"synthetic": {"items": [{"id": name, "views": each} for name, each in views.items()]}}}

    config |= items(a=["1", "2"], b=[])
    run.mkdir()
    folder.begin(run, config, overwrite=False)
    for change in ({"model": "b"}, {"weights": "y"}, {"settings": {"refine": "on"}}, {"lean3r": "2"}):
        with pytest.raises(UsageError, match="another configuration"):
            folder.begin(run, config | change, overwrite=False)
    for change in (items(b=[]), items(a=["1", "3"]), items(a=["1", "2"], c=[]), items(a=["1", "2"], c=[], b=[])):
        with pytest.raises(UsageError, match="other items"):
            folder.begin(run, config | change, overwrite=False)
    folder.begin(run, config | items(a=["1", "2"], b=["now", "there"]), overwrite=False)
    with pytest.raises(UsageError, match="other items"):
        folder.begin(run, config | items(a=["1", "2"], b=["1", "2"]), overwrite=False)
    folder.begin(run, config | {"benchmarks": {"colmap": {"items": []}}}, overwrite=False)
    assert set(folder.read_json(run / "run.json", "a run")["benchmarks"]) == {"synthetic", "colmap"}
    folder.begin(run, config | {"model": "b"}, overwrite=True)
    assert folder.read_json(run / "run.json", "a run")["model"] == "b"
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "mine.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match="not empty"):
        folder.begin(photos, config, overwrite=True)
    assert (photos / "mine.jpg").exists()


def test_files_of_other_versions_and_broken_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    for text, reason in (('{"format": 2}', "format 2"), ("{", "cannot be read"), ("[]", "list")):
        path.write_text(text)
        with pytest.raises(InputError, match=reason):
            folder.read_json(path, "a run")


def test_two_processes_do_not_write_one_run(tmp_path: Path) -> None:
    with folder.locked(tmp_path), pytest.raises(UsageError, match="another process"), folder.locked(tmp_path):
        pass


def test_nan_is_null_in_json(tmp_path: Path) -> None:
    folder.write_json(tmp_path / "a.json", {"format": 1, "x": [float("nan"), float("inf"), 1.5]})
    assert json.loads((tmp_path / "a.json").read_text())["x"] == [None, None, 1.5]


def test_scenes_that_cannot_be_used_are_rows(tmp_path: Path) -> None:
    """No pictures, one picture, a damaged model, a record of another version: the other scenes are scored."""
    root, run = tmp_path / "data", tmp_path / "run"
    tiny.write("colmap", root)
    (root / "scene_0").rename(root / "good")
    for other in root.glob("scene_*"):
        shutil.rmtree(other)
    for name in ("bare", "damaged", "single", "partial"):
        shutil.copytree(root / "good", root / name)
    shutil.rmtree(root / "bare" / "images")
    (root / "damaged" / "sparse" / "0" / "images.txt").write_text("1 0.5\n")
    for picture in sorted((root / "single" / "images").iterdir())[1:]:
        picture.unlink()
    (root / "partial" / "sparse" / "0" / "points3D.txt").unlink()
    assert [what for what in left_out("colmap", {"colmap": root}) if "partial" in what and "points3D.txt" in what]
    items = items_of("colmap", {"colmap": root})
    predict_all(Walk(), [Task(i, run / "colmap" / i.id) for i in items], processes=1, begin=print, advanced=print)
    for scored in (run, tmp_path / "of another program"):
        rows = {row["id"]: row for row in score_benchmark("colmap", items, scored)["rows"]}
        assert "no posed picture" in rows["bare"]["error"] and "no readable COLMAP" in rows["damaged"]["error"]
        assert "views is 1, too few" in rows["single"]["error"] and (rows["good"]["error"] is None) == (scored == run)
    (run / "colmap" / "good" / "item.json").write_text('{"format": 2}')
    assert "format 2" in {row["id"]: row["error"] for row in score_benchmark("colmap", items, run)["rows"]}["good"]
    shutil.rmtree(root / "good")
    with pytest.raises(InputError, match=r"has 2 views.*bare.*no posed picture"):
        items_of("colmap", {"colmap": root})


@pytest.mark.parametrize("name", ["lite3r-blendedmvs", "lite3r-blendedmvs-released"])
def test_pairs_of_a_scene_that_cannot_be_read_are_a_row(name: str, tmp_path: Path) -> None:
    tiny.write("blendedmvs", tmp_path, count=8)
    scenes = sorted(path for path in tmp_path.iterdir() if path.is_dir())
    for path in (scenes[0] / "cams").glob("*_cam.txt"):
        path.write_text("extrinsic\n1 2\n")
    first, *others = score_benchmark(name, items_of(name, {"blendedmvs": tmp_path}), tmp_path / "run")["rows"]
    assert first["id"] == scenes[0].name and "cam.txt" in first["error"]
    assert others and all("nothing" in row["error"] or "no predictions" in row["error"] for row in others)
    for scene in scenes:
        for path in (scene / "cams").glob("*_cam.txt"):
            path.write_text("extrinsic\n1 2\n")
    with pytest.raises(InputError, match=r"none of 8 .*cam\.txt"):
        items_of(name, {"blendedmvs": tmp_path})


def test_drawn_scenes_are_kept_in_a_folder_of_the_synthetic_world(tmp_path: Path) -> None:
    (drawn,), (kept,) = (items_of("synthetic@3", roots, limit=1) for roots in ({}, {"synthetic": tmp_path}))
    expected = drawn.read()
    for _ in range(2):
        for ours, theirs in zip(kept.read(), expected, strict=True):
            for part in ("image", "depth", "intrinsics", "cam_from_world"):
                np.testing.assert_array_equal(getattr(ours, part), getattr(theirs, part), strict=True)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match="Delete it"):
        kept.read()
