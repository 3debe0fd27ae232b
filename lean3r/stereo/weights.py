"""Weights of the stereo network, which benchmarks/train_stereo.py makes."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from lean3r.stereo.network import StereoNet

EMBEDDED = Path(__file__).parents[1] / "weights" / "stereo.safetensors"


def load_net(path: Path = EMBEDDED, device: torch.device | str = "cpu") -> StereoNet:
    """The network with the weights of a file, in float32, for use."""
    net = StereoNet()
    net.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return net.to(device).eval().requires_grad_(False)
