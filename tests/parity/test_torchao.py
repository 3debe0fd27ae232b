"""Our quantised linear layers beside torchao's, for what both can express: `pytest -m parity tests/parity`."""

from __future__ import annotations

import copy
import importlib

import pytest
import torch
from torch import Tensor, nn

from lean3r.compress import compress, prepare
from lean3r.compress.fp8_linear import QuantLinear
from lean3r.testing import assert_rms, snr_db

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def ao():
    pytest.importorskip("torchao", reason="torchao is not installed: pip install 'lean3r[parity]'")
    return importlib.import_module("torchao.quantization")


def linear(depth: int = 96, width: int = 64) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(depth, width))


def draw(depth: int = 96) -> Tensor:
    x = torch.randn(40, depth, generator=torch.Generator().manual_seed(1))
    x[3] *= 1000
    return x


def plan(scheme: str) -> dict:
    return {"steps": [{"quantize": scheme, "target": "every linear"}]}


@pytest.mark.parametrize("depth", [96, 37])
def test_fp8_weights_have_the_same_codes(ao, depth: int) -> None:
    net, x = linear(depth), draw(depth)
    theirs = copy.deepcopy(net)
    ao.quantize_(theirs, ao.Float8WeightOnlyConfig())
    ours = compress(net, plan("fp8-weight"))
    layer, weight = ours[0], theirs[0].weight
    assert isinstance(layer, QuantLinear)
    assert torch.equal(layer.weight.view(torch.uint8), weight.qdata.view(torch.uint8))
    assert torch.equal(layer.weight_scale, weight.scale)
    with torch.no_grad():
        assert_rms(ours(x), theirs(x), 1e-6)


@pytest.mark.parametrize("depth", [96, 37])
def test_training_gives_the_same_outputs(ao, depth: int) -> None:
    qat = importlib.import_module("torchao.quantization.qat")
    net, x = linear(depth), draw(depth)
    theirs = copy.deepcopy(net)
    config = qat.Float8FakeQuantizeConfig(granularity=ao.PerRow())
    ao.quantize_(theirs, qat.QATConfig(activation_config=config, weight_config=config, step="prepare"))
    ours = prepare(net, plan("fp8"))
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [network(leaf) for network, leaf in zip((ours, theirs), leaves, strict=True)]
    assert_rms(outputs[0], outputs[1], 1e-6)
    cotangent = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(2))
    for out in outputs:
        out.backward(cotangent)
    # torchao lets gradients through as E4M3 without a scale, and differentiates the scale, which only the largest
    # number of a row sets: they are Lite3R's, and ours, but for that noise.
    assert leaves[0].grad is not None and leaves[1].grad is not None
    others = x.abs() < x.abs().amax(-1, keepdim=True)
    assert snr_db(leaves[1].grad[others], leaves[0].grad[others]) > 14


def test_int8_is_as_close_to_full_precision(ao) -> None:
    net, x = linear(), draw()
    theirs = copy.deepcopy(net)
    ao.quantize_(theirs, ao.Int8DynamicActivationInt8WeightConfig())
    ours = compress(net, plan("int8-dynamic"))
    with torch.no_grad():
        full = net(x)
        assert snr_db(ours(x), full) > snr_db(theirs(x), full) - 1


@pytest.mark.parametrize("depth", [96, 128])
def test_int8_dynamic_multiplies_the_same_codes(ao, depth: int) -> None:
    net, x = linear(depth), draw(depth)
    theirs = copy.deepcopy(net)
    ao.quantize_(theirs, ao.Int8DynamicActivationInt8WeightConfig())
    ours = compress(net, plan("int8-dynamic"))
    layer, weight = ours[0], theirs[0].weight
    assert isinstance(layer, QuantLinear)
    # They divide by 127.5, we by 127, so that the largest number of a row is met: codes differ by one at most.
    assert (layer.weight.int() - weight.qdata.int()).abs().max() <= 1
    assert_rms(layer.weight_scale.flatten(), weight.scale.flatten(), 0.005)
    with torch.no_grad():
        assert snr_db(ours(x), theirs(x)) > 36


@pytest.mark.parametrize("group", [32, 96])
def test_int4_weights_are_as_close_to_full_precision(ao, group: int) -> None:
    net, x = linear(), draw()
    theirs = copy.deepcopy(net)
    kind = importlib.import_module("torchao.quantization.granularity").PerGroup(group)
    ao.quantize_(theirs, ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=kind))
    step = {"quantize": "w4a16", "target": "every linear", "settings": {"group_size": group, "act_bits": 0}}
    ours = compress(net, {"steps": [step]})
    with torch.no_grad():
        full = net(x)
        assert snr_db(ours(x), full) > snr_db(theirs(x), full) - 1
        assert snr_db(ours(x), theirs(x)) > 15


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torchao's dynamic FP8 needs a GPU of capability 8.9")
def test_dynamic_fp8_on_a_gpu(ao) -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("the GPU has no FP8 units")
    net, x = linear().cuda().bfloat16(), draw().cuda().bfloat16()
    theirs = copy.deepcopy(net)
    ao.quantize_(theirs, ao.Float8DynamicActivationFloat8WeightConfig(granularity=ao.PerRow()))
    with torch.no_grad():
        assert_rms(compress(net, plan("fp8"))(x), theirs(x), 0.01)
