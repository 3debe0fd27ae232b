"""Filling models from checkpoints and writing them: official names, strict, in one copy.

A model built on the meta device receives its parameters tensor by tensor, cast while they are read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lean3r.errors import WeightsError
from lean3r.models.base import Backbone
from lean3r.models.encoded import Encoded
from lean3r.models.keymap import KeyMap
from lean3r.models.weight_files import WeightFiles, open_weights
from lean3r.models.writing import write_stream

SHOWN_KEYS = 5
Model = TypeVar("Model", bound=nn.Module)

logger = logging.getLogger("lean3r")


def without_memory(build: Callable[[], Model]) -> Model:
    """`build()` on the meta device: shapes, no memory, and no second spent on random values that nobody sees."""
    with torch.device("meta"), _NoValues():
        return build()


class _NoValues(TorchFunctionMode):
    """Leaves out what fills tensors with values: where they have no memory it only makes torch import its compiler."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        scaled = func is Tensor.mul and isinstance(args[1], int | float)
        if scaled or func is Tensor.normal_ or getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return (torch.empty if func is torch.randn else func)(*args, **kwargs)


def load_weights(
    model: Backbone, path: str | Path, dtype: torch.dtype | None = None, optional: Collection[str] = ()
) -> dict[str, str]:
    """Fill `model` strictly from a local file (see open_weights) and return the file's metadata.

    Names in the file are official ones where the model has a KEY_MAP. A model on the meta device gets its
    parameters in `dtype` (None: the file's own; buffers keep theirs), with little more than a 32nd of the file mapped
    besides; another model keeps its own types. Layers that are `Encoded` take their weight in either form. Parameters
    that the official model does not know stay as they are, and are logged; so do those in `optional` where the file
    lacks them. WeightsError names the file and what is wrong with it: absent, a Git LFS pointer, truncated, not
    weights, keys missing or unexpected, shapes that differ, codes that nobody can read, values that are not finite.
    """
    stored = open_weights(Path(path))
    own = model.state_dict(keep_vars=True)
    filled: dict[int, Tensor] = {}
    for name, ours, value in values_for(model, stored, optional):
        target = own[ours]
        if id(target) not in filled:
            filled[id(target)] = _fill(target, value, dtype)
            check_finite(stored, name, filled[id(target)])
        if target.is_meta:
            _assign(model, ours, filled[id(target)])
        del value
    unfilled = [name for name, value in model.state_dict(keep_vars=True).items() if value.is_meta]
    if unfilled:
        raise WeightsError(
            f"{stored.path} leaves {len(unfilled)} parameters empty: {', '.join(unfilled[:SHOWN_KEYS])}."
        )
    return dict(stored.metadata)


def values_for(
    model: Backbone, stored: WeightFiles, optional: Collection[str] = ()
) -> Iterator[tuple[str, str, Tensor]]:
    """(name in the file, our name, value) of all that a checkpoint has for a model, in the form that the model keeps.

    One tensor of the file is mapped at a time; use or copy each value before asking for the next. The model may be
    on the meta device. WeightsError as load_weights, before the first value is read.
    """
    keys = model.KEY_MAP
    own = model.state_dict(keep_vars=True)
    source = place(stored, keys)
    encoders = _encoders(model, stored, source)
    beside = {w.removesuffix("weight") + leaf for w, layer in encoders.items() for leaf in _buffers(layer)}
    _compare(stored, keys, own, source, encoders, beside.union(optional), model.name)
    new = [name for name in own if keys.official(name) is None]
    if new:
        logger.info("initialised, not in the checkpoint: %s", ", ".join(new))
    targets: dict[str, list[str]] = {}
    for ours, name in source.items():
        targets.setdefault(name, []).append(ours)
    for name, value in stored.read(targets):
        for ours in targets[name]:
            if ours not in encoders:
                yield name, ours, value
                continue
            check_finite(stored, name, value)
            owner = ours.removesuffix("weight")
            yield from (
                (name, owner + leaf, part) for leaf, part in encoders[ours].encode_weight(value.float()).items()
            )
        del value


def save_model(
    model: Backbone, path: str | Path, metadata: Mapping[str, str] | None = None, *, overwrite: bool = True
) -> None:
    """Write a model as safetensors under official names, so that the official code reads the file.

    Metadata are the model's name, its own `metadata`, and those given.
    """
    keys = model.KEY_MAP
    metadata = {"model": model.name, **model.metadata, **(metadata or {})}
    save_weights(keys.write(model.state_dict()), path, metadata, overwrite=overwrite)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors, copied, and the metadata of a checkpoint; see load_weights for the errors."""
    stored = open_weights(path)
    return {name: value.clone() for name, value in stored.read(stored.files)}, dict(stored.metadata)


def save_weights(
    tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str], *, overwrite: bool = True
) -> None:
    """Write a safetensors file through a temporary file beside it. Names that share memory get a copy each."""
    write_stream(path, tensors, tensors.items(), metadata, overwrite=overwrite)


def place(stored: WeightFiles, keys: KeyMap) -> dict[str, str]:
    """Our name -> name in the file, for every name that has a place; of tied names the last one counts."""
    source = {ours: name for name in stored.shapes if (ours := keys.ours(name)) is not None}
    for group in keys.tied:
        present = [name for name in group if name in stored.shapes]
        for name in group if present else ():
            ours = keys.ours(name)
            if ours is not None:
                source[ours] = present[-1]
    return source


def _encoders(model: nn.Module, stored: WeightFiles, source: Mapping[str, str]) -> dict[str, Encoded]:
    """Our names of weights that the file holds in full precision -> the layers that keep them otherwise."""
    modules = model.named_modules(remove_duplicate=False)
    layers = {f"{path}.weight": module for path, module in modules if isinstance(module, Encoded)}
    return {w: layer for w, layer in layers.items() if w in source and _is_full(stored.dtypes[source[w]])}


def _buffers(layer: Encoded) -> list[str]:
    assert isinstance(layer, nn.Module)
    return [name for name, _ in layer.named_buffers(recurse=False)]


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _is_full(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point and dtype.itemsize > 1


def _fill(target: Tensor, value: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Values of `target` taken from the file: copied into it, or into new memory where it has none."""
    with torch.no_grad():
        if not target.is_meta:
            return target.copy_(value)
        cast = dtype is not None and isinstance(target, nn.Parameter) and value.is_floating_point()
        if cast and target.itemsize == 2:  # half precision that the model was built for
            dtype = target.dtype
        filled = torch.empty(value.shape, dtype=dtype if cast else value.dtype).copy_(value)
    return nn.Parameter(filled, target.requires_grad) if isinstance(target, nn.Parameter) else filled


def _assign(model: nn.Module, name: str, value: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, value)


def check_finite(stored: WeightFiles, name: str, value: Tensor) -> None:
    """Raise WeightsError where the tensor `name` of a checkpoint, cast to `value`, holds NaN or infinities."""
    if value.dtype == torch.float8_e4m3fn:  # which has no infinities
        finite = not bool((value.detach().view(torch.uint8).bitwise_and(0x7F) == 0x7F).any())
    else:
        # The sum shows every NaN and infinity without a mask as large as the tensor; only it can overflow by itself.
        whole = not value.is_floating_point() or bool(torch.isfinite(value.detach().sum()))
        finite = whole or bool(torch.isfinite(value).all())
    if not finite:
        raise WeightsError(
            f"{stored.files[name]}: {name} holds NaN or infinite values as {_short(value.dtype)}; "
            "the file is damaged, fetch it again, or the number type too small for it."
        )


def check_model(stored: WeightFiles, model: str) -> None:
    """Raise WeightsError where a checkpoint says that it belongs to another model."""
    other = stored.metadata.get("model", model)
    if other != model:
        raise WeightsError(f"{stored.path} holds weights of '{other}', not {model}. Use --model {other}.")


def _compare(
    stored: WeightFiles,
    keys: KeyMap,
    own: Mapping[str, Tensor],
    source: Mapping[str, str],
    encoders: Mapping[str, Encoded],
    optional: Collection[str],
    model: str,
) -> None:
    path = stored.path
    check_model(stored, model)
    coded = [n for ours, n in source.items() if ours in own and _is_full(own[ours].dtype)]
    coded = [n for n in coded if not _is_full(stored.dtypes[n])]
    if coded:
        raise WeightsError(
            f"{path} holds {len(coded)} weights as codes ({coded[0]}, ...), but no plan that says how {model} reads "
            "them. Use the file as lean3r compress wrote it, or weights in full precision."
        )
    expected = {name: key for name in own if (key := keys.official(name)) is not None}
    missing = [key for name, key in expected.items() if name not in source and name not in optional]
    unexpected = [name for name in stored.shapes if keys.ours(name) not in expected]
    wanted = {name: encoders[name].shape if name in encoders else own[name].shape for name in expected}
    shapes = [
        f"{name} is {list(stored.shapes[name])}, expected {list(wanted[ours])}"
        for ours, name in source.items()
        if ours in expected and stored.shapes[name] != wanted[ours]
    ]
    types = [
        f"{name} is {_short(stored.dtypes[name])}, expected {_short(own[ours].dtype)}"
        for ours, name in source.items()
        if ours in expected
        and ours not in encoders
        and stored.dtypes[name] != own[ours].dtype
        and not (_is_full(stored.dtypes[name]) and _is_full(own[ours].dtype))
    ]
    if not (missing or unexpected or shapes or types):
        return
    found = len(expected) - len(missing)
    report = [f"{path} does not fit {model} ({found} of {len(expected)} names found)"]
    for title, rows in (("missing", missing), ("unexpected", unexpected), ("shapes", shapes), ("types", types)):
        if rows:
            more = f" and {len(rows) - SHOWN_KEYS} more" if len(rows) > SHOWN_KEYS else ""
            report.append(f"{title}: {', '.join(rows[:SHOWN_KEYS])}{more}")
    fitting = models_that_fit(stored, besides=model)
    if fitting:
        report.insert(1, f"it fits {' and '.join(fitting)}: use --model {fitting[0]}")
    raise WeightsError("; ".join(report) + ".")


def models_that_fit(stored: WeightFiles, besides: str = "") -> list[str]:
    """Names of the models whose official names and shapes are exactly those of the checkpoint."""
    from lean3r.models import MODELS

    fitting = []
    for name in MODELS:
        kind = MODELS.get(name)
        if name == besides or (kind.TELLTALE and stored.shapes.get(kind.TELLTALE[0]) != kind.TELLTALE[1]):
            continue
        model = without_memory(kind)
        keys = model.KEY_MAP
        own = {ours: value.shape for ours, value in model.state_dict().items() if keys.official(ours) is not None}
        if {ours: stored.shapes[key] for ours, key in place(stored, keys).items()} == own:
            fitting.append(name)
    return fitting
