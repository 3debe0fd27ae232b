"""Low-rank adapters (LoRA) on chosen linear layers, through the `peft` package; merging gives a plain network again."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from torch import Tensor, nn

from lean3r.attention.base import Mechanism
from lean3r.compress.fp8_linear import Coded, Rounded
from lean3r.compress.linears import linears_of
from lean3r.compress.targets import Target
from lean3r.errors import MissingExtraError, UsageError, WeightsError
from lean3r.json_text import parse_json
from lean3r.train.checkpoints.state import save_weights

if TYPE_CHECKING:
    from peft import LoraConfig

KEY = "adapters"  # entry in the header of an adapter file
PEFT = "base_model.model."  # before every name in peft's files
_LORA = re.compile(r"\.lora_[AB]\.")
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
    if not 0 < alpha < math.inf:
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
    `add_lora` are trainable again. UsageError without adapters, and if one is not finite; nothing is merged then.
    """
    adapters = adapters_of(model)
    layers: dict[str, Any] = {name: model.get_submodule(name) for name in adapters.ranks}
    for name, layer in layers.items():
        if not bool(layer.get_delta_weight("default").isfinite().all()):
            raise UsageError(
                f"the adapter of {name} holds NaN or infinities, which would damage the network. Train it again."
            )
    for name, layer in layers.items():
        base = layer.get_base_layer()
        delta = layer.get_delta_weight("default").detach().to(base.weight.dtype)
        base.weight = nn.Parameter(base.weight.detach() + delta)
        _put(model, name, base)
    assert isinstance(model, Adapted)
    del model.adapters, model.peft_config
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in adapters.trained)


def merge_tensors(tensors: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """The tensors of a network with adapters, as those of the plain network that `merge_lora` gives."""
    plain = {key.replace(".base_layer.", "."): value for key, value in tensors.items() if not _LORA.search(key)}
    for key, down in tensors.items():
        if key.endswith(".lora_A.default.weight"):
            name = key.removesuffix(".lora_A.default.weight")
            up = tensors[f"{name}.lora_B.default.weight"]
            plain[f"{name}.weight"] = plain[f"{name}.weight"] + alpha / len(down) * (up @ down)
    return plain


def require_peft() -> None:
    """Raise MissingExtraError without the package peft."""
    if find_spec("peft") is None:
        raise MissingExtraError.of("training adapters (LoRA)", "train")


def adapters_of(model: nn.Module) -> Adapters:
    """The adapters of a model; UsageError if it has none."""
    if not isinstance(model, Adapted):
        raise UsageError("the network has no adapters; add them first (add_lora or load_adapters).")
    return model.adapters


def save_adapters(model: nn.Module, path: Path | str) -> None:
    """Write only the adapters; `load_adapters` adds them to another copy of the network.

    To NAME.safetensors, or, for a path without this ending, to a folder in the form of peft, for
    `PeftModel.from_pretrained`; it also has the parameters of attention mechanisms.
    """
    adapters = adapters_of(model)
    if Path(path).suffix != ".safetensors":
        _save_folder(model, adapters, Path(path))
        return
    header = {"ranks": adapters.ranks, "alpha": adapters.alpha}
    save_weights(Path(path), _tensors(model, adapters.ranks), {"format": "pt", KEY: json.dumps(header)})


def load_adapters(model: nn.Module, path: Path | str) -> list[str]:
    """Load the adapters of a file or of a folder of peft into a network without adapters; return the layers' names.

    WeightsError if it holds no adapters, adapters of a kind other than LoRA, or adapters of another network.
    """
    ranks, alpha, values = (_read_folder if Path(path).is_dir() else _read_file)(Path(path))
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
    others = {key: value for key, value in values.items() if not _LORA.search(key)}
    own = model.state_dict()
    if absent := [key for key, value in others.items() if key not in own or own[key].shape != value.shape]:
        raise WeightsError(
            f"{path} has {absent[0]}, which this network lacks in that shape; give it the plan that it had in training."
        )
    model.load_state_dict(others, strict=False)
    _inject(model, ranks, alpha)
    for key, tensor in _tensors(model, ranks).items():
        tensor.data.copy_(values[key])
    return list(ranks)


def _read_file(path: Path) -> tuple[dict[str, int], float, dict[str, Tensor]]:
    """Rank by layer, alpha, and tensors by name, of a file."""
    values, metadata = _read_tensors(path)
    try:
        header = parse_json(metadata.get(KEY, "null"))
    except ValueError as error:
        raise WeightsError(f"{path} cannot be read as adapters: {error}") from error
    ranks, alpha = (header.get("ranks"), header.get("alpha")) if isinstance(header, dict) else (None, None)
    known = isinstance(ranks, dict) and all(type(rank) is int for rank in ranks.values())
    if not (known and ranks and isinstance(alpha, int | float)):
        raise WeightsError(
            f"{path} holds no adapters that save_adapters wrote; expected ranks and alpha in its header."
        )
    return ranks, alpha, values


def _read_folder(folder: Path) -> tuple[dict[str, int], float, dict[str, Tensor]]:
    """The same of a folder of peft, with names as `named_parameters` has them."""
    try:
        config = parse_json((folder / "adapter_config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise WeightsError(f"{folder} cannot be read as adapters of peft: {error}") from error
    config = config if isinstance(config, dict) else {}
    odd = [key for key in ("use_dora", "use_rslora", "alpha_pattern", "modules_to_save") if config.get(key)]
    plain = config.get("peft_type") == "LORA" and isinstance(config.get("lora_alpha"), int | float)
    if not plain or odd or config.get("bias", "none") != "none":
        raise WeightsError(
            f"{folder} has adapters of another kind ({', '.join(odd) or config.get('peft_type')}); expected plain LoRA."
        )
    stored, _ = _read_tensors(folder / "adapter_model.safetensors")
    values = {_LORA.sub(lambda m: f"{m[0]}default.", key.removeprefix(PEFT)): value for key, value in stored.items()}
    down = ".lora_A.default.weight"
    ranks = {key.removesuffix(down): len(value) for key, value in values.items() if key.endswith(down)}
    return ranks, float(config["lora_alpha"]), values


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read as adapters: {error}") from error


def _save_folder(model: nn.Module, adapters: Adapters, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    own = [m for m in model.modules() if isinstance(m, Mechanism)]
    ids = {id(parameter) for mechanism in own for parameter in mechanism.parameters()}
    more = {name: p for name, p in model.named_parameters() if id(p) in ids}
    lora = {key.replace(".default.", "."): value for key, value in _tensors(model, adapters.ranks).items()}
    tensors = {f"{PEFT}{key}": value for key, value in (lora | more).items()}
    save_weights(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
    _config(adapters.ranks, adapters.alpha).save_pretrained(str(folder))


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
    config = _config(ranks, alpha)
    from peft import inject_adapter_in_model

    trained = frozenset(name for name, p in model.named_parameters() if p.requires_grad)
    inject_adapter_in_model(config, model)
    cast(Adapted, model).adapters = Adapters(ranks, alpha, trained)


def _config(ranks: dict[str, int], alpha: float) -> LoraConfig:
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise MissingExtraError.of("training adapters (LoRA)", "train") from error
    return LoraConfig(
        r=min(ranks.values()),
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft accepts any number
        target_modules="|".join(re.escape(name) for name in ranks),
        rank_pattern={f"^{re.escape(name)}": rank for name, rank in ranks.items()},
    )


def _keys(name: str) -> tuple[str, str]:
    return f"{name}.lora_A.default.weight", f"{name}.lora_B.default.weight"


def _tensors(model: nn.Module, names: Collection[str]) -> dict[str, Tensor]:
    keys = {key for name in names for key in _keys(name)}
    return {key: p for key, p in model.named_parameters() if key in keys}


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
