"""Weights of the stereo network, which benchmarks/train_stereo.py makes; none are shipped yet."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from lean3r.stereo.network import StereoNet


def load_net(path: Path) -> StereoNet:
    """The network with the weights of a file, on the CPU, for use."""
    net = StereoNet()
    net.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return net.eval().requires_grad_(False)
