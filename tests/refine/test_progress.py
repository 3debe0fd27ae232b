"""The refining process says how far it is, and whoever waits for it is told."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from lean3r.inputs.pictures import Pictures
from lean3r.pipeline.observer import Observer
from lean3r.pipeline.refining import refine_scene
from lean3r.refine import RefineOptions, progress, run

sys.path.insert(0, str(Path(__file__).parent))
import scenes

Told = list[tuple[str, int, int]]


def test_what_was_said_last_is_told_and_a_step_that_is_done_is_over(tmp_path: Path) -> None:
    told: Told = []
    progress.tell_of(tmp_path, lambda *step: told.append(step))
    for done in (1, 2, 3, 300):
        progress.say(tmp_path, progress.MATCHES, done, 300)
        progress.tell_of(tmp_path, lambda *step: told.append(step))
    (tmp_path / progress.FILE).write_text("damaged")
    progress.tell_of(tmp_path, lambda *step: told.append(step))
    assert told == [("matches", 3, 300), ("refinement", 0, 0)], "less than a hundredth is not said"


def test_a_process_that_works_is_asked_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: Told = []
    code = "import sys, time; time.sleep(1.5)"
    monkeypatch.setattr(run, "python_command", lambda *_: [sys.executable, "-c", code])
    monkeypatch.setattr(run, "EVERY", 0.1)
    progress.say(tmp_path, progress.FEATURES, 16, 200)
    assert run.work(tmp_path, 60.0, tell=lambda *step: told.append(step)) is None
    assert len(told) > 2 and set(told) == {("features", 16, 200)}
    assert run.work(tmp_path, 0.3, tell=lambda *_: None) == run.TIME_UP


def test_ctrl_c_keeps_what_was_found_by_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poses = scenes.arc(4)
    scenes.write(poses, tmp_path)
    work = run.work

    def stopped(*arguments: Any, **options: Any) -> None:
        work(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "work", stopped)
    after = refine_scene(scenes.scene(poses), Pictures(tmp_path), RefineOptions(seconds=600.0), None, None, Observer())
    report = after.info["refinement"]
    assert report["status"] in ("refined", "fallback") and report["reason"] == "interrupted"
    assert [told["code"] for told in after.info["warnings"]] == ["unfinished"]
    assert after.registration == (report["status"],) * 4
