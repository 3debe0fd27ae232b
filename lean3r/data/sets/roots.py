"""Recognise the data set in a folder and report its problems."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from types import UnionType
from typing import get_args

import numpy as np

from lean3r.data import DATASETS
from lean3r.data.sets.formats.maps import zero_unknown
from lean3r.data.sets.scenes import SceneSet, first_few, folders
from lean3r.errors import InputError, UsageError

ANYTHING = "colmap"  # other sets contain COLMAP models too, so this one is last
Setting = bool | int | float | str
_PICTURES = (".jpg", ".jpeg", ".png", ".heic", ".tif", ".tiff", ".webp", ".bmp")
_LOOKED_SCENES, _LOOKED_VIEWS, _READ_VIEWS = 200, 200, 8


def sets() -> dict[str, type[SceneSet]]:
    """The entries of DATASETS that are read from a folder."""
    rows = {name: DATASETS.get(name) for name in DATASETS}
    return {name: kind for name, kind in rows.items() if isinstance(kind, type) and issubclass(kind, SceneSet)}


def open_set(name: str, root: Path, options: Mapping[str, Setting]) -> SceneSet:
    """Open the data set `name` with its options, whose values may be texts.

    UsageError for an option that the set does not have, or a value of another type; InputError if it has no scene.
    """
    kind = DATASETS.get(name)
    types = _option_types(kind)
    unknown = sorted(options.keys() - types.keys())
    if unknown:
        raise UsageError(
            f"{name} has no option {unknown[0]}; expected {' or '.join(types) or 'none: it has no options'}"
        )
    return kind(root, **{key: _converted(name, key, value, types[key]) for key, value in options.items()})


def _option_types(kind: type[SceneSet]) -> dict[str, type]:
    """The types of a set's options: those parameters of its constructor, but the root, that a text can state."""
    hints = {key: parameter.annotation for key, parameter in signature(kind, eval_str=True).parameters.items()}
    kinds = {key: get_args(hint) if isinstance(hint, UnionType) else (hint,) for key, hint in hints.items()}
    stated = {key: [kind for kind in own if kind in _KINDS] for key, own in kinds.items() if key != "root"}
    return {key: own[0] for key, own in stated.items() if own}


def _converted(name: str, key: str, value: Setting, kind: type) -> Setting:
    """The value of an option as the type that its set expects; UsageError if it is none."""
    read, expected = _KINDS[kind]
    try:
        return read(str(value))
    except ValueError as error:
        raise UsageError(f"the option {key} of {name} is '{value}'; expected {expected}") from error


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(text)
    return float(text)


_KINDS: dict[type, tuple[Callable[[str], Setting], str]] = {
    bool: (_truth, "true or false"),
    int: (int, "a whole number"),
    float: (_finite, "a finite number"),
    str: (str, "a text"),
}


def recognise(root: Path) -> list[str]:
    """Names of the data sets that a folder looks like, most likely first."""
    names = [name for name, kind in sets().items() if kind.looks_like(root)]
    return sorted(names, key=lambda name: name == ANYTHING)


def kind_of(root: Path, name: str | None = None) -> str:
    """Name of the data set in a folder: `name` if the folder looks like it; by default the most likely one.

    InputError if the folder is missing, empty, or of another or an unknown layout; UsageError if `name` is not that of
    a set in folders.
    """
    known = sets()
    if name is not None and name not in known:
        DATASETS.check(name)
        raise UsageError(f"data set {name} is not read from a folder; expected one of {', '.join(known)}")
    if not root.is_dir():
        raise InputError(f"no such folder: {root}" + (f"; expected {_describe_layout(name)}" if name else ""))
    if not any(root.iterdir()):
        raise InputError(f"{root} is empty; expected {_describe_layout(name)}")
    names = recognise(root)
    if name in names:
        return name
    if name is not None and names:
        raise InputError(
            f"{root} does not look like {known[name].title}, but like {known[names[0]].title} ({names[0]})"
        )
    if names and name is None:
        return names[0]
    raise InputError(
        f"{root} is not {known[name].title if name else 'a data set that lean3r knows'}. {_hint(root, name)}"
    )


def _describe_layout(name: str | None) -> str:
    if name is None:
        return "a data set (`lean3r data list`)"
    kind = sets()[name]
    return f"{kind.layout}. Where to get it: {kind.source}"


def _hint(root: Path, name: str | None) -> str:
    """A suggestion: the folder above or below, or how to get cameras for pictures."""
    near = [(folder, recognise(folder)) for folder in (root.resolve().parent, *folders(root)[:20])]
    for folder, names in near:
        wanted = [n for n in names if name in (None, n)]
        if wanted and (wanted[0] != ANYTHING or name == ANYTHING):
            return f"{folder} looks like {sets()[wanted[0]].title}: give this folder instead"
    contents = sorted(p.name for p in root.iterdir())
    if sum(Path(n).suffix.lower() in _PICTURES for n in contents) > len(contents) / 2:
        return (
            "It has pictures without cameras: reconstruct them with COLMAP or `lean3r reconstruct --format colmap`, "
            "and give the folder with images/ and sparse/0/"
        )
    return f"It contains {first_few(contents)}; expected {_describe_layout(name)}"


@dataclass(frozen=True)
class Report:
    """Report on a root. `problems`: one sentence each; `scenes`: number of complete scenes; `views`: number of views in
    the first `looked` scenes; `unknown_depth`: number of pixels without finite depth, in the views that were read."""

    name: str
    root: Path
    problems: list[str]
    scenes: int = 0
    looked: int = 0
    views: int = 0
    unknown_depth: int = 0
    opened: SceneSet | None = field(default=None, repr=False)

    def as_dict(self) -> dict[str, object]:
        """The report as values for JSON."""
        kind = sets()[self.name]
        return {
            "set": self.name,
            "title": kind.title,
            "root": str(self.root),
            "licence": kind.licence,
            "source": kind.source,
            "is_metric": (self.opened or kind).is_metric,
            "has_depth": (self.opened or kind).has_depth,
            "has_normals": (self.opened or kind).has_normals,
            "has_poses": kind.has_poses,
            "scenes": self.scenes,
            "scenes_looked_at": self.looked,
            "views": self.views,
            "unknown_depth_pixels": self.unknown_depth,
            "problems": self.problems,
        }


def report(root: Path, name: str | None = None, options: Mapping[str, Setting] | None = None) -> Report:
    """Check a root: its layout, the files and cameras of its first scenes, and a few whole views. Raises the errors of
    `kind_of`, and UsageError for options that the set does not have."""
    name = kind_of(root, name)
    kind = sets()[name]
    problems = kind.problems(root)
    try:
        opened = open_set(name, root, options or {})
    except InputError as error:
        return Report(name, root, problems or [str(error)])
    looked, views, single, unusable = min(len(opened), _LOOKED_SCENES), 0, 0, 0
    for i in range(looked):
        try:
            count = opened.scene(i).views
            views, single = views + count, single + (count < 2)
            problems += opened.gaps(i) + _bad_cameras(opened, i, count)
        except InputError as error:
            unusable += 1
            problems.append(str(error))
    if single:
        problems.append(f"{single} of {looked} scenes have only one view; a sample needs two")
    unknown, unreadable = _read_some(opened, root)
    problems += unreadable
    if unknown:
        problems.append(
            f"depth is not finite at {unknown:,} pixels of the views that were read; training treats it as unknown"
        )
    problems = list(dict.fromkeys(problems))
    return Report(name, root, problems, len(opened) - unusable, looked, views, unknown, opened)


def _bad_cameras(scenes: SceneSet, scene: int, views: int) -> list[str]:
    bad = []
    for v in np.unique(np.linspace(0, views - 1, min(views, _LOOKED_VIEWS)).astype(int)):
        try:
            scenes.camera(scene, int(v))
        except InputError as error:
            bad.append(str(error))
    more = f" (and {len(bad) - 1:,} more views of this scene; training skips them)" if len(bad) > 1 else ""
    return [bad[0] + more] if bad else []


def _read_some(scenes: SceneSet, root: Path) -> tuple[int, list[str]]:
    """Number of pixels without finite depth, and errors, in the first and last views of a few scenes."""
    unknown, problems = 0, []
    for i in np.unique(np.linspace(0, len(scenes) - 1, min(len(scenes), _READ_VIEWS // 2)).astype(int)):
        try:
            views = scenes.scene(int(i)).views
        except InputError:
            continue  # already reported
        known = []
        for v in {0, views - 1}:
            try:
                read = scenes.view(int(i), v)
                depth, more = zero_unknown(read.depth)
                unknown, known = unknown + more, [*known, bool((depth > 0).any())]
                problems += [text] if (text := scenes.doubt(int(i), v, read)) else []
            except InputError as error:
                problems.append(str(error))
        if scenes.has_depth and known and not any(known):
            problems.append(f"{root / scenes.scene_id(int(i))} has no depth at any pixel of its first and last view")
    return unknown, [p for p in problems if "the pose of" not in p and "the intrinsics of" not in p]


def options_of(texts: list[str]) -> dict[str, str]:
    """Options from texts KEY=VALUE, whose values `open_set` converts. UsageError for another form."""
    options = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"cannot read the data set option '{text}'; expected KEY=VALUE")
        options[key] = value
    return options
