"""Write a network's weights to a file, which contains its plan if it is compressed, and read them into others."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from torch import nn

from lean3r.compress import compress, prepare
from lean3r.compress.foreign import ForeignAttention
from lean3r.compress.sparsify import PREPARED, STAGE_KEY, Compressed, copy_sharing_parameters
from lean3r.errors import UsageError, WeightsError
from lean3r.models.base import Backbone
from lean3r.models.checkpoint import SHOWN_KEYS, check_finite, save_model, save_weights
from lean3r.models.weight_files import open_weights
from lean3r.pipeline.load import read_plan

M = TypeVar("M", bound=nn.Module)


def save(model: nn.Module, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a network as .safetensors, with its plan if it is compressed; returns the path.

    Names are the official ones, in a third-party network its own (`load_into` reads the file). The file is written
    completely or not at all. UsageError if `path` exists and `overwrite` is not set, if it cannot be written, or if the
    network has adapters.
    """
    path = Path(path)
    check_file(path, overwrite=overwrite)
    if hasattr(model, "peft_config"):
        raise UsageError(
            "the network has low-rank adapters, whose names no file of weights has: merge them first "
            "(lean3r.train.lora.merge_lora), or save them alone (lean3r.train.lora.save_adapters)."
        )
    try:
        if isinstance(model, Backbone):
            save_model(model, path, overwrite=overwrite)
        else:
            metadata = dict(model.metadata) if isinstance(model, Compressed) else {}
            save_weights(model.state_dict(), path, {"format": "pt", **metadata}, overwrite=overwrite)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}.") from error
    return path


def load_into(network: M, path: str | Path, *, adapter: ForeignAttention | None = None) -> M:
    """A copy of a third-party network with the weights of a file that `save` wrote, compressed by the plan in the file.

    `network` has the sizes of the one that was compressed, and keeps its own weights. `adapter` is the one given to
    compress. The copy of a prepared network is prepared too. UsageError if the plan needs an adapter or does not fit,
    WeightsError if the file is missing or damaged, or has other names, shapes or values that are not finite.
    """
    path = Path(path)
    stored, plan = open_weights(path), read_plan(path)
    if plan is None:
        network = copy_sharing_parameters(network)
    else:
        apply = prepare if stored.metadata.get(STAGE_KEY) == PREPARED else compress
        network = apply(network, plan, adapter=adapter)
    own = network.state_dict()
    faults = {
        "missing": [name for name in own if name not in stored.shapes],
        "unexpected": [name for name in stored.shapes if name not in own],
        "of another shape": [n for n, shape in stored.shapes.items() if n in own and own[n].shape != shape],
    }
    if any(faults.values()):
        shown = [f"{what}: {', '.join(names[:SHOWN_KEYS])}" for what, names in faults.items() if names]
        raise WeightsError(f"{path} does not fit {type(network).__name__}; {'; '.join(shown)}.")
    values = {}
    for name, value in stored.read(stored.files):
        values[name] = value.to(own[name].device, own[name].dtype, copy=True)
        check_finite(stored, name, values[name])
    network.load_state_dict(values, assign=True)
    return network.eval()


def check_file(path: Path, *, overwrite: bool, suffix: str = ".safetensors") -> None:
    """Raise UsageError unless a file of weights may be written to `path`."""
    if path.suffix != suffix:
        raise UsageError(f"cannot write weights to {path}; expected a name that ends in {suffix}.")
    if path.is_dir() or (path.exists() and not overwrite):
        what = "is a folder" if path.is_dir() else "exists; use --overwrite (overwrite=True)"
        raise UsageError(f"{path} {what}, or name another file.")
    if not path.parent.is_dir():
        raise UsageError(f"cannot write {path}: the folder {path.parent} does not exist; create it first.")
