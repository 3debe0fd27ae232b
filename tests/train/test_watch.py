"""What a run shows: report, pictures, TensorBoard, bar, columns of the log."""

from __future__ import annotations

import importlib.util
import io
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from toy_training import make_batch, toy_batch, toy_config, toy_loss, toy_model, toy_validate

from lean3r.errors import UsageError
from lean3r.train.logs.log import Progress, read_csv, read_events
from lean3r.train.logs.pictures import draw_depth, side_by_side
from lean3r.train.loop import fit

STEPS = 12


def draw(model: torch.nn.Module) -> np.ndarray:
    assert not model.training
    return np.full((4, 6, 3), 7, np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    config = toy_config(STEPS, pictures_every=5)
    fit(toy_model(), toy_loss, toy_batch, config, out, validate=toy_validate, draw=draw)
    return out


def test_the_folder_describes_itself(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert names >= {"config.json", "log.csv", "validation.csv", "events.jsonl", "loss.png", "report.md", "pictures"}
    assert names >= {"tensorboard", "checkpoints", "best.safetensors", "weights.safetensors"}
    report = (run / "report.md").read_text()
    for part in ("# toy", "Done after 12 of 12 steps", "Best error:", "loss.png", "## Validation", "## Training"):
        assert part in report
    for part in ("pictures/step-000000012.png", "| skipped steps | 0 |", "| torch |", '"warmup_steps": 4', "| cores |"):
        assert part in report
    row = read_csv(run / "log.csv")[-1]
    assert 0 <= float(row["data_wait"]) < 1 and float(row["memory_mb"]) > 50 and row["corrupt"] == "0"


def test_pictures_are_drawn_at_their_interval(run: Path) -> None:
    found = sorted((run / "pictures").iterdir())
    assert [path.name for path in found] == [f"step-{step:09d}.png" for step in (5, 10, 12)]
    assert np.array_equal(np.asarray(Image.open(found[0])), draw(toy_model().eval()))


def test_tensorboard_holds_the_log(run: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    values = {}
    for path in (run / "tensorboard").iterdir():
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                values.setdefault(value.tag, []).append(event.step)
    assert values["train/loss"] == [4, 8, 12] and values["validation/error"] == [8, 12]
    assert values["predictions"] == [5, 10, 12]


def test_without_tensorboard_there_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    absent = ("tensorboard", "matplotlib")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in absent else find(name, *rest))
    fit(toy_model(), toy_loss, toy_batch, toy_config(STEPS), tmp_path)
    said = capsys.readouterr().err
    assert said.count("note: no TensorBoard files") == 1 and "lean3r[train]" in said
    assert "loss.png" not in (tmp_path / "report.md").read_text()


def test_a_stopped_run_reports_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lean3r.train.logs.watch.draw_curves", lambda *_: None)

    def stopped(step, stage, rank, world_size):
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return toy_batch(step, stage, rank, world_size)

    result = fit(toy_model(), toy_loss, stopped, toy_config(STEPS), tmp_path)
    fit(toy_model(), toy_loss, toy_batch, toy_config(STEPS), tmp_path, resume=True)
    events = read_events(tmp_path / "events.jsonl")
    assert events == [
        {"step": result.step, "event": "stopped", "signal": "SIGTERM"},
        {"step": result.step, "event": "resumed", "processes": 1},
    ]
    report = (tmp_path / "report.md").read_text()
    assert "| resumed | 1 |" in report and "Done after 12" in report


def test_wrong_pictures_and_taken_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"float64 \(4, 6\), expected uint8 \[H, W, 3\]"):
        config = toy_config(STEPS, pictures_every=1)
        fit(toy_model(), toy_loss, toy_batch, config, tmp_path / "a", draw=lambda model: np.zeros((4, 6)))

    def loss_fn(model, batch, progress):
        return toy_loss(model, batch)[0], {"data_wait": 1.0}

    with pytest.raises(UsageError, match="a term 'data_wait', which is already a column"):
        fit(toy_model(), loss_fn, toy_batch, toy_config(STEPS), tmp_path / "b")


def test_a_terminal_shows_a_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    progress = Progress(3, 10)
    progress.step(4, 0.5, 120.0, 0.03, 512.0)
    progress._bar.refresh()
    progress.line(4, {"step": 4, "loss": 0.5}, 61.0)
    progress.close()
    said = screen.getvalue()
    assert "4/10" in said and "loss 0.5  120 views/s  data 3%  512 MB" in said
    assert "step 4/10  loss 0.5  left 0:01:01" in said


def test_depth_is_drawn_beside_the_truth_in_its_scale() -> None:
    batch = make_batch([1, 2], 3)
    true = batch.depth.abs() + 1
    true[0, 0, 0, 0] = 0
    batch = SimpleNamespace(images=batch.images, depth=true)

    class Model(torch.nn.Linear):
        def forward(self, views):
            return SimpleNamespace(depth=10 * true[:1].clamp(min=0.1))

    picture = draw_depth(batch, views=2)(Model(1, 1))  # type: ignore[arg-type]
    assert picture.shape == (2 * 4, 3 * 5, 3) and picture.dtype == np.uint8
    ours, theirs = picture[:, 5:10].astype(int), picture[:, 10:].astype(int)
    assert (theirs[0, 0] == 128).all(), "unknown depth is grey"
    assert np.abs(ours - theirs).sum(-1).reshape(-1)[1:].max() <= 3, "another unit of length is the same picture"
    nothing = side_by_side(batch.images[0], torch.full((3, 4, 5), torch.nan), torch.zeros(3, 4, 5))
    assert (nothing[:, 5:] == 128).all()
