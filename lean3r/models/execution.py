"""How a model is stored and run: its number type, weights in half precision, blocks compiled, CUDA graphs."""

from __future__ import annotations

from itertools import chain
from typing import TypeVar

import torch
from torch import nn

from lean3r.errors import UsageError
from lean3r.heads.refine import ViewRefiner
from lean3r.layers.linear import Linear
from lean3r.layers.trunk import Trunk
from lean3r.layers.vit import VisionTransformer
from lean3r.models.base import HALF_DB, Backbone
from lean3r.models.graphs import EncodeGraphs
from lean3r.ops.dispatch import OLDEST_BF16, has_fast_bfloat16

FORMS = 64  # of a block that torch.compile keeps

M = TypeVar("M", bound=nn.Module)


def choose_dtype(model: Backbone, device: torch.device) -> tuple[torch.dtype, str]:
    """The number type in which `--dtype auto` runs a model on a device, and the reason in a few words."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= OLDEST_BF16:
        return torch.bfloat16, "the GPU multiplies bfloat16"
    if device.type != "cpu" or not has_fast_bfloat16():
        return torch.float32, "the processor does not multiply bfloat16 natively"
    if not model.BFLOAT16:
        return torch.float32, f"in bfloat16, outputs of {model.name} are not known to keep {HALF_DB:.0f} dB"
    if model.plan is not None:
        return torch.float32, "bfloat16 was measured without a plan"
    return torch.bfloat16, f"the processor multiplies bfloat16, and every output keeps {HALF_DB:.0f} dB"


def hold(model: M, dtype: torch.dtype) -> M:
    """Store the weight matrices of the blocks in encoder, trunk and decoders in `dtype`, that of their products.

    `predict` runs half precision under autocast, which would cast float32 weights at every product; the results are
    bit for bit the same. Changes the model in place.
    """
    for part in model.modules():
        if isinstance(part, Trunk | VisionTransformer | ViewRefiner):
            for layer in part.blocks.modules():
                if type(layer) is Linear:  # quantised layers store their weight in their own way
                    layer.to(dtype)
    return model


def weight_bytes(model: Backbone) -> int:
    """Bytes of all distinct parameters and buffers."""
    return sum(t.nbytes for t in {id(t): t for t in chain(model.parameters(), model.buffers())}.values())


def accelerate(model: Backbone, *, compile: bool = False, cuda_graphs: bool = False) -> None:
    """Compile the blocks of a model's encoder and trunk at their first run, replay `encode` as CUDA graphs, or both.

    Parameters keep their names and places; copies of the model are not accelerated. A graph is recorded for every new
    number or size of pictures up to 32 (models/graphs.py), so graphs pay off only if these stay the same. Compiled,
    results agree up to rounding; graphs change no bit. UsageError for graphs on a CPU, and for compilation without a
    C++ compiler.
    """
    device = next(model.parameters()).device
    if cuda_graphs and device.type != "cuda":
        raise UsageError("CUDA graphs need an NVIDIA GPU, but the model is on the CPU. Leave cuda_graphs out")
    if compile and device.type == "cpu":
        check_compiler()
    model.graphs = EncodeGraphs() if cuda_graphs else None
    if not compile:
        return
    # All blocks share one function: kinds of attention, number types and sizes are as many forms of it. Torch keeps 8
    # by default, and runs every further one uncompiled.
    torch._dynamo.config.recompile_limit = max(FORMS, torch._dynamo.config.recompile_limit)
    for part in model.modules():
        if isinstance(part, Trunk | VisionTransformer):
            for block in part.blocks:
                block.compile()


def check_compiler() -> None:
    """UsageError where torch finds no C++ compiler."""
    from torch._inductor import cpp_builder

    try:
        cpp_builder.get_cpp_compiler()
    except Exception as error:  # its type depends on the version of torch
        raise UsageError(
            f"compiling for a CPU needs a C++ compiler, but torch cannot find one ({type(error).__name__}). "
            "Install g++ or clang++, or leave compile out"
        ) from error
