"""The GPU run book, without a GPU: all of it runs where only torch is installed, goes on, and loses nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from lean3r.models.checkpoint import load_weights
from lean3r.models.nano import Nano, NanoConfig

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "gpu"
PARTS = ("smoke", "layer", "fp8_linears", "pi3", "stream_steps", "vggt", "da3-large", "train", "one_step")


def run_all(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """A dry run in a Python that lacks everything but torch, triton, numpy and safetensors."""
    pytest.importorskip("triton", reason="triton is not installed")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    bare = os.environ | {"PATH": path, "PYTHONPATH": str(Path(__file__).parent / "bare")}
    command = ["bash", str(FOLDER / "run_all.sh"), "--dry-run", "--out", str(out), *options]
    return subprocess.run(command, capture_output=True, text=True, env=bare)


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]


def results(rows: list[dict]) -> list[dict]:
    return [row for row in rows if "row" in row and "started" not in row]


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one dry run of everything leaves."""
    out = tmp_path_factory.mktemp("gpu") / "results of a dry run"
    run = run_all(out)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return out


@pytest.fixture
def book(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/gpu/rows.py; the path is that of run_all.sh."""
    pytest.importorskip("triton", reason="triton is not installed")
    monkeypatch.syspath_prepend(str(FOLDER.parent))
    monkeypatch.syspath_prepend(str(FOLDER))
    import rows

    return rows


def test_a_bare_python_lacks_what_the_image_lacks() -> None:
    code = "import importlib.util as u, torch, safetensors; print([n for n in NAMES if u.find_spec(n)]);"
    code += "from importlib.metadata import distributions as d; print('lean3r' in [x.name for x in d()])"
    names = ("tyro", "av", "pycolmap", "trimesh", "PIL", "cv2", "scipy", "matplotlib", "rich", "h5py", "tensorboard")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent / "bare")}
    command = [sys.executable, "-c", code.replace("NAMES", repr(names))]
    assert subprocess.run(command, capture_output=True, text=True, env=environment).stdout == "[]\nFalse\n"


def test_every_part_runs_and_every_row_says_where(dry: Path) -> None:
    found = results(rows_of(dry))
    assert {row["part"] for row in found} == set(PARTS)
    assert not [row for row in found if "failed" in row]
    assert all({"device", "torch", "triton"} <= row.keys() for row in found)
    assert all("peak_gb" in row or row["device"] == "cpu" for row in found)
    sparse = [row for row in found if row["part"] in ("smoke", "layer") and "sparse pass" in row["row"]]
    assert sparse and all(row["configurations"] for row in sparse)
    assert "cut short" not in (dry / "summary.md").read_text()


def test_every_kernel_is_checked(dry: Path) -> None:
    errors = {row["row"]: row["output"] for row in results(rows_of(dry)) if row["part"] == "smoke" and "output" in row}
    kernels = {path.parent.name for path in (ROOT / "lean3r" / "ops").glob("*/kernel*.py")}
    checked = " ".join(errors)
    assert all({"fp8": "quantize_rows"}.get(kernel, kernel) in checked for kernel in kernels)
    assert max(errors.values()) < 5e-3


def test_a_layer_is_taken_apart(dry: Path) -> None:
    rows = {row["row"]: row for row in results(rows_of(dry)) if row["part"] == "layer"}
    parts = rows["2 views, 5 special, gsa"]["parts_ms"]
    assert len(parts) == 6 and all(value > 0 for value in parts.values())
    assert sum(parts.values()) < 1.5 * rows["2 views, 5 special, gsa"]["ms"] + 1000
    assert rows["2 views, 0 special, gsa"]["parts_ms"]["special queries"] == 0
    assert rows["2 views, 0 special, gsa, two levels of 64"]["parts_ms"]["selection"] > 0


def test_dense_beyond_the_time_is_extrapolated_and_says_so(dry: Path) -> None:
    for name in ("pi3", "vggt", "da3-large"):
        rows = [row for row in results(rows_of(dry)) if row["part"] == name]
        (row,) = [row for row in rows if row.get("extrapolated")]
        wanted = 1e3 * (row["a"] * row["views"] + row["b"] * row["views"] ** 2)
        assert row["law"] == "seconds = a n + b n^2" and abs(row["ms"] - wanted) < 0.1 and len(row["measured"]) == 2
        assert any(found.get("dense_extrapolated") for found in rows)


def test_trained_weights_come_back_small(dry: Path) -> None:
    model = Nano(NanoConfig(width=32, heads=1))
    load_weights(model, dry / "nano.safetensors")
    assert (dry / "nano.safetensors").stat().st_size < 0.6 * 4 * sum(p.numel() for p in model.state_dict().values())


def test_what_is_there_is_not_done_again(dry: Path) -> None:
    before = (dry / "rows.jsonl").read_text()
    assert run_all(dry).returncode == 0
    assert (dry / "rows.jsonl").read_text() == before


def test_a_failing_part_does_not_stop_the_next_and_goes_on_later(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        '{"part": "fp8_linears", "row": "32 views, qkv", "ms": 1.0}\n'
        '{"part": "fp8_linears", "row": "32 views, projection", "started": true}\n'
        '{"part": "fp8_linears", "row": "32 views, projection", "started": true}\n'
        '{"part": "fp8_linears", "row": "32 views, into the feed'  # killed while it wrote
    )
    (tmp_path / "nano.safetensors").mkdir()  # a file in the way: training fails
    run = run_all(tmp_path, "--parts", "train fp8_linears")
    lines = [line for line in (tmp_path / "rows.jsonl").read_text().splitlines() if line.endswith("}")]
    rows = [json.loads(line) for line in lines]
    last = {row["row"]: row for row in results(rows) if row["part"] == "fp8_linears"}
    assert run.returncode == 1
    assert last["32 views, qkv"]["ms"] == 1.0  # as it was
    assert last["32 views, projection"]["failed"] == "cut short 2 times"
    assert (
        "bf16_ms" in last["32 views, into the feed-forward part"] and "bf16_ms" in last["32 views, feed-forward part"]
    )
    text = (tmp_path / "summary.md").read_text()
    assert "- fp8_linears, 32 views, projection: cut short 2 times" in text and "- train, nano-coarse: " in text


@pytest.mark.parametrize(("there", "options"), [("cpu", []), ("NVIDIA H200", ["--dry-run"]), ("NVIDIA H200 NVL", [])])
def test_a_dry_run_and_two_cards_share_no_folder(there: str, options: list[str], tmp_path: Path) -> None:
    """The parts of another device passed for done: a call on a GPU measured nothing and said that all was well."""
    pytest.importorskip("triton", reason="triton is not installed")
    row = {"part": "fp8_linears", "row": "32 views, qkv", "device": there, "ms": 1.0}
    lines = json.dumps(row) + '\n{"part": "fp8_linears", "exit": 0, "seconds": 1}\n'
    (tmp_path / "rows.jsonl").write_text(lines)
    (card := tmp_path / "python3").write_text("#!/bin/sh\necho NVIDIA H200\n")  # asked for the card's name
    card.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", str(FOLDER / "run_all.sh"), "--out", str(tmp_path), "--parts", "fp8_linears", *options]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PATH": path})
    assert run.returncode == 2 and there in run.stderr and "a folder of its own" in run.stderr
    assert (tmp_path / "rows.jsonl").read_text() == lines


def test_time_that_is_up_leaves_the_rest_for_the_next_call(tmp_path: Path) -> None:
    run = run_all(tmp_path, "--seconds", "0")
    assert run.returncode == 1 and all(f"- {part}: left, the time was up" in run.stdout for part in PARTS)


def test_a_row_that_fails_is_a_row(book: ModuleType, tmp_path: Path) -> None:
    rows = book.Rows(tmp_path, "part", "cpu")
    assert rows.take("wrong", lambda: {}["key"])["failed"] == "KeyError: 'key'"
    assert rows.take("right", lambda: {"ms": 2.0})["ms"] == 2.0
    again = book.Rows(tmp_path, "part", "cpu")
    assert again.take("right", lambda: {"ms": 3.0})["ms"] == 2.0
    assert "failed" in again.take("wrong", lambda: {"ms": 3.0})
    text, well = book.summary_of(book.read(tmp_path / "rows.jsonl"), "")
    assert not well and "- part, wrong: KeyError: 'key'" in text


def test_a_lost_device_ends_the_process_after_its_row(
    book: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(book, "answers", lambda device: False)
    with pytest.raises(SystemExit) as left:
        book.Rows(tmp_path, "part", "cpu").take("breaks", lambda: {}["key"])
    assert left.value.code == book.DEVICE_LOST
    assert "failed" in book.Rows(tmp_path, "part", "cpu").done["breaks"]


def test_one_configuration_at_a_time(book: ModuleType) -> None:
    import tuning
    from triton import Config

    lists = {name: kernel.configs for name, kernel in tuning.autotuned().items()}
    assert len(lists) >= 7
    many = [Config({"LANES": 64}, num_warps=8), Config({"LANES": 32}, num_warps=8), Config({"LANES": 32}, num_warps=4)]
    assert tuning.smallest("", many) == many[2:]
    assert tuning.number(4)("", many) == many[1:2]
    rows = [{"configurations": {"one": tuning.described(many[1])}}, {"configurations": {"one": {"LANES": 64}}}]
    assert tuning.found_before(rows)("one", many) == many[1:2] and tuning.found_before(rows)("two", many) == many[:1]
    with tuning.pinned(lambda name, configs: many[:1]):
        assert all(kernel.configs == many[:1] for kernel in tuning.autotuned().values())
    assert {name: kernel.configs for name, kernel in tuning.autotuned().items()} == lists


def test_the_law_finds_its_two_terms(book: ModuleType) -> None:
    import whole_models

    for a, b in ((0.02, 1e-4), (0.0, 1e-4), (0.02, 0.0)):
        found = whole_models.law([(n, a * n + b * n * n) for n in (32, 128, 512)])
        assert found == pytest.approx((a, b), abs=1e-9)
    found = whole_models.law([(10, 1.0), (20, 1.5)])  # less than linear: no term is negative
    assert found is not None and min(found) >= 0


def test_arithmetic_of_the_roofline(book: ModuleType) -> None:
    import roofline
    from torch.utils.flop_counter import FlopCounterMode

    q, k = torch.randn(1, 2, 6, 8), torch.randn(1, 2, 10, 8)
    with FlopCounterMode(display=False) as counter:
        (q @ k.mT) @ k
    assert roofline.attention_flops(6, 10, 16) == counter.get_total_flops()
    page = (FOLDER / "README.md").read_text()
    assert roofline.table() in page and roofline.linears_table() in page


def test_graphs_are_compared_before_the_clock(book: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the stand-in for CUDA graphs of tests/models."""
    import whole_models

    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    from models.recorded_graphs import Graph, stand_in

    stand_in(monkeypatch)
    monkeypatch.setattr("lean3r.layers.attention.in_one_pass", lambda *_: not torch.is_grad_enabled())
    model = whole_models.make("vggt", "dense", "cpu")
    row = whole_models.graphs(model, 2, (56, 84), "cpu")
    assert row["ms"] > 0 and row["plain_ms"] > 0
    monkeypatch.setattr(Graph, "replay", lambda self: None)
    assert "differ from those of a run without a graph" in whole_models.graphs(model, 2, (56, 84), "cpu")["failed"]


def test_what_only_a_gpu_runs(book: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's clocks and meters replaced by others, tensors on the CPU: the code around them is the one that counts."""
    import layer

    times = iter(range(1, 10_000))

    class Event:
        def __init__(self, enable_timing: bool):
            self.at = 0

        def record(self) -> None:
            self.at = next(times)

        def synchronize(self) -> None:
            assert self.at

        def elapsed_time(self, last: Event) -> float:
            return 100.0 * (last.at - self.at)

    instead = {"Event": Event, "max_memory_allocated": lambda: 5_000_000_000, "memory_allocated": lambda: 2_000_000_000}
    instead |= dict.fromkeys(("synchronize", "empty_cache", "reset_peak_memory_stats"), lambda: None)
    for name, function in (instead | {"get_device_name": lambda: "some GPU"}).items():
        monkeypatch.setattr(torch.cuda, name, function)
    assert book.measure(lambda: None, "cuda", budget_s=0.75) == {"ms": 100.0, "runs": 7, "more_gb": 3.0}
    assert book.measure(lambda: None, "cuda", budget_s=0.05) == {"ms": 100.0, "runs": 1, "more_gb": 3.0}
    row = book.Rows(tmp_path, "part", "cuda").take("row", lambda: {"ms": 1.0})
    assert row["device"] == "some GPU" and row["peak_gb"] == 5.0 and row["triton"]
    bench = layer.Bench.of("cpu")
    layout, mechanism = bench.layout(2, 5), bench.gsa()
    mechanism.implementation = "torch"
    parts = layer.parts_of(lambda p: mechanism(p, layout), bench.projected(layout), "cuda")
    assert parts["selection"] == parts["sparse pass"] == 100.0 and parts["windows and pooling"] > 300.0
