"""How a model is held and run: matrices in half precision, blocks compiled or recorded as CUDA graphs."""

from __future__ import annotations

from itertools import chain

import torch

from lean3r.errors import UsageError
from lean3r.layers.linear import Linear
from lean3r.layers.trunk import Trunk
from lean3r.layers.vit import VisionTransformer
from lean3r.models.base import Backbone


def hold(model: Backbone, dtype: torch.dtype) -> Backbone:
    """Hold the matrices of encoder and trunk in the number type that they are multiplied in.

    Under autocast, which `predict` runs half precision in, results are bit for bit those of float32 weights, which
    would be cast at every product. Changes the model in place.
    """
    for part in model.modules():
        if isinstance(part, Trunk | VisionTransformer):
            for layer in part.modules():
                if type(layer) is Linear:  # what is quantised already holds its weight in its own way
                    layer.to(dtype)
    return model


def weight_bytes(model: Backbone) -> int:
    """Of all distinct parameters and buffers."""
    return sum(t.nbytes for t in {id(t): t for t in chain(model.parameters(), model.buffers())}.values())


def accelerate(model: Backbone, *, compile: bool = False, cuda_graphs: bool = False) -> None:
    """Have the blocks of a model's encoder and trunk compiled, recorded as CUDA graphs, or both, at their first run.

    Parameters keep their names and places; copies of the model are plain again. Graphs are recorded anew for every
    number and size of pictures: they pay where these stay the same. Results agree up to rounding. UsageError where
    graphs are asked for on a CPU, or compiling without a compiler.
    """
    device = next(model.parameters()).device
    if cuda_graphs and device.type != "cuda":
        raise UsageError(
            "CUDA graphs replay work on an NVIDIA GPU, and the model runs on the CPU. Leave cuda_graphs out"
        )
    if compile and device.type == "cpu":
        _check_compiler()
    if not (compile or cuda_graphs):
        return
    # What is None keeps torch's default.
    backend = "inductor" if compile else "cudagraphs"
    mode = "reduce-overhead" if compile and cuda_graphs else None
    if cuda_graphs:
        # Outputs of earlier blocks stay valid until the next run of the whole model.
        model.register_forward_pre_hook(_next_run)
    for part in model.modules():
        if isinstance(part, Trunk | VisionTransformer):
            for block in part.blocks:
                block.compile(backend=backend, mode=mode, dynamic=False if cuda_graphs else None)


def _next_run(*_: object) -> None:
    torch.compiler.cudagraph_mark_step_begin()


def _check_compiler() -> None:
    from torch._inductor import cpp_builder

    try:
        cpp_builder.get_cpp_compiler()
    except Exception as error:  # of several kinds, by version of torch
        raise UsageError(
            f"compiling for a CPU needs a C++ compiler, and torch finds none ({type(error).__name__}). "
            "Install g++ or clang++, or leave compile out"
        ) from error
