"""Weights of the stereo network, which benchmarks/train_stereo.py makes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from lean3r.stereo.network import StereoNet

EMBEDDED = Path(__file__).parents[1] / "weights" / "stereo.safetensors"
STEP = ".step"  # ends the name of the steps of a kernel in bytes
MOST = 127  # steps of the largest weight of an output channel


def load_net(path: Path = EMBEDDED, device: torch.device | str = "cpu") -> StereoNet:
    """The network with the weights of a file, in float32, for use."""
    stored, net = load_file(path), StereoNet()
    weights = {name: value for name, value in stored.items() if not name.endswith(STEP)}
    net.load_state_dict({name: value.float() * stored.get(name + STEP, 1.0) for name, value in weights.items()})
    return net.to(device).eval().requires_grad_(False)


def in_bytes(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights as shipped: kernels [out, ...] in int8, with the step [out, 1, ...] of each output channel beside
    them; the rest as it is. Depth is as good as with float16 (benchmarks/depth.py), in half the bytes."""
    stored = dict(weights)
    for name, value in weights.items():
        if value.ndim > 1:
            value = value.float()
            step = value.abs().amax(tuple(range(1, value.ndim)), keepdim=True) / MOST
            stored[name + STEP] = step
            stored[name] = (value / step.clamp(min=torch.finfo(step.dtype).tiny)).round().to(torch.int8)
    return stored
