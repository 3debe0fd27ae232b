"""Checkpoints of sharded runs: folders that all processes write together (torch.distributed.checkpoint).

A folder is written under a hidden name, gets check sums, and is renamed when complete. So a folder under its final name
is complete; check sums reveal later damage. Any number of processes can read it, sharded or not.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NotRequired, TypedDict

import torch
from torch import Tensor

from lean3r.errors import LeanError
from lean3r.json_text import parse_json
from lean3r.train.checkpoints.disk import flush, require_space, tensor_bytes
from lean3r.train.distributed import World
from lean3r.train.guard import GuardState


class PartState(TypedDict):
    """The state of an optimiser: tensors by parameter number, and its settings, which are not restored."""

    state: dict[int, dict[str, Tensor]]
    param_groups: NotRequired[list[dict[str, object]]]


class RunTensors(TypedDict):
    """The tensors of a checkpoint: weights and averages by name, state by part of the optimiser."""

    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: dict[str, PartState]


class RunValues(TypedDict):
    """The plain values of a run: config as JSON, guard, counts, best validation, whether a validation is due."""

    config: str
    guard: GuardState
    seconds: float
    corrupt: int
    bad_depth: NotRequired[int]
    best: dict[str, float] | None
    unvalidated: NotRequired[bool]


class SavedValues(RunValues):
    """The plain values of a checkpoint: also its format, its step and the number of processes that wrote it."""

    format: int
    step: int
    processes: int


class RunState(RunTensors, SavedValues):
    """All of a checkpoint."""


VALUES, SUMS, METADATA = "values.json", "check_sums.json", ".metadata"


def flat_tensors(state: RunTensors) -> dict[str, Tensor]:
    """The tensors of a checkpoint in one dict, as model/NAME, ema/NAME and optimizer/PART/NUMBER/KEY."""
    flat = {f"model/{name}": value for name, value in state["model"].items()}
    flat |= {f"ema/{name}": value for name, value in state["ema"].items()}
    for part, content in state["optimizer"].items():
        for number, values in content["state"].items():
            flat |= {f"optimizer/{part}/{number}/{key}": value for key, value in values.items()}
    return flat


def nested_tensors(flat: Mapping[str, Tensor]) -> RunTensors:
    """The inverse of `flat_tensors`."""
    state = RunTensors(model={}, ema={}, optimizer={})
    for path, value in flat.items():
        group, _, name = path.partition("/")
        if group == "optimizer":
            part, number, key = name.split("/")
            numbers = state["optimizer"].setdefault(part, {"state": {}})["state"]
            numbers.setdefault(int(number), {})[key] = value
        else:
            (state["model"] if group == "model" else state["ema"])[name] = value
    return state


def write_shards(path: Path, tensors: RunTensors, values: SavedValues, world: World) -> None:
    """Write a checkpoint folder, all processes together; `path` appears when everything is on the disk.

    If any process cannot write, all raise LeanError and `path` does not appear.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    beside = path.with_name(f".{path.name}.partial")
    with world.together():
        if world.is_main:
            path.parent.mkdir(parents=True, exist_ok=True)
            require_space(path.parent, tensor_bytes(flat_tensors(tensors)), "a checkpoint")
    if world.is_main:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    world.gather(None)  # no process writes before the folder exists
    message = f"cannot write checkpoint {path}; earlier ones are intact. Free some space, then resume."
    try:
        with world.together():
            try:
                save(flat_tensors(tensors), storage_writer=FileSystemWriter(beside, sync_files=True))
            except (CheckpointException, OSError, RuntimeError) as error:
                raise LeanError(f"{message} ({error})") from error
        with world.together():
            try:
                if world.is_main:
                    _seal(beside, path, values)
            except OSError as error:
                raise LeanError(f"{message} ({error})") from error
    except LeanError:
        if world.is_main:
            shutil.rmtree(beside, ignore_errors=True)
        raise


def damage(path: Path) -> str:
    """Describe the damage of a checkpoint folder, detected by its check sums; "" if there is none."""
    try:
        sums = parse_json((path / SUMS).read_bytes())
        if not {VALUES, METADATA} <= sums.keys():
            return f"{SUMS} lacks {VALUES} or {METADATA}"
        _TableOnly(io.BytesIO((path / METADATA).read_bytes())).load()
        for name, expected in sums.items():
            if _check_sum(path / name) != expected:
                return f"check sum of {name} is wrong"
    except Exception as error:  # a damaged pickle can raise anything
        return f"{SUMS}, or a file that it lists, cannot be read: {error}"
    return ""


class _TableOnly(pickle.Unpickler):
    """Reads the table of a checkpoint folder and allows only torch's own classes; torch itself would allow all."""

    _PLAIN = (("torch", "Size"), ("torch.serialization", "_get_layout"), ("pathlib", "PosixPath"))
    _MODULES = tuple(module for module, _ in _PLAIN)

    def find_class(self, module_name: str, global_name: str) -> object:
        """Return a class that may occur in such a table; UnpicklingError for any other object."""
        own = module_name.startswith("torch.distributed.checkpoint.")
        # Check the module's name before the import, because an import runs code too.
        entry = super().find_class(module_name, global_name) if own or module_name in self._MODULES else None
        is_class = own and isinstance(entry, type) and entry.__module__ == module_name
        if not (is_class or isinstance(entry, torch.dtype) or (module_name, global_name) in self._PLAIN):
            raise pickle.UnpicklingError(f"the table refers to {module_name}.{global_name}")
        return entry


def read_values(path: Path) -> SavedValues:
    """The plain values of a checkpoint folder."""
    return parse_json((path / VALUES).read_bytes())


def read_shards(path: Path) -> RunState:
    """Read a whole checkpoint folder to the CPU of this process, in the form of a checkpoint file."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = FileSystemReader(path)
    flat = {
        name: torch.empty(stored.size, dtype=stored.properties.dtype)
        for name, stored in reader.read_metadata().state_dict_metadata.items()
        if isinstance(stored, TensorStorageMetadata)
    }
    load(dict[str, object](flat), storage_reader=reader, no_dist=True)
    return RunState(**nested_tensors(flat), **read_values(path))


def read_into(path: Path, flat: dict[str, Tensor]) -> None:
    """Fill sharded tensors from a checkpoint folder; all processes call it, and each reads its own parts."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    load(dict(flat), storage_reader=FileSystemReader(path))


def stored_shapes(path: Path) -> dict[str, torch.Size]:
    """Shapes of the tensors in a checkpoint folder, by their names in `flat_tensors`."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    entries = FileSystemReader(path).read_metadata().state_dict_metadata
    return {name: entry.size for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}


def _seal(beside: Path, path: Path, values: SavedValues) -> None:
    (beside / VALUES).write_text(json.dumps(values))
    sums = {file.name: _check_sum(file) for file in sorted(beside.iterdir())}
    (beside / SUMS).write_text(json.dumps(sums))
    for file in (beside / VALUES, beside / SUMS, beside):
        flush(file)
    if path.exists():  # a resumed run writes the same step again
        shutil.rmtree(path)
    os.replace(beside, path)
    flush(path.parent)


def _check_sum(path: Path) -> list[int]:
    total, size = 0, 0
    for part in _parts(path):
        total, size = zlib.crc32(part, total), size + len(part)
    return [size, total]


def _parts(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while part := file.read(1 << 24):
            yield part
