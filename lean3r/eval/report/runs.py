"""The scored runs that a report is made from, checked as they are read."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lean3r.errors import InputError, UsageError
from lean3r.json_text import parse_json

FORMAT = 1
LARGEST = 1 << 28  # bytes of a JSON file
LARGEST_PICTURE = 1 << 20
COSTS = {"seconds": "s", "network_seconds": "s", "cpu_seconds": "s", "peak_memory_mb": "MB"}
"""What an item costs, by its name in a row, with units."""

Row = dict[str, Any]  # of scores.json: id, group, figures, error, and so on (docs/how-to/evaluate.md)


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores.json of one benchmark in a run. `directions` says for each figure which is better, "higher" or
    "lower"; numbers that are not finite are None, as in items that failed."""

    path: Path
    name: str
    title: str
    paper: str
    notes: str
    protocol: dict[str, Any]
    directions: dict[str, str]
    units: dict[str, str]
    rows: tuple[Row, ...]
    figures: dict[str, float | None]

    @property
    def failed(self) -> list[str]:
        """Ids of the items that gave no score."""
        return [row["id"] for row in self.rows if row["error"] is not None]

    def unit(self, figure: str) -> str:
        """The unit of a figure or a cost; empty for pure numbers."""
        return COSTS.get(figure) or self.units.get(figure, "")


@dataclass(frozen=True, eq=False)
class Run:
    """A folder of `lean3r evaluate` or `lean3r score`; `name` is unique in a report, `about` is run.json."""

    folder: Path
    name: str
    about: dict[str, Any]
    scores: dict[str, Scores]
    unscored: tuple[str, ...]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read runs, named by their folders. Raises UsageError if one is given twice, InputError if one is not a run, is of
    another format, or has no scores."""
    places = [Path(os.path.realpath(folder)) for folder in folders]
    repeated = {str(folder) for folder, place in zip(folders, places, strict=True) if places.count(place) > 1}
    if repeated:
        raise UsageError(f"a run is given twice: {', '.join(sorted(repeated))}. Name each run once.")
    names = [place.name for place in places]
    unique = [name if names.count(name) == 1 else str(folder) for name, folder in zip(names, folders, strict=True)]
    return [_read_run(folder, name) for folder, name in zip(folders, unique, strict=True)]


def _read_run(folder: Path, name: str) -> Run:
    if not (folder / "run.json").is_file():
        what = "has no run.json" if folder.is_dir() else "is not a folder"
        raise InputError(f"{folder} {what}, so it is not a run. Make one: lean3r evaluate BENCHMARK -o {folder}")
    about = read_json(folder / "run.json", f"lean3r evaluate BENCHMARK -o {folder}")
    names = about.get("benchmarks")
    if not isinstance(names, list | dict) or not all(isinstance(n, str) and _is_inside(n) for n in names):
        raise InputError(f"{folder / 'run.json'} has no names of benchmarks; expected a file of lean3r evaluate.")
    scored = [n for n in names if (folder / n / "scores.json").is_file()]
    if not scored:
        raise InputError(f"{folder} has no scores yet. Make them: lean3r score {folder}")
    scores = {n: _read_scores(folder / n / "scores.json", n) for n in scored}
    return Run(folder, name, about, scores, tuple(n for n in names if n not in scored))


def _is_inside(name: str) -> bool:
    return bool(name) and not os.path.isabs(name) and ".." not in Path(name).parts


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """A JSON object with "format": 1; InputError otherwise, which names the command that makes the file."""
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(f"{path} is larger than {LARGEST >> 20} MiB; it is not of lean3r.")
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}. Make it again: {remedy}") from error
    version = content.get("format") if isinstance(content, dict) else None
    if version != FORMAT:
        raise InputError(
            f'{path} has "format" {version!r}, this lean3r reads {FORMAT}. Make it again with this version: {remedy}'
        )
    return content


def _read_scores(path: Path, name: str) -> Scores:
    again = f"lean3r score {path.parents[len(Path(name).parts)]}"
    content = read_json(path, again)
    try:
        rows = tuple(_row(row) for row in content["rows"])
        directions = {str(figure): str(way) for figure, way in content["directions"].items()}
        scores = Scores(
            path=path,
            name=name,
            title=str(content.get("title") or name),
            paper=str(content.get("paper") or ""),
            notes=str(content.get("notes") or ""),
            protocol=dict(content.get("protocol") or {}),
            directions=directions,
            units={str(figure): str(unit) for figure, unit in (content.get("units") or {}).items()},
            rows=rows,
            figures={str(figure): number(value) for figure, value in content["figures"].items()},
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise InputError(f"{path} is damaged ({problem}). Make it again: {again}") from error
    if not rows:
        raise InputError(f"{path} has no rows, so there is nothing to report. Was the list of items empty?")
    ids = [row["id"] for row in rows]
    if len(set(ids)) < len(ids):
        raise InputError(f"{path} has two rows of the same id. Make it again: {again}")
    if unknown := set(directions.values()) - {"higher", "lower"}:
        raise InputError(f'{path} has the direction {min(unknown)!r}; expected "higher" or "lower".')
    return scores


def _row(row: Row) -> Row:
    """A row with what pooling and reports rely on."""
    figures = {str(name): number(value) for name, value in row["figures"].items()}
    costs = {name: number(row.get(name)) for name in COSTS}
    error = None if row.get("error") is None else str(row["error"])
    weight = number(row.get("weight", 1.0))
    return (
        row
        | costs
        | {
            "id": str(row["id"]),
            "group": str(row.get("group") or ""),
            "figures": figures,
            "weight": 0.0 if weight is None else weight,
            "error": error,
        }
    )


def picture_of(scores: Scores, row: Row) -> bytes | None:
    """The JPEG of a row; None if it has none, or the file is not a small JPEG in the folder of the benchmark."""
    folder = scores.path.parent.resolve()
    path = (folder / str(row.get("picture") or "")).resolve()
    try:
        if not path.is_relative_to(folder) or not path.is_file() or path.stat().st_size > LARGEST_PICTURE:
            return None
        content = path.read_bytes()
    except OSError:
        return None
    return content if content.startswith(b"\xff\xd8\xff") else None


def number(value: object) -> float | None:
    """A finite number of a JSON file, None for null and for NaN and infinity; ValueError for anything else."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is not a number")
    return float(value) if math.isfinite(value) else None
