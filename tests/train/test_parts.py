"""Config, schedule, optimiser, averages, checkpoints and logs, each by itself."""

from __future__ import annotations

import itertools
import json
import math
import tracemalloc
from pathlib import Path

import pytest
import torch
from torch import nn
from toy_training import toy_config, toy_model

from lean3r.errors import UsageError
from lean3r.train.checkpoints.disk import write_atomically
from lean3r.train.checkpoints.state import KEEP, checkpoints, load_checkpoint, newest_checkpoint, save_checkpoint
from lean3r.train.config import OptimConfig, Stage, TrainConfig, config_diff
from lean3r.train.logs.log import CsvLog, draw_curves, read_csv
from lean3r.train.optim import Ema, GradientBuffer, Muon, Optimizer, goes_to_muon, lr_factor, orthogonalise


def test_config_survives_json_and_finds_stages() -> None:
    config = toy_config(24, settings={"model": {"width": 128}, "textures": None})
    assert TrainConfig.from_json(config.to_json()) == config
    assert [config.stage_index(step) for step in (0, 11, 12, 23)] == [0, 0, 1, 1]
    with pytest.raises(IndexError):
        config.stage_index(24)
    stage = config.stages[0]
    assert [(stage.views_at(s), stage.scenes_at(s)) for s in range(3)] == [(2, 3), (3, 2), (2, 3)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optim": {"leraning_rate": 1}}, "OptimConfig has no entry 'leraning_rate'"),
        ({"sede": 1}, "no entry 'sede'; perhaps 'seed'"),
        ({"stages": []}, "stages is .*expected at least one"),
        ({"stages": [{"steps": 5}]}, "Stage lacks the required entries height, width, views, views_per_step"),
        ({"precision": "fp16"}, "precision is 'fp16', expected 'bf16' or 'fp32'"),
        ({"optim": {"warmup_steps": 99}}, "warmup_steps is 99, expected fewer than the 24"),
        ({"optim": {"lr": -1}}, "optim.lr is -1"),
        ({"log_every": 0}, "log_every is 0"),
    ],
)
def test_config_mistakes_say_what_was_expected(change: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainConfig.from_json(json.dumps(json.loads(toy_config(24).to_json()) | change))


def test_config_mistakes_in_stages() -> None:
    with pytest.raises(UsageError, match="views_per_step is 3, expected at least the largest view count, 4"):
        Stage(5, 64, 64, (2, 4), 3)
    with pytest.raises(UsageError, match=r"stage\.views is"):
        Stage(5, 64, 64, (), 3)
    with pytest.raises(UsageError, match="not JSON"):
        TrainConfig.from_json("{")


def test_config_diff_names_leaves() -> None:
    lines = config_diff({"a": {"b": [1, 2]}, "c": "x"}, {"a": {"b": [1, 3, 4]}, "c": "x"})
    assert lines == ["a.b.1: 2 in the run, 3 now", "a.b.2: absent in the run, 4 now"]


def test_schedule_values() -> None:
    config = OptimConfig(warmup_steps=10, final_lr_ratio=0.1)
    factors = [lr_factor(step, 110, config) for step in range(110)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10] == pytest.approx(1.0)
    assert factors[60] == pytest.approx(0.55)
    assert factors[35] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))
    assert lr_factor(110, 110, config) == pytest.approx(0.1)
    assert lr_factor(0, 1, OptimConfig(warmup_steps=0)) == 1.0


def test_linear_schedule_starts_at_0_and_may_end_in_its_warm_up() -> None:
    config = OptimConfig(warmup_steps=10, final_lr_ratio=0.5, schedule="linear")
    factors = [lr_factor(step, 110, config) for step in (0, 5, 10, 60, 110)]
    assert factors == pytest.approx([0, 0.5, 1, 0.75, 0.5])
    short = TrainConfig("short", 0, (Stage(4, 64, 64, (2,), 2),), config)
    assert [lr_factor(step, short.total_steps, config) for step in range(4)] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert TrainConfig.from_json(short.to_json()) == short


def test_named_parameters_do_not_decay() -> None:
    model = toy_model()
    config = OptimConfig(muon_lr=0.0, weight_decay=0.05, undecayed=("unused", "stem"))
    (part,) = Optimizer(model, config, 10).parts.values()
    names = {id(p): name for name, p in model.named_parameters()}
    decayed = {names[id(p)] for g in part.param_groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {n for n, p in model.named_parameters() if p.ndim > 1 and "unused" not in n and "stem" not in n}
    assert decayed


def test_muon_takes_matrices_of_blocks_only() -> None:
    weights = {"trunk.blocks.0.qkv.weight": (6, 2), "blocks.3.w": (2, 2), "a.blocks.0.norm": (2,), "head.w": (2, 2)}
    assert [goes_to_muon(n, torch.zeros(s)) for n, s in weights.items()] == [True, True, False, False]


@pytest.mark.parametrize("shape", [(3, 12, 40), (2, 40, 16), (1, 24, 60)])
def test_orthogonalise_keeps_directions_and_levels_singular_values(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    result = orthogonalise(matrices).float()
    assert result.shape == matrices.shape
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.5 and values.max() < 1.3
    u, _, vt = torch.linalg.svd(matrices, full_matrices=False)
    cosine = (result * (u @ vt)).sum((1, 2)) / result.norm(dim=(1, 2)) / (u @ vt).norm(dim=(1, 2))
    assert cosine.min() > 0.97


def test_muon_agrees_with_torch() -> None:
    torch.manual_seed(0)
    shapes = [(24, 8), (8, 8), (24, 8), (8, 32)]
    start = [torch.randn(s) for s in shapes]
    ours, theirs = ([nn.Parameter(w.clone()) for w in start] for _ in range(2))
    one = Muon(ours, lr=0.1, weight_decay=0.2)
    two = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.2)
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape)
            b.grad = a.grad.clone()
        one.step()
        two.step()
    for a, b, w in zip(ours, theirs, start, strict=True):
        assert (a - b).norm() < 0.02 * (b - w).norm()  # both orthogonalise in bfloat16


def test_optimizer_groups_rates_and_decay() -> None:
    model = toy_model()
    optimizer = Optimizer(model, OptimConfig(lr=1e-2, muon_lr=1e-1, weight_decay=0.5, warmup_steps=4), 100)
    GradientBuffer(model.parameters())  # zero gradients: only decay moves weights
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer.step(1)  # half of the warm-up
    after = model.state_dict()
    torch.testing.assert_close(after["blocks.0.weight"], before["blocks.0.weight"] * (1 - 0.05 * 0.5))
    torch.testing.assert_close(after["stem.weight"], before["stem.weight"] * (1 - 0.005 * 0.5))
    assert torch.equal(after["stem.bias"], before["stem.bias"])
    assert set(optimizer.state_dict()) == {"adamw", "muon"}
    assert set(Optimizer(model, OptimConfig(muon_lr=0.0), 100).state_dict()) == {"adamw"}


def test_gradient_buffer_holds_every_gradient_and_clips() -> None:
    model = toy_model()
    buffer = GradientBuffer(model.parameters())
    (10 * model(torch.rand(1, 2, 3, 4, 5))).sum().backward()
    separate = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    assert buffer.norm() == pytest.approx(float(separate))
    assert model.unused.weight.grad is not None and not model.unused.weight.grad.any()
    buffer.extra.fill_(5.0)
    buffer.clip(float(buffer.norm()), 1.0)
    assert float(buffer.norm()) == pytest.approx(1.0, rel=1e-5)
    assert buffer.extra.tolist() == [5.0, 5.0]
    buffer.clip(float(buffer.norm()), 2.0)
    assert float(buffer.norm()) == pytest.approx(1.0, rel=1e-5)
    buffer.zero()
    assert not any(p.grad.any() for p in model.parameters())


def test_ema_follows_its_definition() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.register_buffer("count", torch.zeros((), dtype=torch.long))
    ema, expected = Ema(model, 0.5), model.weight.item()
    for step in range(30):
        with torch.no_grad():
            model.weight.fill_(float(step))
        model.count += 1
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert float(ema.model.weight) == pytest.approx(expected)
    assert int(ema.model.count) == 30
    assert not ema.model.weight.requires_grad and not ema.model.training


def test_checkpoints_keep_the_last_ones(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None
    for step in (5, 10, 1000, 15):
        save_checkpoint(tmp_path, step, {"step": step})
    assert len(checkpoints(tmp_path)) == KEEP
    assert load_checkpoint(tmp_path) == {"step": 1000}


def test_damaged_checkpoints_are_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1, 2):
        path = save_checkpoint(tmp_path, step, {"step": step, "weights": torch.arange(5000)})
    whole = path.read_bytes()
    (tmp_path / ".step-000000003.pt.partial").write_bytes(whole[:100])
    for damaged in (whole[: len(whole) // 2], b"", whole[:20000] + b"\xff" + whole[20001:]):
        path.write_bytes(damaged)
        state = load_checkpoint(tmp_path)
        assert state is not None and state["step"] == 1
        assert "step-000000002.pt is damaged" in capsys.readouterr().err
    path.write_bytes(whole)
    assert (load_checkpoint(tmp_path) or {})["step"] == 2


def test_a_damaged_checkpoint_of_a_later_step_does_not_displace_those_of_the_run(tmp_path: Path) -> None:
    """The run began anew: each of its checkpoints was removed as soon as it was written."""
    save_checkpoint(tmp_path, 1000, {"step": 1000}).write_bytes(b"damaged")
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, {"step": step}, keep=1)
        assert load_checkpoint(tmp_path) == {"step": step}
    assert [path.stem for path in checkpoints(tmp_path)] == ["step-000001000", "step-000000003"]
    save_checkpoint(tmp_path, 1001, {"step": 1001}, keep=1)
    assert [path.stem for path in checkpoints(tmp_path)] == ["step-000001001"]


def test_checking_a_checkpoint_takes_no_memory_of_its_size(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, {"weights": torch.zeros(2_500_000)})
    tracemalloc.start()
    assert newest_checkpoint(tmp_path) == path
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < path.stat().st_size / 4


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_log_takes_new_columns_and_drops_rows_after_the_resumed_step(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    log = CsvLog(path)
    log.append({"step": 10, "loss": 0.5})
    log.append({"step": 20, "loss": 0.25, "focal": 1e-7})
    log.append({"step": 30, "loss": 0.2})
    with open(path, "a") as file:
        file.write("40,0.1")  # cut off by a crash
    CsvLog(path, after_step=20).append({"step": 30, "loss": 0.125, "focal": 2.0})
    assert read_csv(path) == [
        {"step": "10", "loss": "0.5", "focal": ""},
        {"step": "20", "loss": "0.25", "focal": "1e-07"},
        {"step": "30", "loss": "0.125", "focal": "2"},
    ]
    CsvLog(path, after_step=0)
    assert read_csv(path) == []


def test_curves_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    log, validation = CsvLog(tmp_path / "log.csv"), CsvLog(tmp_path / "validation.csv")
    for step in range(1, 6):
        log.append({"step": step, "loss": 1 / step, "a": 1.0, "b": 2.0, "c": 3.0, "d": float(step)})
    validation.append({"step": 5, "auc": 0.5})
    draw_curves(log.path, validation.path, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "empty").mkdir()
    draw_curves(tmp_path / "no", tmp_path / "no", tmp_path / "empty" / "loss.png")
    assert not any((tmp_path / "empty").iterdir())
