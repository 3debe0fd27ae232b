"""Compiled blocks give the results of plain ones; what a device cannot do is refused with the reason."""

from __future__ import annotations

import copy

import pytest
import torch
from contracts.tiny import tiny
from torch._inductor import cpp_builder

from lean3r.compress import compress
from lean3r.errors import UsageError
from lean3r.models.base import Backbone
from lean3r.models.da3 import Da3, Da3Config
from lean3r.models.execution import accelerate, choose_dtype
from lean3r.models.pi3 import Pi3, Pi3Config
from lean3r.pipeline.load import load
from lean3r.pipeline.predict import predict
from lean3r.testing import assert_rms
from lean3r.types import Views


def small() -> Backbone:
    """Random weights, encoder and trunk of two blocks each."""
    torch.manual_seed(0)
    return Pi3(Pi3Config(width=32, heads=2, encoder_depth=2, depth=2, grid=4, camera_width=16)).eval()


def test_cuda_graphs_are_refused_on_a_cpu() -> None:
    with pytest.raises(UsageError, match="NVIDIA GPU, but the model is on the CPU"):
        load("nano", device="cpu", cuda_graphs=True)


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(UsageError, match=r"C\+\+ compiler.*leave compile out"):
        load("nano", device="cpu", compile=True)


def test_more_forms_of_a_block_are_compiled_than_one_model_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """nano with gsa and four sizes of pictures has 8: the next model, and the fifth size, ran uncompiled."""
    monkeypatch.setattr("lean3r.models.execution.check_compiler", lambda: None)
    with torch._dynamo.config.patch(recompile_limit=8):
        accelerate(small())
        assert torch._dynamo.config.recompile_limit == 8
        accelerate(small(), compile=True)
        assert torch._dynamo.config.recompile_limit == 64
    with torch._dynamo.config.patch(recompile_limit=100):
        accelerate(small(), compile=True)
        assert torch._dynamo.config.recompile_limit == 100


@pytest.mark.parametrize("name", ["nano", "pi3", "vggt"])
def test_a_whole_model_is_one_graph_of_the_compiler(name: str) -> None:
    model, side = copy.deepcopy(tiny(name)), 4 * tiny(name).patch
    views = Views(torch.rand(1, 2, 3, side, side, generator=torch.Generator().manual_seed(1)))
    torch._dynamo.reset()
    with torch.no_grad():
        whole = torch.compile(model, fullgraph=True, backend="eager")(views)
        assert_rms(whole.depth, model(views).depth, 1e-5)


def test_nothing_is_changed_unasked() -> None:
    model = small()
    accelerate(model)
    assert all(module._compiled_call_impl is None for module in model.modules())


def test_compiled_models_keep_their_names_and_copies_are_plain() -> None:
    model = small()
    names = list(model.state_dict())
    try:
        accelerate(model, compile=True)
    except UsageError as error:
        pytest.skip(str(error))
    assert list(model.state_dict()) == names
    assert sum(module._compiled_call_impl is not None for module in model.modules()) == 4
    assert all(module._compiled_call_impl is None for module in copy.deepcopy(model).modules())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_blocks_agree(dtype: torch.dtype) -> None:
    """Two shapes, the second without compiling the first again being wrong for it; masks of padding too."""
    torch.manual_seed(0)
    model = Da3(Da3Config(64, 6, 4, 2, (2, 3, 4, 5), features=16, channels=(8, 8, 8, 8), grid=4)).eval()
    compiled = copy.deepcopy(model)
    try:
        accelerate(compiled, compile=True)
    except UsageError as error:
        pytest.skip(str(error))
    mask = torch.ones(1, 3, 56, 70, dtype=torch.bool)
    mask[:, 1, :, :14] = False
    for views in (Views(torch.rand(1, 2, 3, 42, 56)), Views(torch.rand(1, 3, 3, 56, 70), mask)):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            expected, found = predict(model, views), predict(compiled, views)
        for name in ("depth", "conf", "cam_from_world", "intrinsics"):
            a, b = getattr(expected, name), getattr(found, name)
            error = float((a - b).square().mean().sqrt() / a.square().mean().sqrt())
            assert error < (1e-5 if dtype == torch.float32 else 2e-2), name


SPARSE = {"steps": [{"target": "global blocks", "mechanism": "gsa", "settings": {"top_k": 4}}]}


@pytest.mark.slow
@pytest.mark.parametrize("plan", [None, SPARSE, "int8-dynamic"], ids=["dense", "sparse", "int8"])
def test_nano_compiled_agrees(plan: dict | str | None) -> None:
    model = load("nano", device="cpu")
    model = model if plan is None else compress(model, plan)
    compiled = copy.deepcopy(model)
    try:
        accelerate(compiled, compile=True)
    except UsageError as error:
        pytest.skip(str(error))
    images = torch.rand(1, 3, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    expected, found = predict(model, Views(images)), predict(compiled, Views(images))
    # A code of 8 bits may round the other way where the input of a layer differs in its last bit.
    limit = 1e-2 if plan == "int8-dynamic" else 1e-4
    for name in ("depth", "cam_from_world", "intrinsics"):
        assert_rms(getattr(found, name), getattr(expected, name), limit)


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need an NVIDIA GPU")
@pytest.mark.parametrize("compile", [False, True])
def test_recorded_blocks_agree(compile: bool) -> None:
    model = small().cuda()
    recorded = copy.deepcopy(model)
    accelerate(recorded, compile=compile, cuda_graphs=True)
    for _ in range(3):
        views = Views(torch.rand(1, 3, 3, 56, 70))
        expected, found = predict(model, views), predict(recorded, views)
        assert expected.depth is not None and found.depth is not None
        assert torch.allclose(expected.depth, found.depth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16)])
def test_auto_leaves_emulated_bfloat16_alone(
    capability: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch says that it supports bfloat16 on a Turing card, where it is slow; each card of a machine counts alone."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    asked = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: asked.append(device) or capability)
    device = torch.device("cuda", 1)
    assert choose_dtype(small(), device)[0] == dtype
    assert asked == [device]
