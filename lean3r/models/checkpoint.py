"""Load models from checkpoints and save them: official names, strict, one copy in memory.

A model built on the meta device gets its parameters one tensor at a time, cast as they are read.
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
from lean3r.models import MODELS, lite3r
from lean3r.models.base import Backbone
from lean3r.models.encoded import Encoded
from lean3r.models.keymap import KeyMap
from lean3r.models.weight_files import WeightFiles, open_weights
from lean3r.models.writing import write_stream

SHOWN_KEYS = 5
Model = TypeVar("Model", bound=nn.Module)

logger = logging.getLogger("lean3r")


def without_memory(build: Callable[[], Model]) -> Model:
    """`build()` on the meta device: shapes without memory, and no time spent on random initial values."""
    with torch.device("meta"), _NoValues():
        return build()


class _NoValues(TorchFunctionMode):
    """Skips functions that fill tensors: on the meta device they only make torch import its compiler."""

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

    If the model has a KEY_MAP, names in the file are official names. A model on the meta device gets its parameters
    in `dtype` (None: the file's own; buffers keep theirs), with little more than a 32nd of the file mapped at a time;
    any other model keeps its own types. `Encoded` layers take their weight in either form. Parameters that the
    official model lacks stay as they are and are logged; so do those in `optional` that the file lacks. WeightsError
    names the file and the fault: absent, a Git LFS pointer, truncated, not weights, missing or unexpected keys,
    wrong shapes, unreadable codes, values that are not finite.
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
            f"{stored.path} has no values for {len(unfilled)} parameters: {', '.join(unfilled[:SHOWN_KEYS])}."
        )
    return dict(stored.metadata)


def values_for(
    model: Backbone, stored: WeightFiles, optional: Collection[str] = ()
) -> Iterator[tuple[str, str, Tensor]]:
    """(name in the file, our name, value) of each tensor that a checkpoint has for a model, as the model stores it.

    One tensor of the file is mapped at a time: use or copy each value before the next. The model may be on the meta
    device. Raises WeightsError as load_weights does, before the first value is read.
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
    beside_weights = [source[s] for w in encoders if (s := f"{w.removesuffix('weight')}smooth") in source]
    factors = {name: value.clone() for name, value in stored.read(beside_weights)}
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
            parts = encoders[ours].encode_weight(value.float(), factors.get(source.get(f"{owner}smooth", "")))
            yield from ((name, owner + leaf, part) for leaf, part in parts.items())
        del value


def save_model(
    model: Backbone, path: str | Path, metadata: Mapping[str, str] | None = None, *, overwrite: bool = True
) -> None:
    """Write a model as safetensors under official names, so that the official code can read the file.

    The metadata are the model's name, its own `metadata`, and the given `metadata`.
    """
    keys = model.KEY_MAP
    metadata = {"model": model.name, **model.metadata, **(metadata or {})}
    save_weights(keys.write(model.state_dict()), path, metadata, overwrite=overwrite)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Copies of all tensors of a checkpoint, and its metadata; errors as in load_weights."""
    stored = open_weights(path)
    return {name: value.clone() for name, value in stored.read(stored.files)}, dict(stored.metadata)


def save_weights(
    tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str], *, overwrite: bool = True
) -> None:
    """Write a safetensors file through a temporary file beside it. Tensors that share memory are each written."""
    write_stream(path, tensors, tensors.items(), metadata, overwrite=overwrite)


def halved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors on the CPU, matrices and kernels in float16: as shipped, and small enough to travel."""
    return {
        name: value.detach().to("cpu", torch.float16 if value.ndim > 1 and value.is_floating_point() else value.dtype)
        for name, value in tensors.items()
    }


def place(stored: WeightFiles, keys: KeyMap) -> dict[str, str]:
    """Our name -> name in the file, for every name that the model has; of tied names the last one counts."""
    source = {ours: name for name in stored.shapes if (ours := keys.ours(name)) is not None}
    for group in keys.tied:
        present = [name for name in group if name in stored.shapes]
        for name in group if present else ():
            ours = keys.ours(name)
            if ours is not None:
                source[ours] = present[-1]
    return source


def _encoders(model: nn.Module, stored: WeightFiles, source: Mapping[str, str]) -> dict[str, Encoded]:
    """Our names of weights that the file stores in full precision -> the layers that store them as codes."""
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
    """`target` with the values from the file: copied in place, or into new memory if `target` is on the meta device."""
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
    """Raise WeightsError if the tensor `name` of a checkpoint, cast to `value`, has NaN or infinite values."""
    if value.dtype == torch.float8_e4m3fn:  # which has no infinities
        finite = not bool((value.detach().view(torch.uint8).bitwise_and(0x7F) == 0x7F).any())
    else:
        # Any NaN or infinity shows in the sum, without a mask as large as the tensor. But the sum itself may overflow.
        whole = not value.is_floating_point() or bool(torch.isfinite(value.detach().sum()))
        finite = whole or bool(torch.isfinite(value).all())
    if not finite:
        raise WeightsError(
            f"{stored.files[name]}: {name} has NaN or infinite values as {_short(value.dtype)}. "
            "Download the file again if it is damaged, or use a number type with a wider range."
        )


def check_model(stored: WeightFiles, model: str) -> None:
    """Raise WeightsError if a checkpoint belongs to another model, by its metadata."""
    other = stored.metadata.get("model", model)
    if other != model:
        hint = f"Use --model {other}" if other in MODELS else "This version of lean3r does not know that model"
        raise WeightsError(f"{stored.path} has weights of '{other}', expected {model}. {hint}.")


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
    strange = [name for name in coded if stored.dtypes[name].itemsize > 1 or stored.dtypes[name] == torch.bool]
    if strange:
        kind = str(stored.dtypes[strange[0]]).removeprefix("torch.")
        raise WeightsError(
            f"{path} has {len(strange)} weights of type {kind} ({strange[0]}, ...); expected floating-point numbers. "
            f"Is this a checkpoint of {model}?"
        )
    if coded:
        raise WeightsError(
            f"{path} has {len(coded)} weights as codes ({coded[0]}, ...), but no plan for {model} to decode them. "
            "Use the file as lean3r compress wrote it, or weights in full precision."
        )
    expected = {name: key for name in own if (key := keys.official(name)) is not None}
    missing = [key for name, key in expected.items() if name not in source and name not in optional]
    unexpected = [name for name in stored.shapes if keys.ours(name) not in expected]
    sizes = {name: encoders[name].shape if name in encoders else own[name].shape for name in expected}
    shapes = [
        f"{name} is {list(stored.shapes[name])}, expected {list(sizes[ours])}"
        for ours, name in source.items()
        if ours in expected and stored.shapes[name] != sizes[ours]
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
    present = len(expected) - len(missing)
    if lite3r.RELEASE in stored.metadata:
        missing, unexpected = (
            [lite3r.released_name(key) for key in names if not key.endswith("_scale")]
            for names in (missing, unexpected)
        )
    report = [f"{path} does not fit {model} ({present} of {len(expected)} names found)"]
    for title, rows in (("missing", missing), ("unexpected", unexpected), ("shapes", shapes), ("types", types)):
        if rows:
            more = f" and {len(rows) - SHOWN_KEYS} more" if len(rows) > SHOWN_KEYS else ""
            report.append(f"{title}: {', '.join(rows[:SHOWN_KEYS])}{more}")
    fitting = models_that_fit(stored, besides=model)
    if fitting:
        report.insert(1, f"it fits {' and '.join(fitting)}: use --model {fitting[0]}")
    raise WeightsError("; ".join(report) + ".")


def models_that_fit(stored: WeightFiles, besides: str = "") -> list[str]:
    """Models whose official names and shapes match the checkpoint exactly."""
    from lean3r.models import MODELS

    fitting = []
    for name in MODELS:
        kind = MODELS.get(name)
        if name == besides or (kind.TELLTALE and stored.shapes.get(kind.TELLTALE[0]) != kind.TELLTALE[1]):
            continue
        model = without_memory(lambda kind=kind: kind.for_names(stored.shapes))
        keys = model.KEY_MAP
        own = {ours: value.shape for ours, value in model.state_dict().items() if keys.official(ours) is not None}
        dense = {ours: key for ours, key in place(stored, keys).items() if not _is_added(stored, key)}
        if {ours: stored.shapes[key] for ours, key in dense.items()} == own:
            fitting.append(name)
    return fitting


def _is_added(stored: WeightFiles, name: str) -> bool:
    """Whether a tensor belongs to compression in a file of a release, not to the dense model."""
    return lite3r.RELEASE in stored.metadata and (".mechanism." in name or name.endswith(".smooth"))
