"""The linear layers, convolutions and attention layers of a network, and which part each belongs to."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from torch import nn

from lean3r.attention.base import Mechanism
from lean3r.compress.targets import TRUNK, Mapped, Part, Place, Site, places_of
from lean3r.layers.attention import SelfAttention
from lean3r.layers.block import Block
from lean3r.layers.embed import ConvStem
from lean3r.layers.linear import Linear
from lean3r.layers.trunk import Trunk
from lean3r.layers.vit import PatchEmbed, VisionTransformer

PLAIN = (nn.Linear, Linear)  # not subclasses, which behave differently (the projection inside MultiheadAttention)
CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
LISTS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)
NARROW = 16
_ATTENTION = re.compile("att(entio)?n", re.IGNORECASE)
_CAMERA = re.compile(r"(^|\.)cam(era|_)[^.]*(\.|$)")


def linears_of(
    model: nn.Module, linears: Sequence[type] = PLAIN, convolutions: Sequence[type] = CONVOLUTIONS
) -> list[Place]:
    """Every linear layer and convolution of these classes, in the order of the modules; by default those that can be
    quantised."""
    labels = labels_of(model)
    places = []
    for path, module in model.named_modules():
        if type(module) in linears or type(module) in convolutions:
            narrow = min(module.get_parameter("weight").shape[:2]) < NARROW
            place = _innermost(path, labels)
            places.append(replace(place, name=path, convolution=type(module) in convolutions, narrow=narrow))
    return places


def sites_of(model: nn.Module) -> list[Site]:
    """The attention layers in the transformer blocks of one of our networks, in the order of the modules; those that an
    adapter found in another network."""
    if isinstance(model, Mapped):
        return list(model.attention_sites)
    labels, sites = labels_of(model), []
    for path, module in model.named_modules():
        if isinstance(module, SelfAttention) and (place := _innermost(path, labels)).number is not None:
            sites.append(Site(path, place.part, module.proj.in_features, module.heads))
    return sites


def labels_of(model: nn.Module) -> dict[str, Place]:
    """The part of the network that a module stands for, by path; for a layer the innermost enclosing module counts."""
    if isinstance(model, Mapped) or not any(isinstance(module, Block) for module in model.modules()):
        return _third_party_labels(model)
    labels: dict[str, Place] = {}
    counts: Counter[Part] = Counter()

    def count(path: str, part: Part) -> None:
        overall = sum(counts[role] for role in TRUNK) if part in TRUNK else None
        labels[path] = Place(path, part, counts[part], overall)
        counts[part] += 1

    for path, module in model.named_modules():
        dot = f"{path}." if path else ""
        if isinstance(module, Trunk) and not _CAMERA.search(path):
            for index, role in enumerate(module.schedule):
                count(f"{dot}blocks.{index}", role)
        elif isinstance(module, VisionTransformer):
            labels[path] = Place(path, "encoder")
            for index in range(len(module.blocks)):
                count(f"{dot}blocks.{index}", "encoder")
        elif isinstance(module, ConvStem | PatchEmbed):
            labels[path] = Place(path, "embedding")
        elif isinstance(module, Mechanism):
            labels[path] = Place(path, "mechanism")
        elif isinstance(module, Block) and path not in labels:
            count(path, _outside(path))
    return labels


def _third_party_labels(model: nn.Module) -> dict[str, Place]:
    """The places of mapped attention layers and of the blocks around them; without a map, the numbered blocks around
    modules whose class is called attention."""
    labels = {path: Place(path, "mechanism") for path, m in model.named_modules() if isinstance(m, Mechanism)}
    places = places_of(model.attention_sites) if isinstance(model, Mapped) else []
    if not places:
        attention = [path for path, m in model.named_modules() if _ATTENTION.search(type(m).__name__)]
        outer = [path for path in attention if not any(path.startswith(f"{other}.") for other in attention)]
        blocks = dict.fromkeys(block for block in blocks_of(model, outer).values() if block)
        places = [Place(path, _outside(path), number) for number, path in enumerate(blocks)]
    blocks = blocks_of(model, [place.name for place in places])
    for place in places:
        labels[place.name] = place
        labels.setdefault(blocks[place.name], place)  # blocks with several layers have the role of the first
    return labels


def blocks_of(model: nn.Module, layers: Sequence[str]) -> dict[str, str]:
    """The path of the block around each of the attention layers of a third-party network.

    It is the outermost item of a list of modules that contains no other of these layers. If every item does, it is the
    innermost; outside of lists, it is the module that contains the layer.
    """
    found = {}
    for layer in layers:
        words = layer.split(".")
        outer = [".".join(words[:count]) for count in range(len(words) + 1)]
        items = [item for parent, item in pairwise(outer) if isinstance(model.get_submodule(parent), LISTS)]
        alone = [item for item in items if sum(f"{other}.".startswith(f"{item}.") for other in layers) == 1]
        found[layer] = alone[0] if alone else items[-1] if items else outer[-2]
    return found


def _innermost(path: str, labels: dict[str, Place]) -> Place:
    """The label of the innermost labelled module around a layer."""
    outer = path
    while outer:
        outer = outer.rpartition(".")[0]
        if outer in labels:
            return labels[outer]
    return Place(path, _outside(path))


def _outside(path: str) -> Part:
    """The part of a layer outside of encoder and trunk."""
    return "camera" if _CAMERA.search(path) else "head"
