"""What FP8 layers launch on a GPU, counted on tensors without values; what reads a norm or GELU takes it rounded."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from lean3r.compress import compress
from lean3r.compress.fp8_linear import QuantLinear
from lean3r.layers.block import Block
from lean3r.layers.mlp import Mlp, SwiGlu
from lean3r.models.pi3 import Pi3
from lean3r.types import TokenLayout

LAYOUT = TokenLayout(views=2, special=1, rows=2, cols=3)
ROWS, PRODUCT = "lean3r.fp8_rows", "aten._scaled_mm_v2"
NORM = "lean3r.norm_rotate"
COUNTED = {
    ROWS,
    PRODUCT,
    NORM,
    "aten._to_copy",
    "aten.constant_pad_nd",
    "aten.add",
    "aten.gelu",
    "aten.native_layer_norm",
}


class Count(TorchDispatchMode):
    """Operators in COUNTED, by name, and whatever reads a value on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func.overloadpacket)
        if name in COUNTED or name == "aten._local_scalar_dense":
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))


def fp8(make: Callable[[], nn.Module], dtype: torch.dtype = torch.float32, **settings: object) -> nn.Module:
    step = {"quantize": "fp8", "target": "every linear", "settings": settings}
    with unset_fake_temporarily():
        return compress(nn.ModuleList([make()]), {"steps": [step]}).eval().to(dtype)[0]  # type: ignore[index]


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[nn.Module], nn.Module]]:
    """Moves a network to a GPU of compute capability 9.0 that computes shapes only."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)

    def move(net: nn.Module) -> nn.Module:
        for module in net.modules():
            for table in (module._parameters, module._buffers):
                for name, value in table.items():
                    if value is not None:
                        there = torch.empty_like(value, device="cuda")
                        table[name] = nn.Parameter(there) if isinstance(value, nn.Parameter) else there
        return net

    with FakeTensorMode(allow_non_fake_inputs=True):
        yield move


@torch.no_grad()
def calls(run: Callable[[], object]) -> dict[str, int]:
    run()  # what is made once
    with Count() as count:
        run()
    return dict(count.calls)


def test_one_linear_layer_is_two_launches(on_gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    net = on_gpu(fp8(lambda: nn.Linear(64, 48), torch.bfloat16))
    assert calls(lambda: net(torch.empty(2, 5, 64, dtype=torch.bfloat16, device="cuda"))) == {ROWS: 1, PRODUCT: 1}
    net = on_gpu(fp8(lambda: nn.Linear(64, 48)))
    x = torch.empty(2, 5, 64, device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # else there is no autocast
    with torch.autocast("cuda", torch.bfloat16):
        assert calls(lambda: net(x)) == {ROWS: 1, PRODUCT: 1, "aten._to_copy": 1}  # the bias


def test_weights_of_odd_sizes_are_padded_once(on_gpu) -> None:
    layer = on_gpu(fp8(lambda: nn.Linear(37, 29, bias=False), torch.bfloat16))
    x = torch.empty(2, 5, 37, dtype=torch.bfloat16, device="cuda")
    assert calls(lambda: layer(x)) == {ROWS: 1, PRODUCT: 1}
    assert layer.operand.codes.shape == (32, 48) and layer.operand.scale.shape == (1, 32)
    with torch.no_grad():
        assert layer(x).shape == (2, 5, 29)
    before = layer.operand
    layer.weight_scale.mul_(2)  # written to, as by load_state_dict
    assert layer.operand is not before


def test_a_weight_laid_out_is_in_no_copy_and_no_summary_and_follows_writes_in_inference_mode() -> None:
    model = compress(Pi3(Pi3.SMALLEST).eval(), "fp8").to(torch.bfloat16)  # scales are laid out in float32
    layers = [module for module in model.modules() if isinstance(module, QuantLinear)]
    assert layers and all(layer.operand is layer.operand for layer in layers)
    assert model.summary(1, 28, 28).weight_bytes > 0
    assert all(copy.deepcopy(layer)._laid_out is None for layer in layers)
    with torch.inference_mode():
        layer = copy.deepcopy(layers[0])
        before = layer.operand.scale.clone()
        layer.weight_scale.mul_(2)
        assert torch.equal(layer.operand.scale, 2 * before)


def test_norms_and_gelu_of_a_block_are_part_of_the_rounding(on_gpu) -> None:
    net = on_gpu(fp8(lambda: Block(32, 2, rope=False), torch.bfloat16))
    x = torch.empty(1, 14, 32, dtype=torch.bfloat16, device="cuda")
    found = calls(lambda: net(x, LAYOUT))
    expected = {ROWS: 4, PRODUCT: 4, NORM: 2, "aten.native_layer_norm": 0, "aten.gelu": 0}  # NORM: queries and keys
    assert {key: found.get(key, 0) for key in expected} == expected
    assert "aten._local_scalar_dense" not in found


@pytest.mark.parametrize("make", [lambda: nn.Linear(64, 48), lambda: nn.Linear(37, 29), lambda: Mlp(32, 64)])
def test_compiled_graphs_have_no_break(make: Callable[[], nn.Module], on_gpu) -> None:
    net = on_gpu(fp8(make))
    first = next(module for module in net.modules() if isinstance(module, QuantLinear))
    with torch.no_grad():
        found = torch._dynamo.explain(net)(torch.empty(4, first.in_features, device="cuda"))
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons


@pytest.mark.parametrize("kind", ["gelu", "swiglu"])
def test_rounded_inputs_give_the_same_numbers(kind, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = Block(32, 2, mlp=kind)
        x = torch.randn(1, 14, 32)
    mask = (torch.arange(14) < 7)[None]
    net = fp8(lambda: block, implementation="scaled_mm")
    seen: list[type] = []
    forward = QuantLinear.forward
    monkeypatch.setattr(QuantLinear, "forward", lambda layer, x: seen.append(type(x)) or forward(layer, x))
    with torch.no_grad():
        ours = [net(x, LAYOUT, given) for given in (None, mask)]
        assert sum(kind is not Tensor for kind in seen) == (6 if kind == "gelu" else 4)
        for kinds in (Mlp, SwiGlu, type(block.attn)):
            monkeypatch.setattr(kinds, "takes_rows", lambda layer, x: False)
        apart = [net(x, LAYOUT, given) for given in (None, mask)]
    assert all(torch.equal(a, b) for a, b in zip(ours, apart, strict=True))
    given = x.clone().requires_grad_()
    net(given, LAYOUT).sum().backward()  # while gradients are recorded, the reference runs
    assert given.grad is not None and bool(given.grad.any())
