"""Select the parameters to train, by their role in the network or by a target that names layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Set
from fnmatch import fnmatchcase

from torch import nn

from lean3r.attention.base import Mechanism
from lean3r.compress.fp8_linear import FakeQuantConv2d, FakeQuantConvTranspose2d, FakeQuantLinear
from lean3r.compress.linears import CONVOLUTIONS, PLAIN, blocks_of, linears_of, sites_of
from lean3r.compress.targets import TRUNK, Mapped, Part, Target
from lean3r.errors import UsageError
from lean3r.layers.embed import ConvStem
from lean3r.layers.trunk import Trunk
from lean3r.layers.vit import PatchEmbed, VisionTransformer
from lean3r.train.config import Stage

# Fake-quantised layers have the roles of the layers that they replace.
LINEARS = (*PLAIN, FakeQuantLinear)
WINDOWED = (*CONVOLUTIONS, FakeQuantConv2d, FakeQuantConvTranspose2d)
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
_CAMERA = re.compile(r"(^|\.)cam(era|_)[^.]*(\.|$)")
_ADAPTER = re.compile(r"(^|\.)lora_[^.]+\.")
_MISSING = {
    "adapters": " Add them first (lora.add_lora).",
    "mechanisms": " Only attention such as gsa and sla has some; with other plans, name other roles.",
}
"""Role -> what to do where no parameter has it."""


def trainable_names(model: nn.Module, roles: Collection[str]) -> set[str]:
    """Names of the parameters, as in `named_parameters`, with one of these roles; without roles, all parameters.

    Roles: "all"; "mechanisms", the parameters of attention mechanisms (gates, branches); "encoder", from pixels to
    tokens; "trunk", everything in the frame and global blocks; "heads", everything in neither; "norms", scales and
    shifts of normalisations; "adapters", the parameters that lora.add_lora added. Any other text is a target that
    names layers, as in a plan ("global blocks 8-", "named *.mlp.fc1"; see compress/targets.py): the weights and biases
    of these layers, without their adapters. UsageError if a role is unknown or no parameter has it.
    """
    if isinstance(roles, str):
        raise UsageError(f"roles is the text '{roles}', expected a tuple of roles: ('{roles}',).")
    names = {name for name, _ in model.named_parameters()}
    if not roles:
        return names
    selected: set[str] = set()
    for role in roles:
        chosen = ROLES[role](model) if role in ROLES else _select_names(model, role)
        if not chosen:
            raise UsageError(f"no parameter of the network has the role '{role}'.{_MISSING.get(role, '')}")
        selected |= chosen
    return selected


def names_of_stage(model: nn.Module, stage: Stage, trainable: Set[str]) -> set[str]:
    """Names of the `trainable` parameters that train in a stage: those of its roles, but none that it freezes.

    UsageError if no parameter begins with an entry of `frozen`, or if no parameter is left.
    """
    names = {name for name, _ in model.named_parameters()}
    for prefix in stage.frozen:
        if not any(name.startswith(prefix) for name in names):
            known = ", ".join(sorted({name.split(".")[0] for name in names}))
            raise UsageError(f"stage.frozen: no parameter name starts with '{prefix}', expected one of {known}")
    selected = trainable_names(model, stage.train) & trainable
    names = {name for name in selected if not name.startswith(stage.frozen)}
    if not names:
        raise UsageError(
            f"a stage with train={stage.train} and frozen={stage.frozen} trains no parameter; "
            "name other roles, or freeze less"
        )
    return names


def _all(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters()}


def _inside(model: nn.Module, modules: Iterable[nn.Module]) -> set[str]:
    """Names of all parameters in these modules; a shared parameter has its first name."""
    owned = {id(p) for module in modules for p in module.parameters()}
    return {name for name, p in model.named_parameters() if id(p) in owned}


def _mechanisms(model: nn.Module) -> set[str]:
    return _inside(model, (m for m in model.modules() if isinstance(m, Mechanism)))


def _encoder(model: nn.Module) -> set[str]:
    kinds = (VisionTransformer, PatchEmbed, ConvStem)
    ours = (m for m in model.modules() if isinstance(m, kinds))
    return _inside(model, (*ours, *_mapped_blocks(model, ("encoder",)))) - _trunk(model)


def _trunk(model: nn.Module) -> set[str]:
    """A trunk inside a camera head belongs to that head."""
    trunks = (m for path, m in model.named_modules() if isinstance(m, Trunk) and not _CAMERA.search(path))
    return _inside(model, (*trunks, *_mapped_blocks(model, TRUNK)))


def _mapped_blocks(model: nn.Module, parts: Collection[Part]) -> list[nn.Module]:
    """The blocks of a third-party network that belong to these parts."""
    sites = sites_of(model) if isinstance(model, Mapped) else []
    blocks = blocks_of(model, [site.name for site in sites])
    return [model.get_submodule(blocks[site.name]) for site in sites if site.role in parts]


def _heads(model: nn.Module) -> set[str]:
    return _all(model) - _encoder(model) - _trunk(model)


def _norms(model: nn.Module) -> set[str]:
    return _inside(model, (m for m in model.modules() if isinstance(m, NORMS)))


def _adapters(model: nn.Module) -> set[str]:
    return {name for name in _all(model) if _ADAPTER.search(name)}


ROLES: dict[str, Callable[[nn.Module], set[str]]] = {
    "all": _all,
    "mechanisms": _mechanisms,
    "encoder": _encoder,
    "trunk": _trunk,
    "heads": _heads,
    "norms": _norms,
    "adapters": _adapters,
}
"""Role -> the names of its parameters."""


def _select_names(model: nn.Module, text: str) -> set[str]:
    """Parameters of the layers that a target names; a name may also be that of a whole attention layer."""
    try:
        target = Target.parse(text)
    except UsageError as error:
        raise UsageError(
            f"unknown role '{text}'. Known: {', '.join(ROLES)}, or a target that names layers; {error}"
        ) from error
    linears = [site for site in linears_of(model, LINEARS, WINDOWED) if not _ADAPTER.search(f"{site.name}.")]
    if target.pattern is None:
        names = [site.name for site in target.select(linears)]
    else:
        names = [site.name for site in (*linears, *sites_of(model)) if fnmatchcase(site.name, target.pattern)]
    return _inside(model, (model.get_submodule(name) for name in names)) - _adapters(model)
