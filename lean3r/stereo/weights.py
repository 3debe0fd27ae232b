"""The shipped weights of the stereo network."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file

from lean3r.stereo.network import StereoNet

SHIPPED = Path(__file__).parents[1] / "weights" / "stereo.safetensors"


@lru_cache(maxsize=2)
def load_net(path: Path = SHIPPED, device: str = "cpu") -> StereoNet:
    """The network with the weights of a file, for use."""
    net = StereoNet()
    net.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return net.eval().requires_grad_(False).to(torch.device(device))
