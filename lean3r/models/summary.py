"""The cost of a model before it is run: parameters, floating-point operations and bytes, part by part.

The model's own code runs on tensors with shapes but no memory, so that chunks, masks and skipped layers count as in a
real run. Of many equal pieces only two run, and count for all (ops/repeats.py). Selection of blocks up to a cumulative
probability is counted as if all blocks were equally probable. A multiply-add is two operations.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry, mm_flop, sdpa_flop_count
from torch.utils.hooks import RemovableHandle

from lean3r.layers.embed import ConvStem
from lean3r.layers.pose_injection import PoseInjection
from lean3r.layers.trunk import Trunk
from lean3r.layers.vit import PatchEmbed, VisionTransformer
from lean3r.models.encoded import Encoded
from lean3r.ops.repeats import counting, factor
from lean3r.tables import own_tables
from lean3r.types import Views

ENCODER, FRAME, GLOBAL, MLP, HEADS = "encoder", "frame attention", "global attention", "mlp", "heads"
PARTS = (ENCODER, FRAME, GLOBAL, MLP, HEADS)


@dataclass(frozen=True)
class Summary:
    """Costs of one run over `views` pictures of height x width pixels.

    parameters and flops are split by PARTS ("heads" is everything outside the encoder and the trunk). weight_bytes is
    the size of the parameters as stored, codes instead of weights included. activation_bytes is the peak of all other
    live tensors: results are included, scratch memory inside an operation is not.
    """

    views: int
    height: int
    width: int
    parameters: dict[str, int]
    flops: dict[str, int]
    weight_bytes: int
    activation_bytes: int


def summarise(model: nn.Module, views: int, height: int, width: int, dtype: torch.dtype = torch.float32) -> Summary:
    """Count the cost of one call on `views` pictures without running it, products in `dtype`.

    The model may be on any device, including the meta device; sides are multiples of its patch.
    """
    parts = dict(_label_parts(model))
    owned: dict[str, int] = dict.fromkeys(PARTS, 0)
    seen: set[int] = set()
    for name, parameter in model.named_parameters():
        if id(parameter) not in seen:
            seen.add(id(parameter))
            owned[_part_of(name, parts)] += parameter.numel()
    weight_bytes = sum(p.nbytes for p in model.parameters())
    for name, layer in model.named_modules():
        if isinstance(layer, Encoded):
            owned[_part_of(f"{name}.weight", parts)] += layer.shape.numel()
            weight_bytes += sum(codes.nbytes for codes in model.get_submodule(name).buffers())
    with _no_memory(model) as ghost:
        meter = _Meter(model_tensors=[*ghost.parameters(), *ghost.buffers()])
        hooks = [hook for name in parts for hook in meter.watch(ghost.get_submodule(name), parts[name])]
        cast = torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
        kind = next((p.dtype for p in ghost.parameters()), None)  # of pictures as a network cast as a whole takes them
        with meter, counting(), torch.no_grad(), cast:
            ghost(Views(torch.zeros(1, views, 3, height, width, dtype=kind)))
        for hook in hooks:
            hook.remove()
    return Summary(views, height, width, owned, meter.flops, weight_bytes, meter.peak)


def _label_parts(model: nn.Module) -> Iterator[tuple[str, str]]:
    """(module name, part) of the modules that start a part; the innermost running one counts."""
    for name, module in model.named_modules():
        dot = f"{name}." if name else ""
        if isinstance(module, VisionTransformer):
            yield name, ENCODER
            # Its blocks also run one by one, without its own forward.
            yield from ((f"{dot}{child}", ENCODER) for child, _ in module.named_modules() if child)
        elif isinstance(module, ConvStem | PatchEmbed):
            yield name, ENCODER
        elif isinstance(module, Trunk):
            for index, role in enumerate(module.schedule):
                yield f"{dot}blocks.{index}", f"{role} attention"
                yield f"{dot}blocks.{index}.mlp", MLP
        elif isinstance(module, PoseInjection):
            yield name, GLOBAL
            yield f"{dot}mlp", MLP


def _part_of(name: str, parts: dict[str, str]) -> str:
    """The part of the innermost labelled module that contains a parameter."""
    while name:
        name = name.rpartition(".")[0]
        if name in parts:
            return parts[name]
    return HEADS


@contextmanager
def _no_memory(model: nn.Module) -> Iterator[nn.Module]:
    """A copy of the model without memory for its tensors, in a context where new tensors have none either."""
    with own_tables(), FakeTensorMode(), _NoValues():
        memory: dict[int, object] = {
            id(t): nn.Parameter(torch.empty(t.shape, dtype=t.dtype), requires_grad=False) for t in model.parameters()
        }
        memory |= {id(t): torch.empty(t.shape, dtype=t.dtype) for t in model.buffers()}
        yield copy.deepcopy(model, memory).eval()


class _NoValues(TorchFunctionMode):
    """Answers questions about values: nothing is NaN, no mask has a hole, counts are 1."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is Tensor.__bool__:
            return not getattr(args[0], "asked_any", False)
        if func in (Tensor.__int__, Tensor.item):
            return 1
        if func in (Tensor.nonzero, torch.nonzero):
            return torch.empty(0, args[0].dim(), dtype=torch.int64)
        result = func(*args, **(kwargs or {}))
        if func in (Tensor.any, torch.any):
            result.asked_any = True
        return result


class _Meter(TorchDispatchMode):
    """Counts operations by part, and the peak of live bytes."""

    def __init__(self, model_tensors: list[Tensor]):
        super().__init__()
        self.flops: dict[str, int] = dict.fromkeys(PARTS, 0)
        self.peak = 0
        self._alive = 0
        self._known = {t.untyped_storage()._cdata for t in model_tensors}
        self._running = [HEADS]

    def watch(self, module: nn.Module, part: str) -> list[RemovableHandle]:
        """Hooks that count the operations of `module` under `part`."""

        def enter(*_: object) -> None:
            self._running.append(part)

        def leave(*_: object) -> None:
            self._running.pop()

        return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.overloadpacket is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
            self.flops[self._running[-1]] += factor() * sdpa_flop_count(*(t.shape for t in args[:3]))
        elif func.overloadpacket is torch.ops.aten._int_mm:  # torch's own table lacks it
            self.flops[self._running[-1]] += factor() * mm_flop(*(t.shape for t in args[:2]))
        elif func.overloadpacket in flop_registry:
            count = flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
            self.flops[self._running[-1]] += factor() * count
        for value in tree_iter(out):
            if isinstance(value, Tensor):
                self._keep(value)
        return out

    def _keep(self, value: Tensor) -> None:
        storage = value.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self._alive += size
        self.peak = max(self.peak, self._alive)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._alive -= size
