"""The official programs as peers: imported from a package or a clone, filled like ours, run and compared.

Used by `lean3r bench --against official` and by tests/parity. Nothing of theirs is copied; each peer says where its
class is and how it is called.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lean3r.errors import UsageError
from lean3r.layers.embed import IMAGENET_MEAN, IMAGENET_STD, imagenet
from lean3r.models import MODELS
from lean3r.models.base import Backbone
from lean3r.models.checkpoint import without_memory
from lean3r.testing import rms_ratio
from lean3r.types import Views

Outputs = dict[str, Tensor]
CONSTANTS = {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
AGREE = 2e-5
"""Relative RMS by which the outputs of two forms of dense attention may differ in float32."""
PEERS_AGREE = 5e-5
"""The same for an official program and ours: rounding of other kernels, on any processor and with rounded weights."""


class PeerAbsent(Exception):
    """The official program cannot be imported; the message says how to get it."""


@dataclass(frozen=True)
class Peer:
    """One official program.

    build() -> its network; call(network, pictures [1, S, 3, H, W] in 0..1) -> outputs under our names (those of
    Backbone.outputs); prefix: what its published files put before the network's own keys; clone: the folder to
    name with --peer, None for the package `depth-anything-3`; compare: output -> change of variable before comparing.
    """

    build: Callable[[], nn.Module]
    call: Callable[[nn.Module, Tensor], Outputs]
    clone: str | None = None
    prefix: str = ""
    compare: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)


def official_class(module: str, name: str) -> Any:
    """A class of the official code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations in code that is not ours
        return getattr(importlib.import_module(module), name)


def build_da3(name: str) -> nn.Module:
    """A Depth Anything 3 network by the package's own configuration."""
    configs = official_class("depth_anything_3.registry", "MODEL_REGISTRY")
    load, create = (official_class("depth_anything_3.cfg", f) for f in ("load_config", "create_object"))
    return create(load(configs[name]))


def call_da3(network: nn.Module, images: Tensor) -> Outputs:
    """Takes pictures that are normalised already."""
    return {name: value for name, value in network(imagenet(images)).items() if isinstance(value, Tensor)}


def call_vggt(network: nn.Module, images: Tensor) -> Outputs:
    """The encoding after the last iteration is called pose_enc there."""
    found = network(images)
    last = {"pose_enc_iter3": found["pose_enc"]}
    return last | {n: found[n] for n in ("depth", "depth_conf", "world_points", "world_points_conf")}


def signed_log(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|)."""
    return x.sign() * x.abs().log1p()


def log_less_one(x: Tensor) -> Tensor:
    """log(x - 1), for confidences 1 + exp(...); exactly 1 is allowed."""
    return (x.double() - 1).clamp_min(1e-9).log()


LOGS = {"depth": torch.log, "depth_conf": log_less_one}
_DA3 = {
    name: Peer(partial(build_da3, name), call_da3, prefix="model.", compare=LOGS)
    for name in ("da3-small", "da3-base", "da3-large", "da3mono-large", "da3metric-large")
}
_POINTS = {"world_points": signed_log, "world_points_conf": log_less_one}
PEERS: dict[str, Peer] = {
    **_DA3,
    "vggt": Peer(lambda: official_class("vggt.models.vggt", "VGGT")(), call_vggt, "vggt", compare=LOGS | _POINTS),
    "pi3": Peer(lambda: official_class("pi3.models.pi3", "Pi3")(), lambda network, x: network(x), "pi3"),
    "pi3x": Peer(lambda: official_class("pi3.models.pi3x", "Pi3X")(), lambda network, x: network(x), "pi3"),
}
"""Our model name -> the official program."""


def parse_clones(texts: Iterable[str]) -> dict[str, Path]:
    """Values of --peer, "vggt=PATH" or "pi3=PATH", as clone name -> folder; UsageError as in `check_clone`."""
    clones = {}
    for text in texts:
        name, _, path = text.partition("=")
        clones[name] = Path(path).expanduser().resolve()
        check_clone(name, clones[name], text)
    return clones


def check_clone(name: str, folder: Path, given: str = "") -> None:
    """UsageError unless `name` is the name of a clone and its folder holds the official repository."""
    known = sorted({peer.clone for peer in PEERS.values() if peer.clone})
    if name not in known or not (given.partition("=")[2] or not given):
        raise UsageError(f"--peer got '{given or name}'; expected NAME=PATH with NAME of {', '.join(known)}.")
    if not (folder / name).is_dir():
        raise UsageError(f"--peer {name}: {folder} is no clone of the official repository (no folder '{name}' in it).")


def build_peer(name: str, clones: Mapping[str, Path]) -> nn.Module:
    """The official network of our model `name`, filled by its keys; PeerAbsent when it is not here."""
    peer = PEERS[name]
    if peer.clone is not None:
        folder = clones.get(peer.clone)
        if folder is None:
            raise PeerAbsent(f"no clone of {peer.clone} was named: give --peer {peer.clone}=PATH")
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    try:
        network = peer.build().eval()
    except ModuleNotFoundError as error:
        how = "docs/how-to/parity.md lists what to install"
        raise PeerAbsent(f"the official code of {name} misses the module '{error.name}'; {how}") from error
    parameters = set(dict(network.named_parameters(remove_duplicate=False)))
    with torch.no_grad():
        # Of names that share one tensor the last counts, as when a checkpoint is loaded; buffers keep their values.
        for key, value in network.state_dict().items():
            if key in parameters:
                value.copy_(seeded(peer.prefix + key, value.shape))
    return network


def seeded(key: str, shape: torch.Size, seed: int = 0) -> Tensor:
    """A float32 value for an official key, the same wherever it is asked for; every parameter matters.

    Matrices keep the size of what passes through them; scales are near 1, LayerScale near 0.2, the rest small.
    """
    digest = hashlib.sha256(f"{seed}|{key}".encode()).digest()
    noise = torch.empty(shape).normal_(generator=torch.Generator().manual_seed(int.from_bytes(digest[:7], "little")))
    if key.endswith(".gamma"):
        return noise.mul_(0.04).add_(0.2)
    if key.endswith("bias"):
        # Angles of view stay away from 0, where focal lengths have no bound.
        return noise.mul_(0.05).add_(1.0 if "fc_fov" in key else 0.0)
    if key.endswith("weight"):
        return noise.mul_(0.1).add_(1.0) if len(shape) == 1 else noise.mul_((noise[0].numel()) ** -0.5)
    return noise.mul_(0.5)


def build_ours(name: str) -> Backbone:
    """Our model by its name, filled with the same values by official key (by our own where there is none)."""
    model: Backbone = without_memory(MODELS.get(name))
    values = {}
    for own, tensor in model.state_dict().items():
        key = model.KEY_MAP.official(own) or own
        constant = CONSTANTS.get(key.rpartition(".")[2])
        values[own] = seeded(key, tensor.shape) if constant is None else torch.tensor(constant).reshape(tensor.shape)
    model.load_state_dict(values, assign=True)
    return model.eval()


def give_weights(ours: Backbone, network: nn.Module, prefix: str) -> None:
    """Let the official network have the very tensors of ours, wherever both have the same parameter."""
    theirs = {prefix + key: value for key, value in network.named_parameters()}
    for own, value in ours.state_dict(keep_vars=True).items():
        same = theirs.get(ours.KEY_MAP.official(own) or own)
        if same is not None and same.shape == value.shape:
            same.data = value.data


def run_ours(model: Backbone, images: Tensor) -> Outputs:
    """Everything that both sides return, under the official names."""
    return model.outputs(model.encode(Views(images)))  # type: ignore[operator]


def differences(name: str, ours: Outputs, theirs: Outputs) -> dict[str, float]:
    """Relative RMS of every official output, after the changes of variable; KeyError when we lack one."""
    compare = PEERS[name].compare
    found = {}
    for output, value in theirs.items():
        change = compare.get(output, lambda x: x)
        assert ours[output].shape == value.shape, f"{output}: {ours[output].shape}, official {value.shape}"
        found[output] = rms_ratio(change(ours[output]), change(value))
    return found
