"""Models sharded over processes (FSDP2), and activation checkpointing of blocks.

Parameters, gradients, averages and optimiser state of a sharded model are DTensors: each process holds a part. The
parameters of a block are gathered while it runs; parameters outside blocks, for the whole objective.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Concatenate, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lean3r.train import foreach
from lean3r.train.distributed import World
from lean3r.train.optim import clip_factor, is_spread, local_part, spread_as

# Bytes per parameter without sharding: weight, gradient, average and two AdamW moments, in float32.
BYTES_PER_PARAMETER = 20


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The members of all lists called `blocks`: encoder and trunk blocks, which take most of the activation memory."""
    lists = [m for name, m in model.named_modules() if name.split(".")[-1] == "blocks" and isinstance(m, nn.ModuleList)]
    return list(dict.fromkeys(block for blocks in lists for block in blocks))


@contextmanager
def checkpointed(model: nn.Module) -> Iterator[None]:
    """Within the block, the model's blocks keep only their inputs and are computed again in the backward pass."""
    from torch.utils.checkpoint import checkpoint

    blocks = blocks_of(model)
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def is_sharded(shard: str, model: nn.Module, world: World, device: torch.device) -> bool:
    """Whether to shard the model: `shard` is "none", "full" or "auto" (on several GPUs, if a whole copy of the
    training state would take more than half the memory of one). A single process never shards."""
    if world.size == 1 or shard == "none":
        return False
    if shard == "full":
        return True
    needed = BYTES_PER_PARAMETER * sum(p.numel() for p in model.parameters())
    return device.type == "cuda" and needed > torch.cuda.get_device_properties(device).total_memory / 2


P = ParamSpec("P")
T = TypeVar("T")


class Call(nn.Module):
    """Wraps the objective as a forward pass, so that FSDP gathers the parameters of the model for all of its calls."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, loss_fn: Callable[Concatenate[nn.Module, P], T], *args: P.args, **options: P.kwargs) -> T:
        """loss_fn(model, *args, **options)."""
        return loss_fn(self.model, *args, **options)


def shard(model: nn.Module, device: torch.device) -> Call:
    """Spread a model over all processes, in place, block by block; call the objective through the returned wrapper.

    Parameters without dimensions stay whole on every process.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # FSDP2 warns about in-place changes to outputs when a block is a plain linear layer (in tests); there are none.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    whole = {p for p in model.parameters() if p.ndim == 0}
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh, ignored_params=whole)
    call = Call(model)
    fully_shard(call, mesh=mesh, ignored_params=whole)
    return call


class ShardedGradients:
    """GradientBuffer for sharded models: FSDP averages each gradient; one small reduction does the rest."""

    def __init__(self, model: nn.Module):
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.whole = [p for p in self.parameters if p.ndim == 0]

    def zero(self) -> None:
        """Drop all gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def reduce(self, loss: Tensor, stop: bool, world: World) -> tuple[float, float, bool]:
        """See GradientBuffer.reduce."""
        for parameter in self.parameters:
            if parameter.grad is None:  # not used in this step; weight decay still applies, as with GradientBuffer
                parameter.grad = torch.zeros_like(parameter)
        spread = [local_part(p.grad) for p in self.parameters if p.grad is not None and p.ndim]
        squares = torch.stack([grad.square().sum() for grad in spread]).sum() if spread else loss.new_zeros(())
        whole = [p.grad for p in self.whole if p.grad is not None]
        flat = torch.stack([squares.float(), loss.detach().float(), squares.new_full((), float(stop)), *whole])
        world.sum_(flat)
        flat[1:] /= world.size
        for grad, mean in zip(whole, flat[3:], strict=True):
            grad.copy_(mean)
        total, mean_loss, stopping = torch.cat([flat[:1] + flat[3:].square().sum(), flat[1:3]]).tolist()
        return math.sqrt(total) if total >= 0 else total, mean_loss, stopping > 0

    def clip(self, norm: float, limit: float) -> None:
        """Scale the gradients, whose norm is `norm`, down to `limit` if they exceed it."""
        if (factor := clip_factor(norm, limit)) < 1:
            grads: list[Tensor] = [local_part(p.grad) for p in self.parameters if p.grad is not None]
            foreach.mul_(grads, factor)


class ShardedEma:
    """Ema for sharded models: every process averages its part; rank 0 holds a whole copy to assemble them in."""

    def __init__(self, whole: nn.Module, decay: float, world: World, device: torch.device):
        """`whole` is the model before it is sharded."""
        self.decay, self.device = decay, device
        self._copy = copy.deepcopy(whole).cpu().float().eval().requires_grad_(False) if world.is_main else None

    def follow(self, model: nn.Module) -> None:
        """Start from the weights of the model, which is sharded by now."""
        self._theirs = {name: value.detach() for name, value in model.state_dict().items()}
        self._mine = {n: v.clone().float() if v.is_floating_point() else v.clone() for n, v in self._theirs.items()}
        trained = [name for name, _ in model.named_parameters(remove_duplicate=False)]
        self._averages = [local_part(self._mine[name]) for name in trained]
        self._weights = [local_part(self._theirs[name]) for name in trained]
        self._buffers = [(self._mine[name], value) for name, value in self._theirs.items() if name not in set(trained)]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """See Ema.update."""
        decay = min(self.decay, (1 + step) / (10 + step))
        foreach.lerp_(self._averages, self._weights, 1 - decay)
        for mine, theirs in self._buffers:
            mine.copy_(theirs)

    @contextmanager
    def averaged(self) -> Iterator[nn.Module | None]:
        """The whole model of averages on rank 0, None on the others; all processes must call it together."""
        for name, value in self._mine.items():
            full = value.full_tensor() if is_spread(value) else value
            if self._copy is not None:
                self._copy.state_dict()[name].copy_(full)
        if self._copy is None:
            yield None
            return
        self._copy.to(self.device)
        try:
            yield self._copy
        finally:
            self._copy.cpu()

    def state_dict(self) -> dict[str, Tensor]:
        """This process's parts of the averages, by name."""
        return self._mine

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore whole or spread averages."""
        copy_into(self._mine, state)


@torch.no_grad()
def copy_into(targets: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    """Copy values, whole or spread like the targets, into tensors of the same names; each process copies its part."""
    for name, target in targets.items():
        value = values[name]
        value = value if is_spread(value) else spread_as(value.to(target.device), target)
        local_part(target).copy_(local_part(value))
