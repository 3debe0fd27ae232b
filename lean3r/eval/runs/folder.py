"""The folder of a run: its configuration, the predictions of each item, the scores of each benchmark.

RUN/run.json                            what was run, on what, and the list of the data
RUN/BENCHMARK/ITEM/predictions.npz      cameras and depth, or other files (docs/how-to/score.md)
RUN/BENCHMARK/ITEM/item.json            costs, a hash of the pictures, or why there is no prediction
RUN/BENCHMARK/scores.json               a row an item, and the figures
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lean3r.errors import InputError, UsageError
from lean3r.json_text import parse_json
from lean3r.scratch import DISK_FULL, LOCK, atomic_file, hold, release

FORMAT = 1
RUN, ITEM, SCORES, PREDICTIONS = "run.json", "item.json", "scores.json", "predictions.npz"
SAME = ("model", "plan", "plan_steps", "weights", "dtype", "settings", "lean3r")
"""What may not change when a run is resumed; `lean3r` is the version."""


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The object in a JSON file of a run; InputError if there is none, or if it is of another format."""
    try:
        content = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path} is missing; expected {what}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}; expected {what}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise InputError(f"{path} has the format {found}; this version of lean3r reads format {FORMAT}")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file as a whole or not at all; NaN becomes null."""
    with atomic_file(path) as part:
        part.write_text(json.dumps(_without_nan(content), indent=1, allow_nan=False) + "\n")


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Inside, no other process writes to the run; UsageError if one does, or if the disk is full."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = hold(run / LOCK, must=False)
        if lock is None:
            raise UsageError(f"another process is writing to {run}; wait until it has ended, or use another -o.")
        with lock:
            try:
                yield
            finally:
                release(lock)
                (run / LOCK).unlink(missing_ok=True)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise UsageError(
            f"the disk is full at {error.filename or run}: what was finished is kept. Free some space, then run the "
            "command again."
        ) from error


def begin(run: Path, config: Mapping[str, Any], *, overwrite: bool) -> None:
    """Make `run` the folder of a run with this configuration, or continue it: benchmarks are added to those it has, and
    items to those of a benchmark. Fewer items than it has are its first ones; it keeps the others.

    UsageError if it holds anything else, or a run of another configuration, which `overwrite` removes.
    """
    present = [name for name in os.listdir(run) if name != LOCK] if run.is_dir() else []
    if not present:
        write_json(run / RUN, config)
        return
    if not (run / RUN).is_file():
        raise UsageError(f"{run} is not empty and has no {RUN}; use another -o.")
    if overwrite:
        for name in present:
            path = run / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        write_json(run / RUN, config)
        return
    old = read_json(run / RUN, "the configuration of a run")
    changed = [key for key in SAME if old.get(key) != config.get(key)]
    if changed:
        shown = "; ".join(f"{key}: {old.get(key)} -> {config.get(key)}" for key in changed)
        raise UsageError(f"{run} holds a run of another configuration ({shown}). Use another -o, or --overwrite.")
    benchmarks = dict(old["benchmarks"])
    for name, data in config["benchmarks"].items():
        items, before = data["items"], benchmarks.get(name, data)["items"]
        pairs = enumerate(zip(before, items, strict=False), start=1)
        number = next((number for number, pair in pairs if not _agree(*pair)), None)
        if number is not None:
            raise UsageError(
                f"{run} holds other items of {name} than those of now, from number {number} on "
                f"({before[number - 1]['id']}): the data or the choice of views changed. Use another -o, or "
                "--overwrite."
            )
        benchmarks[name] = data | {"items": [*items, *before[len(items) :]]}
    write_json(run / RUN, {**old, **config, "benchmarks": benchmarks})


def _agree(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether two items are of the same views; a scene without views could not be used then."""
    return before["id"] == now["id"] and (before["views"] == now["views"] or [] in (before["views"], now["views"]))


def hash_of(names: Sequence[str], pictures: Sequence[np.ndarray]) -> str:
    """What an item's record keeps of its pictures [H, W, 3] uint8."""
    digest = hashlib.sha256()
    for name, picture in zip(names, pictures, strict=True):
        digest.update(f"{name} {picture.shape}\n".encode())
        digest.update(np.ascontiguousarray(picture).tobytes())
    return digest.hexdigest()


def is_done(place: Path) -> bool:
    """Whether an item has predictions of a finished run."""
    try:
        return read_json(place / ITEM, "the record of an item")["error"] is None and (place / PREDICTIONS).is_file()
    except (InputError, KeyError):
        return False
