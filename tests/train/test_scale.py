"""One run on one process or several, copied or sharded, gives the same losses, and can change between them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.multiprocessing.spawn import ProcessExitedException
from toy_training import (
    assert_same_run,
    dies_while_writing,
    final_state,
    make_batch,
    plain_config,
    several_runs,
    toy_loss,
    toy_model,
    train_nano,
    train_plain,
)

from lean3r.errors import UsageError
from lean3r.train.checkpoints.state import checkpoints, newest_checkpoint
from lean3r.train.config import on_processes
from lean3r.train.distributed import World, launch
from lean3r.train.logs.log import read_csv, read_events
from lean3r.train.sharding import Call, blocks_of, checkpointed, is_sharded


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lean3r.train.logs.watch.draw_curves", lambda *_: None)


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("group")
    world = launch(2, several_runs, out)
    assert (world.rank, world.size) == (0, 2)
    return out


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plain run on one process, which draws two batches a step."""
    out = tmp_path_factory.mktemp("one")
    train_plain(out, stages=on_processes(plain_config(), 2, 1).stages)
    return out


pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def assert_same_losses(one: Path, other: Path) -> None:
    for name, columns in (("log.csv", ("loss", "error", "grad_norm", "lr")), ("validation.csv", ("error",))):
        rows, others = read_csv(one / name), read_csv(other / name)
        assert [row["step"] for row in rows] == [row["step"] for row in others]
        for column in columns:
            ours, theirs = ([float(row[column]) for row in part] for part in (rows, others))
            assert ours == pytest.approx(theirs, rel=2e-4), column
    weights, others = load_file(one / "weights.safetensors"), load_file(other / "weights.safetensors")
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        # Muon orthogonalises in bfloat16, which turns a rounding of the gradient into 2^-8 of a step.
        torch.testing.assert_close(others[name], value, rtol=0, atol=3e-4)


def test_crash_and_resume_of_two_processes_is_bit_equal(group: Path) -> None:
    assert_same_run(group / "whole", group / "killed")


@pytest.mark.parametrize("run", ["copied", "sharded", "again", "none-full", "full-none", "full-full"])
def test_two_processes_equal_one_that_accumulates(group: Path, one: Path, run: str) -> None:
    assert_same_losses(one, group / run)


def test_a_real_model_is_sharded_and_checkpointed_without_changing_its_losses(group: Path, tmp_path: Path) -> None:
    train_nano(tmp_path, 2, shard="none")
    ours, theirs = read_csv(tmp_path / "log.csv"), read_csv(group / "nano" / "log.csv")
    for column in ("loss", "grad_norm", "depth", "rotation"):
        assert [float(row[column]) for row in theirs] == pytest.approx([float(row[column]) for row in ours], rel=1e-3)


def test_sharded_runs_resume_bit_by_bit(group: Path) -> None:
    a, b = load_file(group / "sharded" / "weights.safetensors"), load_file(group / "full-full" / "weights.safetensors")
    assert all(torch.equal(value, b[name]) for name, value in a.items())
    whole = final_state(group / "sharded")
    assert whole["step"] == 10 and whole["optimizer"]["muon"]["state"]


def test_a_bad_step_of_one_process_is_skipped_by_all(group: Path, tmp_path: Path) -> None:
    train_plain(tmp_path, bad_at=6, stages=on_processes(plain_config(), 2, 1).stages)
    for how in ("none", "full"):
        (event,) = read_events(group / f"bad-{how}" / "events.jsonl")
        assert (event["step"], event["event"]) == (6, "skipped") and "not finite" in event["why"]
        assert len(event["samples"]) == sum("toy/6" in name for name in event["samples"]) > 1, "those of both processes"
        ours, theirs = (load_file(out / "weights.safetensors") for out in (tmp_path, group / f"bad-{how}"))
        for name, value in ours.items():
            torch.testing.assert_close(theirs[name], value, rtol=0, atol=3e-4)


def test_checkpoints_of_sharded_runs_are_folders(group: Path) -> None:
    names = {run: [p.name for p in checkpoints(group / run / "checkpoints")] for run in ("copied", "sharded")}
    assert names["copied"] == ["step-000000010.pt", "step-000000009.pt"]
    assert names["sharded"] == ["step-000000010", "step-000000009"]
    a, b = final_state(group / "copied"), final_state(group / "sharded")
    assert a["model"].keys() == b["model"].keys() and a["ema"].keys() == b["ema"].keys()
    assert {k: v["state"].keys() for k, v in a["optimizer"].items()} == {
        k: v["state"].keys() for k, v in b["optimizer"].items()
    }


def test_a_sharded_run_resumes_on_one_process_past_a_damaged_checkpoint(
    group: Path, one: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = group / "to-one"
    newest = checkpoints(out / "checkpoints")[0]
    with pytest.raises(UsageError, match="processes: 2 in the run, 1 now"):
        train_plain(out, resume=True)
    part = next(newest.glob("*.distcp"))
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 255
    part.write_bytes(data)
    train_plain(out, resume=True, stages=on_processes(plain_config(), 2, 1).stages)
    assert f"{newest.name} is damaged" in capsys.readouterr().err
    assert_same_losses(one, out)


def test_killed_within_a_sharded_checkpoint(one: Path, tmp_path: Path) -> None:
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        launch(2, dies_while_writing, tmp_path)
    folder = tmp_path / "checkpoints"
    assert {p.name for p in folder.iterdir()} == {"step-000000003", ".step-000000006.partial"}
    newest = newest_checkpoint(folder)
    assert newest is not None and newest.name == "step-000000003"
    train_plain(tmp_path, resume=True, stages=on_processes(plain_config(), 2, 1).stages)
    assert_same_losses(one, tmp_path)
    assert not list(folder.glob(".*")), "what the crash left is gone"


def test_accumulated_dropout_equals_that_of_as_many_processes(tmp_path: Path) -> None:
    stages = on_processes(plain_config(), 2, 1).stages
    for name, part in (("a", stages), ("b", stages)):
        train_plain(tmp_path / name, dropout=0.2, stages=part)
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_processes_must_share_a_step_evenly() -> None:
    config = on_processes(plain_config(), 6, 2)
    assert [stage.accumulate for stage in config.stages] == [3, 3]
    with pytest.raises(UsageError, match="processes is 4, expected a divisor of the 6 batches"):
        on_processes(config, 2, 4)


def test_checkpointing_changes_no_gradient_and_leaves_nothing_behind() -> None:
    model, batch, calls = toy_model(dropout=0.3), make_batch([1, 2], 2), []
    blocks = blocks_of(model)
    assert blocks == list(model.blocks)
    blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    grads = []
    for again in (False, True):
        model.zero_grad()
        torch.manual_seed(5)
        if again:
            with checkpointed(model):
                loss, _ = Call(model)(toy_loss, batch)
        else:
            loss, _ = Call(model)(toy_loss, batch)
        loss.backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert all("forward" not in vars(block) for block in blocks) and len(calls) == 2


def test_auto_shards_only_if_memory_requires_it() -> None:
    cpu = torch.device("cpu")
    model = nn.Linear(2, 2)
    assert not is_sharded("auto", model, World(0, 2), cpu)
    assert is_sharded("full", model, World(0, 2), cpu)
    assert not is_sharded("full", model, World(0, 1), cpu), "one process has nobody to share with"
    assert not is_sharded("none", model, World(0, 2), cpu)
