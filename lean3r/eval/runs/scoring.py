"""Score the files of a run: predictions of any program against the truth of a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lean3r.data.sets.scenes import RawView
from lean3r.errors import InputError, LeanError
from lean3r.eval.predicted.reading import read
from lean3r.eval.protocols.base import AbsentPart, Benchmark, Row, Score
from lean3r.eval.protocols.items import Item, UnusableItem
from lean3r.eval.protocols.resolving import resolve
from lean3r.eval.runs.folder import FORMAT, ITEM, hash_of, read_json
from lean3r.eval.runs.scores import directions, pool, units
from lean3r.scratch import DISK_FULL, atomic_file

PICTURE = "pictures.jpg"
SHOWN, HEIGHT = 4, 120
OTHER_PICTURES = (
    "it was predicted from other pictures: the files changed, or another --root has the same names. Predict again with "
    "--overwrite"
)


def score_benchmark(
    name: str, items: Sequence[Item], run: Path, *, advanced: Callable[[int], None] = lambda done: None
) -> dict[str, Any]:
    """The content of scores.json for a benchmark of a run: every item is a row, failed ones with the reason."""
    benchmark = resolve(name)
    rows: list[Row] = []
    first: dict[str, str] = {}
    for done, item in enumerate(items, 1):
        rows.append(score_item(benchmark, item, run / name))
        pictures = _record(run / name / item.id / ITEM).get("pictures_sha256") or item.id
        if (other := first.setdefault(pictures, item.id)) != item.id:
            rows[-1]["problems"].append(f"its pictures are those of {other}: the same views count twice")
        advanced(done)
    figures = pool(name, rows)
    named = list(dict.fromkeys([*figures, *(figure for row in rows for figure in row["figures"])]))
    return {
        "format": FORMAT,
        "benchmark": name,
        "title": benchmark.title,
        "paper": benchmark.papers,
        "notes": f"{benchmark.notes} {benchmark.departure(items)}".strip(),
        "protocol": {"data": benchmark.data, "views": benchmark.count, "resolution": benchmark.resolution},
        "directions": directions(named),
        "units": units(benchmark, named),
        "figures": figures,
        "failed": sum(row["error"] is not None for row in rows),
        "rows": rows,
    }


def score_item(benchmark: Benchmark, item: Item, folder: Path) -> Row:
    """The row of one item; `error` says why it has no figures. OSError if the disk is full."""
    place = folder / item.id
    record = _record(place / ITEM)
    if isinstance(item, UnusableItem):
        record["error"] = item.reason
    seconds = record.get("seconds") or {}
    row: Row = {
        "id": item.id,
        "group": item.group,
        "figures": {},
        "curves": {},
        "errors": {},
        "weight": 0.0,
        "seconds": sum(seconds.values()) if seconds else None,
        "network_seconds": seconds.get("network"),
        "cpu_seconds": record.get("cpu_seconds"),
        "peak_memory_mb": record.get("peak_memory_mb"),
        "error": record.get("error"),
        "problems": [],
        "picture": None,
    }
    if row["error"] is not None:
        return row
    try:
        predicted = read(place, item.names, item.times_s)
        row["problems"] = item.gaps() + predicted.problems()
        views = item.read()
        if record.get("pictures_sha256", "") not in ("", hash_of(item.names, [view.image for view in views])):
            row["problems"].append(OTHER_PICTURES)
        if place.is_dir():
            _show(views, place / PICTURE)
            row["picture"] = f"{item.id}/{PICTURE}"
        absent: list[AbsentPart] = []
        for measure in benchmark.measures:
            try:
                score = measure(predicted, item, views)
            except AbsentPart as error:
                absent.append(error)
                score = Score(error.figures, weight=row["weight"])
            row["figures"] |= dict(score.figures)
            row["curves"] |= dict(score.curves)
            row["errors"] |= dict(score.errors)
            row["weight"] = score.weight
        if absent and not row["figures"]:
            raise absent[0]
        row["problems"] += [f"{error}" for error in absent]
    except (LeanError, OSError, ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        kind = "" if isinstance(error, LeanError) else f"{type(error).__name__}: "
        row["error"] = f"{kind}{error}"
        for part in ("figures", "curves", "errors"):
            row[part].clear()
    return row


def _record(path: Path) -> dict[str, Any]:
    """What `lean3r evaluate` noted of an item: {} of another program's, an error if it cannot be read."""
    try:
        return read_json(path, "the record of an item") if path.is_file() else {}
    except InputError as error:
        return {"error": str(error)}


def _show(views: Sequence[RawView], path: Path) -> None:
    """A strip of the first pictures."""
    pictures = [Image.fromarray(view.image) for view in views[:SHOWN]]
    small = [p.resize((max(1, round(p.width * HEIGHT / p.height)), HEIGHT)) for p in pictures]
    strip = Image.new("RGB", (sum(p.width for p in small), HEIGHT))
    left = 0
    for picture in small:
        strip.paste(picture, (left, 0))
        left += picture.width
    with atomic_file(path) as part:
        strip.save(part, "JPEG", quality=80)


def listing(items: Sequence[Item]) -> list[dict[str, Any]]:
    """The items as run.json lists them."""
    return [{"id": item.id, "views": list(item.names)} for item in items]
