"""Which implementation runs, and the reasons that are given."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from lean3r.errors import KernelError, UsageError
from lean3r.ops import dispatch
from lean3r.ops.dispatch import choose, describe, why_not_triton, why_too_large

X = torch.zeros(2)


def test_auto_on_the_cpu_never_takes_the_interpreter() -> None:
    assert choose("op", "auto", [X]) == "reference"
    assert choose("op", "auto", [X], torch_path=True) == "torch"


def test_explicit_choices() -> None:
    assert choose("op", "reference", [X]) == "reference"
    assert choose("op", "torch", [X], torch_path=True) == "torch"
    with pytest.raises(KernelError, match="op has no torch path"):
        choose("op", "torch", [X])
    with pytest.raises(UsageError, match="got 'cuda'"):
        choose("op", "cuda", [X])  # type: ignore[arg-type]


def test_the_interpreter_serves_cpu_tensors_but_not_bfloat16(kernel_device: torch.device) -> None:
    if kernel_device.type == "cuda":
        pytest.skip("kernels run on the GPU here")
    assert choose("op", "triton", [X, X.half()]) == "triton"
    with pytest.raises(KernelError, match="bfloat16"):
        choose("op", "triton", [X.bfloat16()])
    with pytest.raises(KernelError, match="float64"):
        choose("op", "triton", [X.double()])
    with pytest.raises(KernelError, match="several devices"):
        choose("op", "triton", [X, torch.empty(2, device="meta")])


def test_the_operators_own_reason_is_named() -> None:
    with pytest.raises(KernelError, match="of op cannot run: head_dim 48"):
        choose("op", "triton", [X], unsupported="head_dim 48")


def test_reasons_without_triton_and_without_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import torch; from lean3r.ops.dispatch import why_not_triton as w; print(w([torch.zeros(2)]))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={})
    assert run.stdout.strip() in {"the tensors are on the CPU", "triton is not installed"}

    def absent(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(dispatch.importlib, "import_module", absent)
    assert why_not_triton() == "triton is not installed"
    with pytest.raises(KernelError, match="triton is not installed; implementation='auto' takes reference"):
        choose("op", "triton", [X])


def test_description_states_what_auto_selects() -> None:
    assert describe("triton") == "'triton'"
    expected = "'auto' (triton)" if torch.cuda.is_available() else "'auto' (torch: no CUDA device)"
    assert describe("auto", torch_path=True) == expected


def test_auto_says_once_why_a_kernel_is_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kernel_device: torch.device
) -> None:
    class OnCuda:
        is_cuda, device, dtype = True, torch.device("cuda", 1), torch.bfloat16

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    for _ in range(2):
        assert choose("op", "auto", [OnCuda()], torch_path=True) == "torch"  # type: ignore[list-item]
    assert [record.getMessage() for record in caplog.records] == [
        "op runs without its Triton kernel, more slowly (torch): compute capability 7.5 is below 8.0"
    ]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert choose("op", "auto", [OnCuda()], torch_path=True) == "triton"  # type: ignore[list-item]
    assert choose("op", "auto", [OnCuda()], unsupported="head_dim 160") == "reference"  # type: ignore[list-item]
    assert "head_dim 160" in caplog.text


def test_auto_refuses_tensors_on_several_devices() -> None:
    with pytest.raises(UsageError, match=r"op: tensors on cpu, meta; expected one device"):
        choose("op", "auto", [X, torch.empty(2, device="meta")])


def test_small_cards_are_not_given_wide_heads() -> None:
    small, large = (SimpleNamespace(shared_memory_per_block_optin=kb << 10) for kb in (99, 163))
    assert "163 KB" in (why_too_large(128, torch.float32, 16, small) or "")
    assert why_too_large(128, torch.bfloat16, 128, small) and not why_too_large(128, torch.bfloat16, 16, small)
    assert not why_too_large(128, torch.float32, 128, large) and not why_too_large(64, torch.float32, 128, small)
