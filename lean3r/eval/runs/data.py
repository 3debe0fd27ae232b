"""The items of benchmarks, from the folders of data that the user names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lean3r.data.sets.roots import kind_of, open_set, sets
from lean3r.data.sets.scenes import FolderSet, SceneSet
from lean3r.errors import InputError, UsageError
from lean3r.eval.protocols.items import Chosen, Item, WorldItem
from lean3r.eval.protocols.resolving import resolve
from lean3r.json_text import parse_json

WORLD = "synthetic"


def roots_of(texts: Sequence[str], needed: Sequence[str]) -> dict[str, Path]:
    """Data set -> folder, from DIR (for the only set that is needed) and SET=DIR; UsageError if one is missing. The
    synthetic world needs none; in one that it has, drawn scenes are kept."""
    wanted = [name for name in dict.fromkeys(needed) if name in sets()]
    roots = dict[str, Path]()
    for text in texts:
        name, equals, folder = text.partition("=")
        if equals and (name in sets() or name == WORLD):
            roots[name] = Path(folder)
        elif len(wanted) == 1:
            roots[wanted[0]] = Path(text)
        else:
            raise UsageError(f"--root {text} names no data set; expected SET=DIR with SET one of {', '.join(wanted)}")
    absent = [name for name in wanted if name not in roots]
    if absent:
        kinds = "; ".join(f"{name}: {sets()[name].layout} (from {sets()[name].source})" for name in absent)
        example = "--root DIR" if len(wanted) == 1 else f"--root {absent[0]}=DIR"
        raise UsageError(f"the data of {', '.join(absent)} are needed: give {example}. {kinds}")
    return roots


def items_of(
    name: str, roots: Mapping[str, Path], chosen: Chosen | None = None, limit: int | None = None
) -> list[Item]:
    """The items of a benchmark, at most `limit`; InputError if its data are missing or hold no scene."""
    benchmark = resolve(name)
    items = benchmark.select(open_root(benchmark.data, roots), chosen)[:limit]
    items = [replace(item, folder=roots.get(WORLD)) if isinstance(item, WorldItem) else item for item in items]
    ids = [item.id for item in items]
    if len(set(ids)) < len(ids):
        raise InputError(f"two scenes of {name} have the same name: {next(i for i in ids if ids.count(i) > 1)}")
    return items


def left_out(name: str, roots: Mapping[str, Path]) -> list[str]:
    """What folders of a benchmark's data lack to be scenes, a sentence each; they are no items."""
    kind = sets().get(resolve(name).data)
    if kind is None or not issubclass(kind, FolderSet):
        return []
    return [
        f"{what[0]}; this scene is left out" for place in kind.places(roots[kind.name]) if (what := kind.missing(place))
    ]


def open_root(data: str, roots: Mapping[str, Path]) -> SceneSet | None:
    """The data set of a benchmark; None for the synthetic world."""
    if data not in sets():
        return None
    kind_of(roots[data], data)
    return open_set(data, roots[data], {})


def read_chosen(path: Path) -> Chosen:
    """{scene: [numbers of its views]} from a JSON file; InputError for anything else."""
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read: {error}; expected JSON with a list of numbers for each scene"
        ) from None
    if not isinstance(content, dict) or not content or not all(isinstance(views, list) for views in content.values()):
        raise InputError(f'{path} is no list of views; expected JSON such as {{"scene": [0, 5, 9]}}')
    return content
