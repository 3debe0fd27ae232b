"""Optimisation: AdamW and batched Muon under one schedule, one gradient buffer, averaged weights.

Everything works on a few large tensors; thousands of tiny operations would slow down a small model.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

from lean3r.train import foreach
from lean3r.train.config import OptimConfig

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

    from lean3r.train.checkpoints.shards import PartState
    from lean3r.train.distributed import World

# Quintic Newton-Schulz coefficients: https://kellerjordan.github.io/posts/muon/
_NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_NS_STEPS = 5


def lr_factor(step: int, total_steps: int, config: OptimConfig) -> float:
    """Multiplier of the learning rate at step 0 ... total_steps - 1: linear warm-up, then the schedule of `config`."""
    warmup, linear = config.warmup_steps, config.schedule == "linear"
    if step < warmup:
        return (step if linear else step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    left = 1 - progress if linear else 0.5 * (1 + math.cos(math.pi * progress))
    return config.final_lr_ratio + (1 - config.final_lr_ratio) * left


def clip_factor(norm: float, limit: float) -> float:
    """The factor, if below 1, that clips gradients of this norm: that of torch.nn.utils.clip_grad_norm_."""
    return limit / (norm + 1e-6)


def goes_to_muon(name: str, parameter: Tensor) -> bool:
    """Whether Muon optimises this parameter: a matrix inside a list called `blocks`."""
    return parameter.ndim == 2 and ".blocks." in f".{name}"


def orthogonalise(matrices: Tensor) -> Tensor:
    """Push all singular values of [N, rows, cols] matrices towards 1 (within about 0.7 to 1.2); bfloat16.

    Newton-Schulz of the Muon post, all matrices at once, with the Gram matrix of their short side.
    """
    a, b, c = _NS_COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16()
    x.div_(x.norm(dim=(1, 2), keepdim=True).clamp_(min=1e-7))
    for _ in range(_NS_STEPS):
        gram = x.mT @ x if tall else x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        left, right = (x, polynomial) if tall else (polynomial, x)
        x = torch.baddbmm(x, left, right, beta=a)
    return x


class Muon(torch.optim.Optimizer):
    """Momentum, Nesterov, orthogonalised (https://kellerjordan.github.io/posts/muon/), for [rows, cols] weights.

    Same rule as torch.optim.Muon with adjust_lr_fn "original", but all matrices of one shape are
    orthogonalised together, which is faster. If matrices are spread over processes (DTensor), every process gathers
    the whole update, orthogonalises it and applies its own part.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            whole: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            if not whole:
                continue
            for parameter in whole:
                if not self.state[parameter]:
                    self.state[parameter]["momentum"] = torch.zeros_like(parameter)
            params = [local_part(p) for p in whole]
            grads = [local_part(p.grad) for p in whole if p.grad is not None]
            buffers = [local_part(self.state[p]["momentum"]) for p in whole]
            momentum, lr = group["momentum"], group["lr"]
            foreach.lerp_(buffers, grads, 1 - momentum)
            updates = foreach.lerp(grads, buffers, momentum)
            foreach.mul_(params, 1 - lr * group["weight_decay"])
            by_shape: dict[torch.Size, list[int]] = defaultdict(list)
            for index, parameter in enumerate(whole):
                by_shape[parameter.shape].append(index)
            for (rows, cols), members in by_shape.items():
                directions = orthogonalise(torch.stack([gather_part(updates[i], whole[i]) for i in members]))
                for index, direction in zip(members, directions, strict=True):
                    params[index].add_(part_of(direction, whole[index]), alpha=-lr * math.sqrt(max(1.0, rows / cols)))


def local_part(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that is spread over processes (shares its memory); other tensors unchanged."""
    return tensor.to_local() if is_spread(tensor) else tensor


def gather_part(part: Tensor, like: Tensor) -> Tensor:
    """Gather the whole tensor from the parts of all processes, which are spread as `like` is."""
    if not is_spread(like):
        return part
    from torch.distributed.tensor import DTensor

    whole = DTensor.from_local(part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())
    return whole.full_tensor()


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor that every process holds, spread as `like` is."""
    return local_part(spread_as(whole, like))


def spread_as(whole: Tensor, like: Tensor) -> Tensor:
    """Spread a tensor that every process holds over the processes as `like` is; unchanged if `like` is not spread."""
    if not is_spread(like):
        return whole
    from torch.distributed.tensor import distribute_tensor

    # No source rank: every process holds the whole tensor, so nothing is sent.
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def is_spread(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether a tensor is spread over processes."""
    return hasattr(tensor, "device_mesh")


class Optimizer:
    """AdamW and Muon as one: one schedule, one state. Parameters without a gradient are left alone."""

    def __init__(self, model: nn.Module, config: OptimConfig, total_steps: int):
        self.config, self.total_steps = config, total_steps
        matrices, decayed, plain, scalars = [], [], [], []
        for name, parameter in model.named_parameters():
            if config.muon_lr > 0 and goes_to_muon(name, parameter):
                matrices.append(parameter)
            else:
                decays = parameter.ndim >= 2 and not any(part in name for part in config.undecayed)
                (decayed if decays else plain if parameter.ndim else scalars).append(parameter)
        groups = [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": plain, "weight_decay": 0.0},
            # A group of its own: sharding leaves scalars whole, and a group must not mix whole and sharded parameters.
            {"params": scalars, "weight_decay": 0.0},
        ]
        groups = [g for g in groups if g["params"]]
        self.parts: dict[str, torch.optim.Optimizer] = {}
        if groups:
            self.parts["adamw"] = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
        if matrices:
            self.parts["muon"] = Muon(matrices, lr=config.muon_lr, weight_decay=config.weight_decay)
        self._peak_lr = {"adamw": config.lr, "muon": config.muon_lr}

    def step(self, step: int) -> None:
        """Apply the gradients with the learning rates of this step of the run."""
        factor = self.factor(step)
        for name, part in self.parts.items():
            for group in part.param_groups:
                group["lr"] = self._peak_lr[name] * factor
            part.step()

    def factor(self, step: int) -> float:
        """Multiplier of both learning rates at this step."""
        return lr_factor(step, self.total_steps, self.config)

    def state_dict(self) -> dict[str, PartState]:
        """State of both optimisers."""
        states = {name: part.state_dict() for name, part in self.parts.items()}
        return {n: {"state": s["state"], "param_groups": s["param_groups"]} for n, s in states.items()}

    def parameters(self, part: str) -> list[nn.Parameter]:
        """The parameters of one optimiser, in the order in which its state numbers them."""
        return [parameter for group in self.parts[part].param_groups for parameter in group["params"]]

    def load_state_dict(self, state: Mapping[str, PartState]) -> None:
        """Restore the state of each parameter from `state_dict`; learning rates and settings stay as in this config."""
        for name, part in self.parts.items():
            saved = state[name]["state"] if name in state else {}  # absent before the optimiser's first step
            part.load_state_dict({"state": saved, "param_groups": part.state_dict()["param_groups"]})


class GradientBuffer:
    """One flat float32 tensor; the `.grad` of every trainable parameter is a view into it.

    Zeroing, averaging over processes, norm and clipping are then one operation each. The last EXTRA elements hold
    scalars that are averaged together with the gradients.
    """

    EXTRA = 2

    def __init__(self, parameters: Iterable[nn.Parameter]):
        trainable = [p for p in parameters if p.requires_grad]
        # 16 floats: every view starts on a 64-byte line.
        sizes = [-(-p.numel() // 16) * 16 for p in trainable]
        self.flat = torch.zeros(sum(sizes) + self.EXTRA, device=trainable[0].device)
        for parameter, part in zip(trainable, self.flat[: -self.EXTRA].split(sizes), strict=True):
            parameter.grad = part[: parameter.numel()].view(parameter.shape)
        self.grads, self.extra = self.flat[: -self.EXTRA], self.flat[-self.EXTRA :]

    def zero(self) -> None:
        """Set all gradients and extra scalars to zero."""
        self.flat.zero_()

    def reduce(self, loss: Tensor, stop: bool, world: World) -> tuple[float, float, bool]:
        """Average gradients and loss over all processes; return (norm, mean loss, whether any process stops)."""
        self.extra[0] = loss.detach()
        self.extra[1] = float(stop)
        world.sum_(self.flat)
        if world.size > 1:
            self.flat.div_(world.size)
        # The only place where the host waits for the device.
        norm, mean_loss, stopping = torch.cat([self.norm()[None], self.extra]).tolist()
        return norm, mean_loss, stopping > 0

    def norm(self) -> Tensor:
        """Global 2-norm of all gradients, a scalar tensor; not finite if any gradient is not."""
        return self.grads.norm()

    def clip(self, norm: float, limit: float) -> None:
        """Scale the gradients, whose norm is `norm`, down to `limit` if they exceed it (torch's rule)."""
        if (factor := clip_factor(norm, limit)) < 1:
            self.grads.mul_(factor)


class Ema:
    """Running average of the weights in float32; `model` is a copy in evaluation mode that holds it.

    At update number t (from 0) the decay is min(decay, (1 + t) / (10 + t)), so that early weights fade.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.model = copy.deepcopy(model).float().eval().requires_grad_(False)
        self._averages: list[Tensor] = list(self.model.parameters())
        self._weights: list[Tensor] = list(model.parameters())
        self._buffers = list(zip(self.model.buffers(), model.buffers(), strict=True))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the averages with the model's weights after step number `step`; buffers are copied."""
        decay = min(self.decay, (1 + step) / (10 + step))
        foreach.lerp_(self._averages, self._weights, 1 - decay)
        for mine, theirs in self._buffers:
            mine.copy_(theirs)

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The model that holds the averages, in evaluation mode."""
        yield self.model

    def state_dict(self) -> dict[str, Tensor]:
        """The averages, by name of parameter or buffer."""
        return self.model.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore a result of `state_dict`."""
        self.model.load_state_dict(state)
