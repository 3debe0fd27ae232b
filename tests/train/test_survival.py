"""Bad steps, bad samples, full disks, kills and contradictions end in a skip, a count or a clear error."""

from __future__ import annotations

import math
import os
import resource
import shutil
import signal
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from toy_training import Killed, final_state, toy_batch, toy_config, toy_loss, toy_model, train_plain, train_toy

from lean3r.errors import LeanError, UsageError
from lean3r.train.checkpoints.state import checkpoints
from lean3r.train.config import OptimConfig, Stage, TrainConfig
from lean3r.train.guard import FEWEST, StepGuard
from lean3r.train.logs.log import EventLog, read_csv, read_events
from lean3r.train.loop import FitResult, fit

STEPS = 24


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lean3r.train.logs.watch.draw_curves", lambda *_: None)


def run_with_bad_steps(out: Path, bad: tuple[int, ...], factor: float, **changes) -> FitResult:
    """The plain toy; on bad steps the loss is `factor` times larger, or the gradient NaN."""

    def loss_fn(model, batch, progress):
        loss, terms = toy_loss(model, batch)
        return loss * (factor if round(progress * STEPS) in bad else 1.0), terms

    config = toy_config(STEPS, precision="fp32", log_every=1, **changes)
    return fit(toy_model(0.0), loss_fn, toy_batch, config, out)


@pytest.mark.parametrize("factor", [1e4, math.nan, math.inf])
def test_bad_steps_are_skipped_counted_and_named(
    tmp_path: Path, factor: float, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = (10, 11)  # late in the first stage, whose norms are known by then
    result = run_with_bad_steps(tmp_path, bad, factor)
    assert (result.step, result.skipped) == (STEPS, 2)
    events = read_events(tmp_path / "events.jsonl")
    assert [(event["step"], event["event"]) for event in events] == [(10, "skipped"), (11, "skipped")]
    word = "exploded" if factor == 1e4 else "not finite"
    assert all(word in event["why"] for event in events)
    assert events[0]["samples"] == ["toy/10000", "toy/10001", "toy/10002"], "the samples that the step saw"
    assert "step 10 skipped" in capsys.readouterr().err
    rows = read_csv(tmp_path / "log.csv")
    assert rows[-1]["skipped"] == "2" and rows[10]["loss"] == "", "a skipped step counts in no mean"
    assert all(value.isfinite().all() for value in load_file(tmp_path / "weights.safetensors").values())


def test_a_skipped_step_moves_nothing(tmp_path: Path) -> None:
    states = []
    for death in (10, 11):
        with pytest.raises(Killed):

            def batch_fn(step, stage, rank, world_size, death=death):
                if step == death:
                    raise Killed
                return toy_batch(step, stage, rank, world_size)

            def loss_fn(model, batch, progress):
                loss, terms = toy_loss(model, batch)
                return loss * (1e9 if round(progress * STEPS) == 10 else 1.0), terms

            config = toy_config(STEPS, precision="fp32", checkpoint_every=1)
            fit(toy_model(0.0), loss_fn, batch_fn, config, tmp_path / str(death))
        states.append(final_state(tmp_path / str(death)))
    before, after = states
    assert (after["step"], after["guard"]["skipped"]) == (11, 1)
    for part in ("model", "ema"):
        assert all(torch.equal(value, after[part][name]) for name, value in before[part].items())


def test_limits_end_the_run_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(LeanError, match=r"3 steps in a row were skipped \(skip_limit_in_row\), the last at step 14"):
        run_with_bad_steps(tmp_path / "row", (12, 13, 14), math.nan, skip_limit_in_row=3)
    with pytest.raises(LeanError, match=r"2 steps of the run were skipped \(skip_limit\).*events\.jsonl"):
        run_with_bad_steps(tmp_path / "all", (3, 9), math.nan, skip_limit=2)
    report = (tmp_path / "all" / "report.md").read_text()
    assert "Ended by skipped steps after 9 of 24 steps" in report and "| skipped steps | 2 |" in report
    assert read_events(tmp_path / "all" / "events.jsonl")[-1]["event"] == "ended"


def test_a_run_of_which_every_step_was_skipped_is_no_success(tmp_path: Path) -> None:
    every = dict(bad=tuple(range(STEPS)), factor=math.nan, skip_limit_in_row=STEPS + 1)
    with pytest.raises(LeanError, match=f"all {STEPS} steps of the run were skipped.*events.jsonl"):
        run_with_bad_steps(tmp_path, **every)
    assert not (tmp_path / "weights.safetensors").exists()
    assert "Ended by skipped steps" in (tmp_path / "report.md").read_text()


def test_the_guard_knows_norms_of_this_stage_only_and_survives_a_resume() -> None:
    guard = StepGuard(toy_config(STEPS, explode_factor=10.0))
    assert not any(guard.problem(1.0, norm) for norm in [5.0, 6.0, 7.0] * FEWEST)
    assert guard.problem(1.0, 59.0) == "" and "exploded: gradient norm 61" in guard.problem(1.0, 61.0)
    other = StepGuard(toy_config(STEPS, explode_factor=10.0))
    other.restore(guard.state())
    assert other.state() == guard.state() and other.problem(1.0, 61.0)
    guard.forget()
    assert guard.problem(1.0, 1e6) == "", "a new stage may have other norms"
    assert StepGuard(toy_config(STEPS, explode_factor=0.0)).problem(1.0, 1e30) == ""


def test_gradients_that_were_zero_so_far_limit_none() -> None:
    guard = StepGuard(toy_config(STEPS))
    assert not any(guard.problem(1.0, norm) for norm in [0.0] * FEWEST + [0.5, 0.4])


def test_a_validation_without_a_number_is_never_the_best(tmp_path: Path) -> None:
    figures = iter([math.nan, 0.5, math.inf, 0.7])
    config = toy_config(STEPS, validate_every=6)
    result = fit(toy_model(), toy_loss, toy_batch, config, tmp_path, validate=lambda _: {"error": next(figures)})
    assert result.best == {"value": 0.5, "step": 12}
    with safe_open(tmp_path / "best.safetensors", "pt") as file:
        assert file.metadata()["step"] == "12"


def test_corrupt_samples_are_counted_over_a_resume(tmp_path: Path) -> None:
    def run(dies_at: int, resume: bool) -> FitResult:
        def batch_fn(step, stage, rank, world_size):
            if step == dies_at:
                raise Killed
            batch = toy_batch(step, stage, rank, world_size)
            return replace(batch, skipped=("scene/7",), unknown=5) if step in (2, 10, 17) else batch

        return fit(toy_model(), toy_loss, batch_fn, toy_config(STEPS), tmp_path, resume=resume)

    with pytest.raises(Killed):
        run(13, False)
    assert run(-1, True).corrupt == 3
    events = read_events(tmp_path / "events.jsonl")
    found = [(e["step"], e["id"]) for e in events if e["event"] == "corrupt sample"]
    assert found == [(2, "scene/7"), (10, "scene/7"), (17, "scene/7")], "step 10 is the first that is repeated"
    last = read_csv(tmp_path / "log.csv")[-1]
    assert (last["corrupt"], last["bad_depth"]) == ("3", "15")


Usage = namedtuple("Usage", "total used free")


def test_a_small_disk_is_refused_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**6, 10**6, 1000))
    with pytest.raises(LeanError, match=r"nearly full: a run that keeps 2 checkpoints takes .* MB"):
        train_toy(tmp_path)
    assert not list(tmp_path.glob("checkpoints/*"))


def test_a_disk_that_fills_keeps_the_old_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        monkeypatch.context() as patch,
        pytest.raises(LeanError, match=r"a checkpoint takes .* Nothing was overwritten"),
    ):
        usage = shutil.disk_usage

        def full_soon(path):
            return Usage(1, 1, 1000) if len(checkpoints(tmp_path / "checkpoints")) == 2 else usage(path)

        patch.setattr(shutil, "disk_usage", full_soon)
        train_toy(tmp_path)
    assert [p.name for p in checkpoints(tmp_path / "checkpoints")] == ["step-000000010.pt", "step-000000005.pt"]
    assert train_toy(tmp_path, resume=True).step == STEPS


def test_a_write_that_fails_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def batch_fn(step, stage, rank, world_size):
        if step == 12:  # from here on no file may grow past 4 kB, which a checkpoint does
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        return toy_batch(step, stage, rank, world_size)

    try:
        with pytest.raises(LeanError, match=r"cannot write .*step-000000015\.pt .*is intact: .*000010\.pt"):
            fit(toy_model(), toy_loss, batch_fn, toy_config(STEPS, log_every=12), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] in (
        ["step-000000010.pt", "step-000000005.pt"],
        ["step-000000005.pt", "step-000000010.pt"],
    )
    result = fit(toy_model(), toy_loss, toy_batch, toy_config(STEPS, log_every=12), tmp_path, resume=True)
    assert result.step == STEPS


def test_a_log_that_cannot_grow_ends_the_run_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lean3r.train.logs.log.CsvLog.append", no_space)
    with pytest.raises(LeanError, match=r"the disk is full .*there is no checkpoint yet"):
        train_toy(tmp_path)


def test_killed_within_the_write_of_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # the threads that earlier tests made torch start are not in this process
        save, calls = torch.save, []

        def torn(state, path) -> None:
            save(state, path)
            calls.append(path)
            if len(calls) == 3:
                os.truncate(path, os.path.getsize(path) // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        torch.save = torn
        train_toy(tmp_path / "killed")
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    folder = tmp_path / "killed" / "checkpoints"
    names = {"step-000000005.pt", "step-000000010.pt", f".step-000000015.pt.{child}.partial"}
    assert {p.name for p in folder.iterdir()} == names
    train_toy(tmp_path / "killed", resume=True)
    train_toy(tmp_path / "whole")
    a, b = final_state(tmp_path / "whole"), final_state(tmp_path / "killed")
    assert all(torch.equal(value, b["ema"][name]) for name, value in a["ema"].items())
    assert not list(folder.glob(".*")), "what the crash left is gone"


def test_keep_last_and_workers_and_where_data_lie_are_free_to_change(tmp_path: Path) -> None:
    def settings(root: str, name: str = "co3dv2") -> dict:
        return {"data": {"sources": [{"name": name, "root": root, "weight": 1.0}]}}

    with pytest.raises(Killed):
        train_plain(tmp_path, dies_at=8, keep_last=1, settings=settings("/scratch/job-1"))
    assert len(checkpoints(tmp_path / "checkpoints")) == 1
    with pytest.raises(UsageError, match=r"settings\.data\.sources\.0\.name"):
        train_plain(tmp_path, resume=True, settings=settings("/scratch/job-2", "dl3dv"))
    train_plain(tmp_path, resume=True, keep_last=3, workers=1, settings=settings("/scratch/job-2"))
    assert len(checkpoints(tmp_path / "checkpoints")) == 3
    train_plain(tmp_path / "whole")
    a, b = (load_file(path / "weights.safetensors") for path in (tmp_path, tmp_path / "whole"))
    assert all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixels": (300, 200)}, r"stage\.pixels is \(300, 200\), expected \(lowest, highest\)"),
        ({"aspect": (0.5, 2.0)}, r"stage\.aspect is .* unless stage\.pixels is set"),
        ({"pixels": (100, 200)}, r"areas of at least one cell of 14 x 14 pixels \(stage\.multiple\)"),
        ({"accumulate": 0}, r"stage\.accumulate is 0, expected at least 1"),
        ({"train": "trunk"}, r"stage\.train is 'trunk', expected a tuple of names"),
    ],
)
def test_stages_that_contradict_themselves(change: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Stage(5, 64, 64, (2,), 4, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shard": "half"}, "shard is 'half', expected 'auto', 'none' or 'full'"),
        ({"explode_factor": 0.5}, r"explode_factor is 0\.5, expected 0 \(no limit\) or a number above 1"),
        ({"keep_last": 0}, "keep_last is 0"),
        ({"best_key": ""}, r"best_mode is 'min', expected 'max' if best_key is empty"),
    ],
)
def test_configs_that_contradict_themselves(change: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        toy_config(STEPS, **change)


def test_new_fields_survive_json() -> None:
    stage = Stage(5, 64, 64, (2,), 4, train=("all",), pixels=(1000, 2000), aspect=(0.5, 2.0), accumulate=2)
    config = TrainConfig("x", 1, (stage,), OptimConfig(warmup_steps=1), shard="full", keep_last=4)
    assert TrainConfig.from_json(config.to_json()) == config


def test_roles_that_train_nothing_are_refused(tmp_path: Path) -> None:
    for stage, message in (
        (Stage(4, 4, 5, (2,), 4, train=("mechanisms",)), "no parameter of the network has the role 'mechanisms'"),
        (Stage(4, 4, 5, (2,), 4, frozen=("stem", "blocks", "head", "unused", "gain")), "trains no parameter"),
    ):
        with pytest.raises(UsageError, match=message):
            config = toy_config(4, stages=(stage,), optim=OptimConfig(warmup_steps=1))
            fit(toy_model(), toy_loss, toy_batch, config, tmp_path)


def test_events_of_later_steps_are_dropped_on_resume(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.append(3, "skipped", why="x")
    log.append(5, "stopped")
    log.append(5, "resumed")
    log.append(5, "skipped", why="the sixth step, which is repeated after five")
    log.append(9, "skipped", why="y")
    with open(path, "a") as file:
        file.write('{"step": 1')  # cut off by a crash
    EventLog(path, after_step=5).append(6, "stopped")
    assert read_events(path) == [
        {"step": 3, "event": "skipped", "why": "x"},
        {"step": 5, "event": "stopped"},
        {"step": 5, "event": "resumed"},
        {"step": 6, "event": "stopped"},
    ]
