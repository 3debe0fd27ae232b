"""Save and restore the state of a run, with parameters copied to all processes or sharded over them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from lean3r.errors import LeanError, UsageError
from lean3r.train.checkpoints.shards import (
    PartState,
    RunTensors,
    RunValues,
    SavedValues,
    flat_tensors,
    nested_tensors,
    read_into,
    read_values,
    stored_shapes,
    write_shards,
)
from lean3r.train.checkpoints.state import prune, read_checkpoint, save_checkpoint
from lean3r.train.config import TrainConfig, config_diff
from lean3r.train.distributed import World
from lean3r.train.optim import Ema, Optimizer, spread_as
from lean3r.train.sharding import ShardedEma, copy_into

FORMAT = 2


class Weights:
    """All tensors of a run: the model, its averages and the optimiser's."""

    def __init__(self, model: nn.Module, ema: Ema | ShardedEma, optimizer: Optimizer, world: World):
        self.model, self.ema, self.optimizer, self.world = model, ema, optimizer, world
        self.sharded = isinstance(ema, ShardedEma)

    def bytes(self) -> int:
        """The approximate size of a checkpoint in bytes, known before the optimiser has created its state."""
        values = [v for v in self.model.state_dict().values() if v.is_floating_point()]
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        return sum(2 * v.numel() * v.element_size() for v in values) + 8 * trained

    def save(self, folder: Path, step: int, values: RunValues, keep: int) -> None:
        """Write a checkpoint of the tensors and the plain `values`; all processes must call it, sharded or not."""
        tensors = RunTensors(
            model=self.model.state_dict(), ema=self.ema.state_dict(), optimizer=self.optimizer.state_dict()
        )
        saved = SavedValues(format=FORMAT, step=step, processes=self.world.size, **values)
        if self.sharded:
            path = folder / f"step-{step:09d}"
            write_shards(path, tensors, saved, self.world)
            if self.world.is_main:
                prune(folder, keep, path)
            return
        with self.world.together():
            if self.world.is_main:
                save_checkpoint(folder, step, {**tensors, **saved}, keep)

    def restore(self, path: Path, config: TrainConfig) -> SavedValues:
        """Restore a checkpoint, file or folder, and return its plain values; UsageError if it is of another run."""
        if not path.exists():
            raise LeanError(f"a process cannot read checkpoint '{path}'; all processes must share one file system")
        if path.is_dir() and self.sharded:
            values = read_values(path)
            _check_same_run(values, config, self.world, path)
            self._read_parts(path)
            return values
        state = read_checkpoint(path)
        _check_same_run(state, config, self.world, path)
        if self.sharded:
            copy_into(self.model.state_dict(), state["model"])
        else:
            self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict({name: self._spread(name, part) for name, part in state["optimizer"].items()})
        return state

    def _spread(self, part: str, state: PartState) -> PartState:
        """Shard the optimiser's whole tensors like their parameters; counters do not change."""
        parameters = self.optimizer.parameters(part)
        return {
            "state": {
                number: {
                    key: spread_as(value.to(parameters[number].device), parameters[number])
                    if value.shape == parameters[number].shape
                    else value
                    for key, value in values.items()
                }
                for number, values in state["state"].items()
            }
        }

    def _read_parts(self, path: Path) -> None:
        shapes = stored_shapes(path)
        flat = flat_tensors(RunTensors(model=self.model.state_dict(), ema=self.ema.state_dict(), optimizer={}))
        for name, shape in shapes.items():
            group, _, rest = name.partition("/")
            if group == "optimizer":
                part, number, _ = rest.split("/")
                parameter = self.optimizer.parameters(part)[int(number)]
                flat[name] = torch.zeros_like(parameter) if parameter.shape == shape else torch.zeros(shape)
        read_into(path, {name: value.detach() for name, value in flat.items()})
        self.optimizer.load_state_dict(nested_tensors(flat)["optimizer"])


def _check_same_run(values: SavedValues, config: TrainConfig, world: World, path: Path) -> None:
    if values.get("format") != FORMAT:
        raise UsageError(
            f"checkpoint '{path}' has format {values.get('format')}, expected {FORMAT}; resume with the version that "
            "wrote it, or start a new run from its weights"
        )
    # Through the class, which gives entries that are newer than the run their defaults on both sides.
    saved = json.loads(TrainConfig.from_json(values["config"]).to_json())
    current = json.loads(config.to_json())
    if _batches(saved, values["processes"]) == _batches(current, world.size):
        for stages in (saved["stages"], current["stages"]):
            for stage in stages:
                del stage["accumulate"]
    else:
        saved["processes"], current["processes"] = values["processes"], world.size
    if differing := config_diff(saved, current):
        raise UsageError(f"'{path}' was trained with another config; cannot resume: " + "; ".join(differing))


def _batches(config: Mapping[str, list[dict[str, int]]], processes: int) -> list[int]:
    """Batches per step of each stage; a run does not depend on how processes share them."""
    return [processes * stage["accumulate"] for stage in config["stages"]]
