"""Operators as single nodes of torch's graphs, which torch.compile does not trace into.

Lists, chunks and choices that depend on values break a graph into many. Outside of torch.compile an operator
is called directly: at no cost, and counters of operations see its parts. Not so for GPU tensors that have shapes only:
a kernel cannot be launched on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

Results = Tensor | tuple[Tensor, ...]


def operator(name: str, schema: str, run: Callable[..., Results], shapes: Callable[..., Results]) -> Callable:
    """`run`, which is the node lean3r::name of a graph while torch compiles.

    schema "(arguments) -> results" as in torch.library; `shapes` takes the same arguments and returns empty results.
    The node is differentiable in its floating-point tensors; its backward pass runs the operator again, and through
    the gradients of that.
    """
    arguments, results = schema.strip("(").split(") -> ")

    def forward(*args) -> Results:
        results = run(*args)
        return results.contiguous() if isinstance(results, Tensor) else tuple(x.contiguous() for x in results)

    def gradients(grads: list[Tensor], wanted: list[int], *args) -> list[Tensor]:
        args = [x.detach().requires_grad_(i in wanted) if isinstance(x, Tensor) else x for i, x in enumerate(args)]
        leaves = [args[i] for i in wanted]
        with _autograd():
            pairs = zip((x for x in _as_tuple(run(*args)) if x.is_floating_point()), grads, strict=True)
            outputs, slopes = zip(*((x, grad) for x, grad in pairs if x.requires_grad), strict=True)
            slopes = torch.autograd.grad(outputs, leaves, slopes, allow_unused=True, materialize_grads=True)
        return [x.contiguous() for x in slopes]

    node = torch.library.custom_op(f"lean3r::{name}", forward, mutates_args=(), schema=f"({arguments}) -> {results}")
    node.register_fake(shapes)
    backward = torch.library.custom_op(
        f"lean3r::{name}_backward",
        gradients,
        mutates_args=(),
        schema=f"(Tensor[] grads, int[] wanted, {arguments}) -> Tensor[]",
    )
    backward.register_fake(lambda _, wanted, *args: [args[i].new_empty(args[i].shape) for i in wanted])

    def keep(ctx, inputs: tuple, output: Results) -> None:
        ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))
        ctx.mark_non_differentiable(*(x for x in _as_tuple(output) if not x.is_floating_point()))
        ctx.inputs = [None if isinstance(x, Tensor) else (x,) for x in inputs]

    def differentiate(ctx, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        tensors = iter(ctx.saved_tensors)
        args = [next(tensors) if x is None else x[0] for x in ctx.inputs]
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad) if needed]
        slopes = backward([x for x in grads if x is not None and x.is_floating_point()], wanted, *args)
        return tuple(slopes[wanted.index(i)] if i in wanted else None for i in range(len(args)))

    node.register_autograd(differentiate, setup_context=keep)

    def call(*args) -> Results:
        if torch.compiler.is_dynamo_compiling() or any(isinstance(x, FakeTensor) and x.is_cuda for x in args):
            return node(*args)
        return run(*args)

    return call


def _as_tuple(results: Results) -> tuple[Tensor, ...]:
    return (results,) if isinstance(results, Tensor) else tuple(results)


@contextmanager
def _autograd() -> Iterator[None]:
    """Record gradients inside of an operator, where torch has left that layer behind."""
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in ("AutogradFunctionality", "AutogradCPU", "AutogradCUDA", "AutogradOther", "ADInplaceOrView"):
        excluded = excluded.remove(getattr(torch._C.DispatchKey, key))
    with torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), excluded), torch.enable_grad():
        yield
