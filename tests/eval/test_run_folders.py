"""Runs: predictions first, whatever happens to the program; scores from the files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from programs import Walk

from lean3r.errors import InputError, LeanError, UsageError, WeightsError
from lean3r.eval.protocols.items import Item, NoiseItem
from lean3r.eval.runs import folder
from lean3r.eval.runs.predicting import Task, predict_all
from lean3r.eval.runs.scoring import listing, score_benchmark

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


def test_a_full_disk_ends_the_run_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the disk is full"):
        predict(tmp_path / "run", Walk("disk", "s1v0"))
    assert (tmp_path / "run/synthetic/s0/predictions.npz").is_file()
    assert not (tmp_path / "run/synthetic/s1/item.json").exists(), "it is no failure of the scene"


def test_a_program_that_does_not_start_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="missing"):
        predict(tmp_path / "run", Walk("no weights"))
    with pytest.raises(LeanError, match="signal 9"):
        predict(tmp_path / "run", Walk("dies at once"))
    assert not list((tmp_path / "run").iterdir())


def test_a_run_keeps_its_configuration(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config: dict[str, Any] = {"format": 1, "model": "a", "plan": None, "weights": "x", "settings": {}}
    config["benchmarks"] = {"synthetic": {"items": [{"id": "a"}, {"id": "b"}]}}
    run.mkdir()
    folder.begin(run, config, overwrite=False)
    for change in ({"model": "b"}, {"weights": "y"}, {"settings": {"refine": "on"}}):
        with pytest.raises(UsageError, match="another configuration"):
            folder.begin(run, config | change, overwrite=False)
    for others in ("b", "ac", "ba", "acb"):
        items = [{"id": name} for name in others]
        with pytest.raises(UsageError, match="other items"):
            folder.begin(run, config | {"benchmarks": {"synthetic": {"items": items}}}, overwrite=False)
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
