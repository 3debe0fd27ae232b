"""Low-rank adapters (LoRA) on chosen linear layers, through the `peft` package; merging gives a plain network again."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

from torch import Tensor, nn

from lean3r.compress.fp8_linear import Coded, Rounded
from lean3r.compress.linears import linears_of
from lean3r.compress.targets import Target
from lean3r.errors import MissingExtraError, UsageError, WeightsError
from lean3r.json_text import parse_json
from lean3r.train.checkpoints.state import save_weights

KEY = "adapters"  # entry in the header of an adapter file
_FEED_FORWARD = re.compile(r"\.mlp\.[^.]+$")


@dataclass(frozen=True)
class Adapters:
    """The result of `add_lora`: rank by linear layer, alpha, and the parameters that were trainable before."""

    ranks: dict[str, int]
    alpha: float
    trained: frozenset[str]


@runtime_checkable
class Adapted(Protocol):
    """A network with adapters: their description, and the attribute that peft sets."""

    adapters: Adapters
    peft_config: object


def add_lora(
    model: nn.Module, targets: Sequence[str], rank: int = 16, alpha: float = 32.0, mlp_rank: int | None = None
) -> list[str]:
    """Add an adapter to every linear layer that one of `targets` names; return the layers' names, in order.

    See compress/targets.py for targets ("global blocks", "all blocks 2-", "named *.attn.qkv"). An adapter adds
    alpha / rank * B A x. B is zero at first, so outputs do not change. `mlp_rank` is the rank in feed-forward layers
    (default: `rank`; Aletheia: 16 and 64). Changes `model` in place and freezes everything except the adapters.
    UsageError if the model has adapters already, is quantised, or has no such layer; MissingExtraError without peft.
    """
    for name, value in (("rank", rank), ("mlp_rank", rank if mlp_rank is None else mlp_rank)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UsageError(f"{name} of adapters is {value!r}, expected a whole number of at least 1.")
    if not alpha > 0:
        raise UsageError(f"alpha of adapters is {alpha!r}, expected a positive number.")
    if isinstance(targets, str) or not targets:
        raise UsageError(f"targets of adapters is {targets!r}, expected a list such as ['global blocks'].")
    names = _layers(model, targets)
    ranks = {name: mlp_rank or rank if _FEED_FORWARD.search(name) else rank for name in names}
    _inject(model, ranks, alpha)
    return names


def merge_lora(model: nn.Module) -> None:
    """Merge the adapters into the weights and remove them, in place; the outputs stay the same.

    Networks that share weights with this one (see compress) do not change. Parameters that were trainable before
    `add_lora` are trainable again. UsageError without adapters.
    """
    adapters = adapters_of(model)
    for name in adapters.ranks:
        layer: Any = model.get_submodule(name)
        base = layer.get_base_layer()
        weight = base.weight.detach() + layer.get_delta_weight("default").detach().to(base.weight.dtype)
        if not bool(weight.isfinite().all()):
            raise UsageError(
                f"the adapter of {name} holds NaN or infinities, which would damage the network. Train it again."
            )
        base.weight = nn.Parameter(weight)
        _put(model, name, base)
    assert isinstance(model, Adapted)
    del model.adapters, model.peft_config
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in adapters.trained)


def adapters_of(model: nn.Module) -> Adapters:
    """The adapters of a model; UsageError if it has none."""
    if not isinstance(model, Adapted):
        raise UsageError("the network has no adapters; add them first (add_lora or load_adapters).")
    return model.adapters


def save_adapters(model: nn.Module, path: Path | str) -> None:
    """Write only the adapters, as safetensors; `load_adapters` adds them to another copy of the network."""
    adapters = adapters_of(model)
    header = {"ranks": adapters.ranks, "alpha": adapters.alpha}
    save_weights(Path(path), _tensors(model, adapters.ranks), {"format": "pt", KEY: json.dumps(header)})


def load_adapters(model: nn.Module, path: Path | str) -> list[str]:
    """Load the adapters of a file into a network without adapters; return the layers' names.

    WeightsError if the file holds no adapters, or adapters of another network.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            header = parse_json((file.metadata() or {}).get(KEY, "null"))
            values = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read as adapters: {error}") from error
    if header is None:
        raise WeightsError(f"{path} holds no adapters; expected a file that save_adapters wrote.")
    ranks: dict[str, int] = header["ranks"]
    known = {site.name for site in linears_of(model)}
    absent = [name for name in ranks if name not in known]
    if absent:
        raise WeightsError(
            f"{path} has adapters for {len(absent)} layers that this network lacks, such as {absent[0]}; "
            "expected adapters of the same network."
        )
    _check_plain(model)
    shapes = {name: tuple(model.get_submodule(name).weight.shape) for name in ranks}  # type: ignore[arg-type]
    for name, (outputs, inputs) in shapes.items():
        stored = [tuple(values[key].shape) if key in values else None for key in _keys(name)]
        expected = [(ranks[name], inputs), (outputs, ranks[name])]
        if stored != expected:
            raise WeightsError(
                f"{path}: the adapter of {name} has shapes {stored}, expected {expected} for this network."
            )
    _inject(model, ranks, header["alpha"])
    for key, tensor in _tensors(model, ranks).items():
        tensor.data.copy_(values[key])
    return list(ranks)


def _layers(model: nn.Module, targets: Sequence[str]) -> list[str]:
    _check_plain(model)
    sites = [site for site in linears_of(model) if not site.convolution]
    chosen = {site.name for target in targets for site in Target.parse(target).select(sites)}
    return [site.name for site in sites if site.name in chosen]


def _check_plain(model: nn.Module) -> None:
    if isinstance(model, Adapted):
        raise UsageError("the network already has adapters; merge them first (merge_lora).")
    rounded = [name for name, module in model.named_modules() if isinstance(module, Rounded | Coded)]
    if rounded:
        raise UsageError(
            f"{len(rounded)} layers of the network are quantised, such as {rounded[0]}; rounding would "
            "erase merged adapters. Add adapters to the network in full precision, merge them, then quantise."
        )


def _inject(model: nn.Module, ranks: dict[str, int], alpha: float) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingExtraError.of("training adapters (LoRA)", "train") from error
    trained = frozenset(name for name, p in model.named_parameters() if p.requires_grad)
    config = LoraConfig(
        r=min(ranks.values()),
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft accepts any number
        target_modules="|".join(re.escape(name) for name in ranks),
        rank_pattern={f"^{re.escape(name)}": rank for name, rank in ranks.items()},
    )
    inject_adapter_in_model(config, model)
    cast(Adapted, model).adapters = Adapters(ranks, alpha, trained)


def _keys(name: str) -> tuple[str, str]:
    return f"{name}.lora_A.default.weight", f"{name}.lora_B.default.weight"


def _tensors(model: nn.Module, names: Collection[str]) -> dict[str, Tensor]:
    keys = {key for name in names for key in _keys(name)}
    return {key: p for key, p in model.named_parameters() if key in keys}


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
