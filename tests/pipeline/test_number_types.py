"""`--dtype auto`: bfloat16 on processors that multiply it, for models that keep their decibels; said and recorded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lean3r.compress import compress
from lean3r.errors import UsageError
from lean3r.models import MODELS
from lean3r.models.base import HALF_DB, Backbone
from lean3r.models.checkpoint import save_model
from lean3r.models.execution import choose_dtype, hold, weight_bytes
from lean3r.ops import dispatch
from lean3r.pipeline.load import load
from lean3r.pipeline.predict import predict
from lean3r.pipeline.reconstruct import reconstruct
from lean3r.types import Views

CPU = torch.device("cpu")
MEASURED = Path(__file__).parents[2] / "benchmarks/results/half_precision_cpu.json"
FAMILIES = {
    "vggt": "vggt",
    "pi3x": "pi3x",
    "pi3": "pi3",
    "da3mono": "da3mono-large",
    "da3nested": "da3nested-giant-large",
}


def smallest(name: str) -> Backbone:
    torch.manual_seed(0)
    kind = MODELS.get(name)
    return kind(kind.SMALLEST).eval()


@pytest.fixture(params=[True, False], ids=["native", "emulated"])
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Processors with and without products in bfloat16."""
    for module in ("lean3r.models.execution", "lean3r.ops.dispatch"):
        monkeypatch.setattr(f"{module}.has_fast_bfloat16", lambda: request.param)
    return request.param


@pytest.mark.parametrize("name", ["vggt", "pi3", "pi3x", "speed3r-pi3", "da3-large", "nano", "da3mono-large"])
def test_auto_chooses_by_processor_and_model(name: str, native: bool) -> None:
    dtype, why = choose_dtype(smallest(name), CPU)
    half = native and name not in ("nano", "da3mono-large")
    assert dtype == (torch.bfloat16 if half else torch.float32) and why


def test_plans_that_were_not_measured_keep_float32(native: bool) -> None:
    assert choose_dtype(compress(smallest("vggt"), "int8-dynamic"), CPU)[0] == torch.float32


def test_models_in_half_keep_their_decibels_as_measured() -> None:
    """The claim in the class is what benchmarks/half_precision.py has found."""
    for case, decibels in json.loads(MEASURED.read_text())["snr_db"].items():
        family = case.split("_")[0]
        name = FAMILIES.get(family, "da3-large")
        assert not MODELS.get(name).BFLOAT16 or min(decibels.values()) >= HALF_DB, f"{case}: {decibels}"
        assert (name in ("vggt", "pi3", "pi3x", "da3-large")) == MODELS.get(name).BFLOAT16


def test_torch_without_the_questions_has_no_native_products(monkeypatch: pytest.MonkeyPatch) -> None:
    for question in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.delattr(torch.cpu, question, raising=False)
    assert not dispatch.has_fast_bfloat16()


def test_loaded_in_half_and_said_so(native: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """auto holds the matrices in bfloat16, says so in the record, and gives what autocast over float32 gives."""
    model = smallest("pi3")
    save_model(model, tmp_path / "model.safetensors")
    monkeypatch.setitem(type(model).SIZES, "pi3", type(model).SMALLEST)
    light = load("pi3", tmp_path / "model.safetensors", "cpu")
    plain = load("pi3", tmp_path / "model.safetensors", "cpu", "float32")
    views = Views(torch.rand(1, 2, 3, 28, 42))
    assert all(p.dtype == torch.float32 for p in plain.parameters())
    assert torch.equal(predict(plain, views).cam_from_world, predict(model, views).cam_from_world)
    scene = reconstruct(light, views)
    assert scene.info["config"]["dtype"] == ("bfloat16" if native else "float32")
    assert ("multiplies bfloat16" in scene.info["why_dtype"]) == native
    assert (weight_bytes(light) < 0.8 * weight_bytes(plain)) == native
    model.origin = replace(model.origin, dtype=light.origin.dtype)
    before, after = predict(model, views), predict(light, views)
    for name in ("depth", "conf", "cam_from_world", "intrinsics"):
        assert torch.equal(getattr(before, name), getattr(after, name)), name


@pytest.mark.parametrize("name", ["vggt", "pi3x", "da3-small"])
def test_models_held_in_half_run_without_autocast_too(name: str) -> None:
    """As when somebody calls the loaded model himself."""
    model, views = smallest(name), Views(torch.rand(1, 2, 3, 56, 56))
    with torch.inference_mode():
        exact = model(views).depth
        found = hold(model, torch.bfloat16)(views).depth
    assert 0 < (found / exact - 1).abs().mean() < 0.05


@pytest.mark.parametrize("name", ["vggt", "pi3", "nano"])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_models_converted_as_a_whole_are_refused(name: str, kind: torch.dtype) -> None:
    """torch said that types of input and bias differ, or (Pi3) all of it ran in half and was recorded as float32."""
    model = smallest(name).to(kind)
    views = Views(torch.rand(1, 2, 3, 3 * model.patch, 4 * model.patch))
    with pytest.raises(UsageError, match=f"is in {str(kind)[6:]}, but .* load it with dtype="):
        predict(model, views)
    predict(model.float(), views)
