"""Quantisation: prepared and converted agree, gradients go straight through, noise stays low, refusals explain."""

from __future__ import annotations

import copy
import pickle
from itertools import pairwise
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
import torch.nn.functional as F
from torch import Tensor, nn

from lean3r.compress import SCHEMES, CompressionPlan, compress, convert, prepare
from lean3r.compress.distill import attention_loss, attention_outputs
from lean3r.compress.fp8_linear import Coded, FakeQuantLinear, QuantLinear, Rounded
from lean3r.compress.plan import QuantizeStep, resolve_plan
from lean3r.compress.quantize import calibrate, smoothing_factors
from lean3r.compress.sparsify import plan_of
from lean3r.errors import KernelError, UsageError
from lean3r.models.execution import hold
from lean3r.models.nano import Nano, NanoConfig
from lean3r.ops.fp8 import choose_product
from lean3r.testing import assert_rms, snr_db
from lean3r.types import Views


def plan(scheme: str = "fp8", target: str = "every linear", leave_out: tuple[str, ...] = (), **settings):
    return CompressionPlan((QuantizeStep(scheme, target, leave_out, settings),))


def network(*widths: int, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Linear(a, b, dtype=dtype) for a, b in pairwise(widths)]
        return nn.Sequential(*(part for layer in layers for part in (layer, nn.GELU())))[:-1]


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model() -> Nano:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Nano(NanoConfig(width=32, heads=2, pairs=2)).eval()


VIEWS = Views(torch.rand(1, 2, 3, 48, 64, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_prepared_and_converted_are_the_same_numbers(scheme: str, dtype: torch.dtype) -> None:
    net = network(37, 128, 19, dtype=dtype)
    prepared = prepare(net, plan(scheme))
    converted = convert(prepared)
    x = noise(2, 5, 37).to(dtype)
    with torch.no_grad():
        for before, after in zip(prepared, converted, strict=True):
            if isinstance(before, FakeQuantLinear):
                assert isinstance(after, QuantLinear) and after.bias is before.bias
                assert torch.equal(after.dequantize().to(dtype), before.round_weight())
        expected = prepared(x)
        if scheme == "int8-dynamic":  # sums of integers are exact, those of rounded products are not
            assert_rms(converted(x), expected, 1e-6 if dtype == torch.float32 else 0.02)
        else:
            assert torch.equal(converted(x), expected)
        assert torch.equal(compress(net, plan(scheme))(x), converted(x))
        assert converted(x[:, :0]).shape == (2, 0, 19)
    assert converted[0].weight.element_size() == 1 and not any(p.ndim > 1 for p in converted.parameters())
    sizes_only = compress(net.to("meta"), plan(scheme)).state_dict()
    assert all(value.is_meta for value in sizes_only.values())
    kinds = {key: (value.shape, value.dtype) for key, value in converted.state_dict().items()}
    assert {key: (value.shape, value.dtype) for key, value in sizes_only.items()} == kinds


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_a_network_of_codes_passes_through_pickles_files_and_other_processes(scheme: str, tmp_path: Path) -> None:
    net, x = compress(network(37, 128, 19), plan(scheme)), noise(2, 37)
    expected = net(x)
    torch.save(net, tmp_path / "net.pt")
    read = torch.load(tmp_path / "net.pt", weights_only=False)
    for other in (pickle.loads(pickle.dumps(net)), pickle.loads(ForkingPickler.dumps(net)), read):
        assert torch.equal(other(x), expected)
        kinds = [{key: value.dtype for key, value in module.state_dict().items()} for module in (other, net)]
        assert kinds[0] == kinds[1]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(18, 17, 3, stride=2, padding=1, padding_mode="replicate", bias=False),
        nn.Conv2d(18, 20, 1),
        nn.ConvTranspose2d(18, 17, 4, stride=2, output_padding=1),
    ],
)
def test_convolutions_keep_codes_too(layer: nn.Module) -> None:
    net = nn.Sequential(copy.deepcopy(layer))
    x = noise(2, 18, 7, 9)
    prepared = prepare(net, "fp8-weight")
    converted = convert(prepared)
    with torch.no_grad():
        assert torch.equal(converted(x), prepared(x)) and snr_db(converted(x), net(x)) > 25
    prepared(x).sum().backward()
    assert net[0].weight.grad is not None and "path='reference'" in repr(converted)
    with pytest.raises(UsageError, match="is a convolution"):
        prepare(net, plan("fp8", "every layer"))


def test_gradients_go_straight_through() -> None:
    net = network(24, 40)
    prepared = prepare(net, plan("fp8"))
    x = noise(7, 24).requires_grad_()
    cotangent = noise(7, 40, seed=2)
    prepared(x).backward(cotangent)
    layer = prepared[0]
    assert isinstance(layer, FakeQuantLinear) and layer.weight is net[0].weight
    assert x.grad is not None and layer.weight.grad is not None
    assert_rms(x.grad, cotangent @ layer.round_weight(), 1e-6)
    assert_rms(layer.weight.grad, cotangent.T @ layer.scheme.activation(x.detach()), 1e-6)
    # a converted network passes gradients on to what lies before it
    again = x.detach().clone().requires_grad_()
    convert(prepared)(again).backward(cotangent)
    assert_rms(again.grad, x.grad, 1e-6)  # type: ignore[arg-type]


def test_noise_stays_below_the_floors() -> None:
    net, x = network(256, 1024, 256), noise(200, 256)
    x.requires_grad_()
    prepared = prepare(net, plan("fp8"))
    cast = FakeQuantLinear(net[0], SCHEMES.get("fp8")(), "fp8").scheme.activation(x.detach())
    assert snr_db(cast, x.detach()) >= 25
    cotangent = noise(200, 1024, seed=3)
    gradients, outputs = [], []
    for layer in (net[0], prepared[0]):
        out = layer(x)
        outputs.append(out.detach())
        gradients.append(torch.autograd.grad(out, [x, net[0].weight], cotangent))
    assert snr_db(outputs[1], outputs[0]) >= 18
    assert all(snr_db(ours, full) >= 17 for ours, full in zip(*reversed(gradients), strict=True))
    with torch.no_grad():
        assert snr_db(prepared(x), net(x)) >= 20
        assert snr_db(compress(net, plan("int8-dynamic"))(x), net(x)) >= 30


def test_rows_of_zeros_and_rows_of_nan() -> None:
    net = network(32, 16)
    x = noise(5, 32)
    x[1] = 0
    x[2, 3], x[3, 0] = float("inf"), float("nan")
    for scheme in SCHEMES:
        with torch.no_grad():
            out = compress(net, plan(scheme))(x)
        assert torch.equal(out[1], net[0].bias), scheme
        assert out[[0, 1, 4]].isfinite().all() and not out[[2, 3]].isfinite().any(), scheme
    with torch.no_grad():
        net[0].weight[3, 1] = float("inf")
    with pytest.raises(UsageError, match="weight of 0 contains NaN or infinities"):
        compress(net, plan("fp8"))


@pytest.mark.parametrize("depth", [32, 37])
def test_hardware_product_agrees_to_rounding(depth: int) -> None:
    net, x = network(depth, 24), noise(3, 11, depth)
    x[0, 0] = 0
    with torch.no_grad():
        expected = compress(net, plan("fp8", implementation="reference"))(x)
        fast = compress(net, plan("fp8", implementation="scaled_mm"))
        assert "path='scaled_mm'" in repr(fast)
        assert_rms(fast(x), expected, 1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("depth", "width"), [(64, 48), (37, 29)])
def test_hardware_product_on_a_gpu(depth: int, width: int) -> None:
    net, x = network(depth, width).cuda(), noise(3, 50, depth).cuda()
    if choose_product("auto", x.device) == "reference":
        pytest.skip("no FP8 units")
    with torch.no_grad():
        expected = compress(net, plan("fp8", implementation="reference"))(x)
        assert_rms(compress(net, plan("fp8", implementation="scaled_mm"))(x), expected, 0.005)


def test_hardware_without_fp8_is_refused_by_name_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    assert choose_product("auto", torch.device("cuda")) == "reference"
    with pytest.raises(KernelError, match=r"capability 8\.0 is below 8\.9"):
        choose_product("scaled_mm", torch.device("cuda"))
    scheme = SCHEMES.get("fp8")(implementation="scaled_mm")
    assert scheme.path(torch.device("cuda")).startswith("refused: ") and scheme.path(torch.device("cpu")) == "scaled_mm"


def test_codes_survive_a_change_of_number_type() -> None:
    for scheme in SCHEMES:
        net = compress(network(32, 16), plan(scheme))
        codes = net[0].weight.clone()
        with torch.no_grad():
            out = net(noise(4, 32))
            half = net.to(torch.bfloat16)(noise(4, 32).bfloat16())
        assert torch.equal(net[0].weight.view(torch.uint8), codes.view(torch.uint8)) and snr_db(half, out) > 30


def test_roles_keep_their_precision(model: Nano) -> None:
    small = compress(model, "sla-fp8")
    schemes = {name: m.scheme_name for name, m in small.named_modules() if isinstance(m, Coded)}
    assert {schemes[f"trunk.blocks.{i}.{part}"] for i in range(5) for part in ("attn.qkv", "mlp.fc2")} == {"fp8"}
    assert not any(s == "fp8" for name, s in schemes.items() if name.startswith(("camera", "depths", "upsampler")))
    owned = [m for name, m in small.named_modules() if "mechanism" in name and isinstance(m, nn.Linear)]
    assert owned and not any(isinstance(m, Coded) for m in owned)
    kept = {name: p for name, p in small.named_parameters() if "norm" in name or name.endswith("bias")}
    originals = dict(model.named_parameters())
    assert all(p is originals[name] for name, p in kept.items() if "mechanism" not in name)
    with torch.inference_mode():
        depth = compress(model, "fp8")(VIEWS).depth
        prepared = prepare(model, "fp8")(VIEWS).depth
    assert depth is not None and prepared is not None and torch.equal(depth, prepared)


def test_the_summary_counts_codes(model: Nano) -> None:
    full, small = (network_.summary(2, 48, 64) for network_ in (model, compress(model, "fp8")))
    assert compress(model, "fp8").parameter_count == model.parameter_count == sum(full.parameters.values())
    assert small.parameters == full.parameters and small.weight_bytes < 0.45 * full.weight_bytes
    blocks = set(full.flops) - {"heads", "encoder"}
    assert {part: small.flops[part] for part in blocks} == {part: full.flops[part] for part in blocks}


@pytest.mark.parametrize("kind", ["gsa:dense_below=0", "sla:dense_below=0", "thu-sla:dense_below=0", "fp8", "w4a8"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_held_in_half_precision_run_without_autocast(model: Nano, kind: str, dtype: torch.dtype) -> None:
    """As `load(..., dtype="bfloat16")` gives them, compressed before or after."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        steps = plan(kind, "every block") if kind in SCHEMES else resolve_plan(kind)
        apart = [lambda m: hold(copy.deepcopy(compress(m, steps)), dtype)]
        apart += [lambda m: compress(hold(copy.deepcopy(m), dtype), steps)]
        apart += [lambda m: prepare(hold(copy.deepcopy(m), dtype), steps)] if steps.quantizes else []
        with torch.inference_mode():
            whole = compress(model, steps)(VIEWS).depth
            for make in apart:
                torch.manual_seed(0)
                half = make(model)(VIEWS).depth
                assert whole is not None and half is not None and snr_db(half, whole) > 20


def test_what_is_sparse_already_can_be_quantised(model: Nano) -> None:
    sparse = compress(model, "gsa")
    small = compress(sparse, plan("fp8", "global blocks 1", ("named *.proj",)))
    coded = [name for name, m in small.named_modules() if isinstance(m, Coded)]
    assert coded == ["trunk.blocks.4.attn.qkv", "trunk.blocks.4.mlp.fc1", "trunk.blocks.4.mlp.fc2"]
    whole = plan_of(small)
    assert whole is not None and whole.name == "gsa-custom" and len(whole.exchanges) == len(whole.quantizes) == 1
    assert CompressionPlan.from_json(whole.to_json()) == whole
    assert plan_of(sparse) != whole and not any(isinstance(m, Rounded | Coded) for m in sparse.modules())


def test_networks_that_are_not_ours() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)  # with some weights, a value between two codes is rounded to either
        net = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 2, 64, batch_first=True), 2).eval()
    x = noise(2, 9, 32)
    for scheme in ("fp8", "int8-dynamic"):
        prepared, converted = prepare(net, plan(scheme)), compress(net, plan(scheme))
        with torch.no_grad():
            assert 20 < snr_db(converted(x), net(x)) < 100
            assert_rms(converted(x), prepared(x), 1e-5)
    assert not any(isinstance(layer.self_attn.out_proj, Coded) for layer in converted.layers)  # type: ignore[union-attr]


def test_verbs_out_of_order_are_refused(model: Nano) -> None:
    prepared = prepare(model, plan())
    converted = convert(prepared)
    with pytest.raises(UsageError, match="converted already"):
        convert(converted)
    with pytest.raises(UsageError, match="not prepared"):
        convert(model)
    for network_, again in ((converted, prepare), (prepared, prepare), (converted, compress)):
        with pytest.raises(UsageError, match="compressed already"):
            again(network_, plan())
    with pytest.raises(UsageError, match="quantises nothing"):
        prepare(model, "gsa")


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"quantize": "fp9", "target": "every linear"}, "unknown scheme 'fp9'.*fp8"),
        ({"quantize": "fp8", "target": "every lines"}, "cannot be read"),
        ({"quantize": "fp8", "target": "encoder blocks"}, "nothing for 'encoder blocks'.*of role global"),
        ({"quantize": "fp8", "target": "global blocks 7"}, "names block 7.*2 of them, 0 to 1"),
        ({"quantize": "fp8", "target": "named *.fc9"}, r"no layer is named \*.fc9"),
        ({"quantize": "fp8", "target": "every linear", "except": ["named x"]}, "no layer is named x"),
        ({"quantize": "fp8", "target": "heads", "except": ["heads"]}, "leaves no layer"),
        ({"quantize": "fp8", "target": "heads", "except": "heads"}, "expected a list"),
        ({"quantize": "fp8", "target": "heads", "settings": {"group": 1}}, "unknown setting 'group' of fp8"),
        ({"quantize": "fp8", "target": "heads", "settings": {"implementation": "cuda"}}, "implementation is one of"),
        ({"quantize": "w4a8", "target": "heads", "settings": {"group_size": 0}}, "group_size is 0"),
        ({"quantize": "w4a8", "target": "heads", "settings": {"act_bits": 1}}, "act_bits is 1"),
        ({"quantize": "fp8", "mechanism": "gsa", "target": "heads"}, "unknown key 'mechanism'"),
        ({"quantize": "fp8"}, "target of step 1"),
    ],
)
def test_invalid_plans_are_refused(model: Nano, step: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        prepare(model, {"steps": [step]})


def test_smoothing_helps_where_a_feature_is_large() -> None:
    net, x = network(64, 48), noise(100, 64)
    x[:, 5] *= 60
    rough = prepare(net, plan("w4a8", group_size=64))
    smooth = prepare(net, plan("w4a8", group_size=64, smooth=True))
    with torch.no_grad():
        assert torch.equal(smooth(x), rough(x))  # factors are 1 before they are found
        calibrate(smooth, lambda network: network(x))
        assert torch.equal(smooth[0].smooth, smoothing_factors(x, net[0].weight))  # type: ignore[arg-type]
        assert snr_db(smooth(x), net(x)) > snr_db(rough(x), net(x)) + 3
        assert torch.equal(convert(smooth)(x), smooth(x))
    with pytest.raises(UsageError, match="no layer has smoothing factors"):
        calibrate(rough, lambda network: network(x))
    with pytest.raises(UsageError, match="reached no layer"):
        calibrate(smooth, lambda network: None)


def test_training_through_the_rounding_helps() -> None:
    teacher, x = network(32, 64, 16), noise(256, 32)
    prepared = prepare(copy.deepcopy(teacher), plan("w4a8", group_size=32))
    optimizer = torch.optim.Adam(prepared.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    with torch.no_grad():
        target = teacher(x)
    losses = []
    for _ in range(100):
        loss = F.mse_loss(prepared(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    with torch.no_grad():
        assert torch.equal(convert(prepared)(x), prepared(x))


def test_students_learn_from_attention(model: Nano) -> None:
    student = prepare(copy.deepcopy(model), "fp8")
    with attention_outputs(model) as teacher, torch.no_grad():
        model(VIEWS)
    with attention_outputs(student) as seen:
        student(VIEWS)
    found = attention_loss(seen, teacher)
    assert found.layers == tuple(range(5)) and found.loss.item() > 0
    found.loss.backward()
    assert student.trunk.blocks[0].attn.qkv.weight.grad is not None  # type: ignore[union-attr]
    assert attention_loss([], teacher).loss.item() == 0
    model(VIEWS)
    assert len(teacher) == 5  # hooks are gone


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_a_single_row_needs_no_axis_of_its_own(scheme: str) -> None:
    net, x = compress(network(33, 17), plan(scheme)), noise(33)
    with torch.no_grad():
        assert_rms(net(x), net(x[None])[0], 1e-6)
