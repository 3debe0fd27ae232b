"""The loop can be trusted: killed and resumed runs, several processes, skipped steps, what is written."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from toy_training import (
    Killed,
    assert_same_run,
    final_state,
    refuse,
    toy_batch,
    toy_config,
    toy_loss,
    toy_model,
    toy_validate,
    train_toy,
)

from lean3r.errors import LeanError, UsageError
from lean3r.train.checkpoints.state import checkpoints, lock_folder
from lean3r.train.config import OptimConfig, Stage, TrainConfig
from lean3r.train.distributed import current_world, launch
from lean3r.train.logs.log import read_csv
from lean3r.train.loop import fit, step_seed

STEPS = 24


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model only suffers from more, and processes of one thread are compared with it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    result = train_toy(out)
    assert (result.step, result.stopped_by, result.exit_code) == (STEPS, None, 0)
    return out


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole run above draws its curves; the others need not."""
    monkeypatch.setattr("lean3r.train.logs.watch.draw_curves", lambda *_: None)


@pytest.mark.parametrize("death", [3, 13, 22])
def test_crash_and_resume_is_bit_equal(whole: Path, tmp_path: Path, death: int) -> None:
    with pytest.raises(Killed):
        train_toy(tmp_path, dies_at=death)
    torch.manual_seed(death)  # whatever happened before must not matter
    train_toy(tmp_path, resume=True)
    assert_same_run(whole, tmp_path)
    assert len(read_csv(tmp_path / "log.csv")) == STEPS // 4


def start(out: Path, processes: int) -> subprocess.Popen:
    program = Path(__file__).with_name("toy_training.py")
    return subprocess.Popen([sys.executable, program, out, str(processes), "3000"], stderr=subprocess.DEVNULL)


def wait_for_checkpoint(out: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 90
    while not checkpoints(out / "checkpoints"):
        assert process.poll() is None and time.monotonic() < deadline, f"no checkpoint; exit code {process.poll()}"
        time.sleep(0.01)


def test_sigkill_at_any_moment_and_resume_is_bit_equal(tmp_path: Path) -> None:
    process = start(tmp_path / "killed", 1)
    wait_for_checkpoint(tmp_path / "killed", process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    reached = final_state(tmp_path / "killed")
    whole = tmp_path / "whole"
    with pytest.raises(Killed):  # the same run, up to the same step
        train_toy(whole, steps=3000, dies_at=reached["step"] + 7)
    with pytest.raises(Killed):
        train_toy(tmp_path / "killed", resume=True, steps=3000, dies_at=reached["step"] + 7)
    a, b = final_state(whole), final_state(tmp_path / "killed")
    assert a["step"] == b["step"] > reached["step"]
    assert all(torch.equal(value, b["ema"][name]) for name, value in a["ema"].items())


def test_a_signal_ends_all_processes_after_a_checkpoint(tmp_path: Path) -> None:
    process = start(tmp_path, 2)
    wait_for_checkpoint(tmp_path, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    state = final_state(tmp_path)
    assert 0 < state["step"] < 3000 and state["processes"] == 2
    with pytest.raises(UsageError, match="processes: 2 in the run, 1 now"):
        train_toy(tmp_path, resume=True, steps=3000)


def test_interrupt_finishes_the_step_and_resumes(whole: Path, tmp_path: Path) -> None:
    def interrupted(step, stage, rank, world_size):
        if step == 10:
            os.kill(os.getpid(), signal.SIGINT)
        return toy_batch(step, stage, rank, world_size)

    result = fit(toy_model(), toy_loss, interrupted, toy_config(STEPS), tmp_path, validate=toy_validate)
    assert result.exit_code == 130 and 11 <= result.step <= 12
    assert final_state(tmp_path)["step"] == result.step
    train_toy(tmp_path, resume=True)
    assert_same_run(whole, tmp_path)


@pytest.mark.parametrize("at", [16, STEPS])
def test_a_signal_ends_a_validation_at_once_and_it_is_repeated(whole: Path, tmp_path: Path, at: int) -> None:
    asked: list[int] = []

    def slow(model: torch.nn.Module) -> dict[str, float]:
        asked.append(8 * len(asked) + 8)
        if asked[-1] == at:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(600)
        return toy_validate(model)

    result = fit(toy_model(), toy_loss, toy_batch, toy_config(STEPS), tmp_path, validate=slow)
    assert (result.step, result.exit_code) == (at, 143) and asked[-1] == at
    assert not (tmp_path / "weights.safetensors").exists(), "a phase that is not judged is not done"
    assert final_state(tmp_path)["step"] == at and len(read_csv(tmp_path / "validation.csv")) == at // 8 - 1
    train_toy(tmp_path, resume=True)
    assert_same_run(whole, tmp_path)


def test_a_signal_after_the_last_step_stops_later_phases(whole: Path, tmp_path: Path) -> None:
    def draw(model: torch.nn.Module) -> np.ndarray:
        os.kill(os.getpid(), signal.SIGTERM)
        return np.zeros((4, 6, 3), np.uint8)

    config = toy_config(STEPS, pictures_every=STEPS)
    result = fit(toy_model(), toy_loss, toy_batch, config, tmp_path, validate=toy_validate, draw=draw)
    assert (result.step, result.exit_code) == (STEPS, 143)
    assert_same_run(whole, tmp_path)


def signalled(result: int) -> int:
    """On each process of a group: its starter is told to end, and this one does as if it had not heard of it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    current_world().gather(None)
    if current_world().is_main:
        os.kill(os.getppid(), signal.SIGTERM)
    return result


def test_a_signal_missed_by_a_finished_group_stops_later_phases() -> None:
    with pytest.raises(SystemExit) as ended:
        launch(2, signalled, 0)
    assert ended.value.code == 143
    assert launch(2, signalled, 7) == 7, "the code of a run that did hear of it"


def test_batches_are_prepared_once_in_their_order_and_two_ahead_for_each_worker(tmp_path: Path) -> None:
    calls: list[tuple[int, int, int]] = []
    used: list[int] = []
    ahead: list[int] = []
    ready = threading.Event()

    def batch_fn(step, stage, rank, world_size):
        calls.append((step, rank, world_size))
        if len(calls) >= 5:
            ready.set()
        return toy_batch(step, stage, rank, world_size)

    def loss_fn(model, batch, progress):
        assert ready.wait(20), "both workers go on while a batch is used"
        ahead.append(len(calls) - len(used))
        used.append(1)
        return toy_loss(model, batch)

    stages = (Stage(4, 4, 5, (2,), 4, accumulate=3), Stage(6, 4, 5, (2,), 4))
    fit(toy_model(), loss_fn, batch_fn, toy_config(10, stages=stages, workers=2), tmp_path)
    wanted = [(step, part, 3) for step in range(4) for part in range(3)] + [(step, 0, 1) for step in range(4, 10)]
    assert sorted(calls) == wanted, "each batch once, none in vain"
    assert max(ahead) <= 1 + 2 * 2


def test_validation_can_be_switched_off(tmp_path: Path) -> None:
    fit(toy_model(), toy_loss, toy_batch, toy_config(STEPS, validate_every=0), tmp_path, validate=refuse)  # type: ignore[arg-type]
    assert (tmp_path / "weights.safetensors").exists() and not (tmp_path / "validation.csv").exists()
    fit(
        toy_model(), toy_loss, toy_batch, toy_config(STEPS, validate_every=10**9), tmp_path / "b", validate=toy_validate
    )
    assert [row["step"] for row in read_csv(tmp_path / "b" / "validation.csv")] == [str(STEPS)], "at the end"


def test_what_a_run_leaves_behind(whole: Path) -> None:
    names = {path.name for path in whole.iterdir()}
    assert names >= {"config.json", "log.csv", "validation.csv", "loss.png", "weights.safetensors", "best.safetensors"}
    assert not [name for name in names if name.endswith(".partial")]
    assert len(checkpoints(whole / "checkpoints")) == 2
    assert TrainConfig.from_json((whole / "config.json").read_text()) == toy_config(STEPS)
    with safe_open(whole / "weights.safetensors", "pt") as file:
        assert file.metadata()["step"] == str(STEPS)
        assert json.loads(file.metadata()["config"])["name"] == "toy"
    validation = {int(row["step"]): float(row["error"]) for row in read_csv(whole / "validation.csv")}
    best = final_state(whole)["best"]
    assert validation[best["step"]] == min(validation.values())
    rows = read_csv(whole / "log.csv")
    assert float(rows[-1]["error"]) < 0.9 * float(rows[0]["error"])
    assert {"step", "seconds", "loss", "grad_norm", "lr", "views_per_s", "skipped"} <= rows[0].keys()


def test_weights_are_the_running_average(whole: Path) -> None:
    model, average, weights = toy_model(), load_file(whole / "weights.safetensors"), final_state(whole)["model"]
    assert any(not torch.equal(average[name], weights[name]) for name in weights)
    model.load_state_dict(average)
    assert toy_validate(model.eval())["error"] == pytest.approx(float(read_csv(whole / "validation.csv")[-1]["error"]))


def test_frozen_parameters_stay_constant_in_their_stage_only(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train_toy(tmp_path, dies_at=11)
    start_weights, middle = toy_model().state_dict(), final_state(tmp_path)["model"]
    assert torch.equal(middle["stem.weight"], start_weights["stem.weight"])
    assert not torch.equal(middle["head.weight"], start_weights["head.weight"])
    train_toy(tmp_path, resume=True)
    assert not torch.equal(final_state(tmp_path)["model"]["stem.weight"], start_weights["stem.weight"])
    config = toy_config(4, stages=(Stage(4, 4, 4, (1,), 2, frozen=("stam",)),), optim=OptimConfig(warmup_steps=1))
    with pytest.raises(UsageError, match=r"'stam'.*stem"):
        fit(toy_model(), toy_loss, toy_batch, config, tmp_path / "b")


def test_stage_overrides_reach_the_loss(tmp_path: Path) -> None:
    stages = (Stage(1, 4, 5, (2,), 4), Stage(1, 4, 5, (2,), 4, loss={"scale": 10.0}))
    fit(
        toy_model(),
        toy_loss,
        toy_batch,
        toy_config(2, stages=stages, log_every=1, optim=OptimConfig(warmup_steps=0)),
        tmp_path,
    )
    ratios = [float(row["loss"]) / float(row["error"]) for row in read_csv(tmp_path / "log.csv")]
    assert ratios == pytest.approx([1.0, 10.0], rel=1e-4)


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_steps_that_are_not_finite_are_skipped_and_counted(tmp_path: Path, poison: str) -> None:
    def loss_fn(model, batch, progress):
        loss, terms = toy_loss(model, batch)
        if loss_fn.calls in (2, 3):
            # The square root of 0 has an infinite slope, and 0 times that is NaN in the gradient alone.
            loss = loss * math.inf if poison == "loss" else loss + (0 * model.head.weight).sum().abs().sqrt()
        loss_fn.calls += 1
        return loss, terms

    loss_fn.calls = 0
    result = fit(toy_model(), loss_fn, toy_batch, toy_config(STEPS), tmp_path)
    assert (result.skipped, result.step) == (2, STEPS)
    assert all(value.isfinite().all() for value in load_file(tmp_path / "weights.safetensors").values())
    assert all(math.isfinite(float(row["loss"])) for row in read_csv(tmp_path / "log.csv"))


def test_too_many_bad_steps_end_the_run(tmp_path: Path) -> None:
    def loss_fn(model, batch, progress):
        return toy_loss(model, batch)[0] * math.nan, {}

    with pytest.raises(LeanError, match="20 steps in a row"):
        fit(toy_model(), loss_fn, toy_batch, toy_config(40), tmp_path)


def test_resume_refuses_another_config_and_a_new_run_a_used_folder(whole: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole, tmp_path / "run")  # a run that goes on writes its new configuration
    with pytest.raises(UsageError, match="already holds a training run"):
        train_toy(run)
    other = toy_config(STEPS, seed=4, optim=OptimConfig(warmup_steps=4, ema_decay=0.9, lr=0.5))
    with pytest.raises(UsageError, match=r"optim\.lr: 0\.01 in the run, 0\.5 now; seed: 3 in the run, 4 now"):
        fit(toy_model(), toy_loss, toy_batch, other, run, resume=True)
    free = toy_config(STEPS, log_every=1, checkpoint_every=7)
    assert fit(toy_model(), toy_loss, toy_batch, free, run, resume=True).step == STEPS


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    with lock_folder(tmp_path), pytest.raises(UsageError, match="another run"), lock_folder(tmp_path, patience_s=0):
        pass


def test_unknown_best_key_names_the_figures(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'auc'.*error"):
        fit(toy_model(), toy_loss, toy_batch, toy_config(8, best_key="auc"), tmp_path, validate=toy_validate)


def test_launch_reports_errors_of_its_processes() -> None:
    with pytest.raises(UsageError, match="wrong wish"):
        launch(2, refuse, "wrong wish")
    with pytest.raises(UsageError, match="0 processes"):
        launch(0, refuse, "")
    assert launch(1, os.getpid) == os.getpid()


def test_seeds_differ_by_step_rank_and_run() -> None:
    seeds = {step_seed(run, step, rank) for run in range(3) for step in range(50) for rank in range(4)}
    assert len(seeds) == 600 and all(0 <= seed < 2**63 for seed in seeds)
