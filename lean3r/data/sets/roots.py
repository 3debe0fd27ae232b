"""Recognise the data set in a folder and report its problems."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lean3r.data import DATASETS
from lean3r.data.sets.scenes import SceneSet, folders, some, without_unknown
from lean3r.errors import InputError, UsageError

ANYTHING = "colmap"  # other sets come with COLMAP models too, so this one is named last
Setting = bool | int | float | str
_PICTURES = (".jpg", ".jpeg", ".png", ".heic", ".tif", ".tiff", ".webp", ".bmp")
_LOOKED_SCENES, _LOOKED_VIEWS, _READ_VIEWS = 200, 200, 8


def sets() -> dict[str, type[SceneSet]]:
    """Rows of DATASETS that are read from a folder."""
    found = {name: DATASETS.get(name) for name in DATASETS}
    return {name: kind for name, kind in found.items() if isinstance(kind, type) and issubclass(kind, SceneSet)}


def opened_as(name: str, root: Path, options: Mapping[str, Setting]) -> SceneSet:
    """A set of this row, with settings of its own; UsageError where it has none such, InputError without scenes."""
    try:
        return DATASETS.get(name)(root, **options)
    except TypeError as error:
        raise UsageError(f"{name}: {error}") from error


def recognise(root: Path) -> list[str]:
    """Names of the sets that a folder looks like, the likeliest first."""
    found = [name for name, kind in sets().items() if kind.looks_like(root)]
    return sorted(found, key=lambda name: name == ANYTHING)


def kind_of(root: Path, name: str | None = None) -> str:
    """The set that a folder holds: `name`, if it looks like that, or the one that it looks like.

    InputError where the folder is absent, empty, of another layout (it says which), or of none that is known.
    """
    known = sets()
    if name is not None and name not in known:
        DATASETS.check(name)
        raise UsageError(f"data set {name} is not read from a folder; expected one of {', '.join(known)}")
    if not root.is_dir():
        raise InputError(f"no such folder: {root}")
    if not any(root.iterdir()):
        raise InputError(f"{root} is empty; expected {_expected(name)}")
    found = recognise(root)
    if name in found:
        return name
    if name is not None and found:
        raise InputError(
            f"{root} does not look like {known[name].title}, but like {known[found[0]].title} ({found[0]})"
        )
    if found and name is None:
        return found[0]
    raise InputError(f"{root} is no {known[name].title if name else 'data set that lean3r knows'}. {_hint(root, name)}")


def _expected(name: str | None) -> str:
    return "a data set (`lean3r data list`)" if name is None else sets()[name].layout


def _hint(root: Path, name: str | None) -> str:
    """A suggestion: the folder above or below, or how to make cameras for plain pictures."""
    near = [(folder, recognise(folder)) for folder in (root.resolve().parent, *folders(root)[:20])]
    for folder, found in near:
        wanted = [n for n in found if name in (None, n)]
        if wanted and (wanted[0] != ANYTHING or name == ANYTHING):
            return f"{folder} looks like {sets()[wanted[0]].title}: give that folder"
    holds = sorted(p.name for p in root.iterdir())
    if sum(Path(n).suffix.lower() in _PICTURES for n in holds) > len(holds) / 2:
        return (
            "It holds pictures without cameras: map them with COLMAP, or with `lean3r reconstruct --format colmap`, "
            "and give the folder with images/ and sparse/0/"
        )
    return f"It holds {some(holds)}; expected {_expected(name)}"


@dataclass(frozen=True)
class Report:
    """What was found in a root. `problems`: a sentence each; `scenes` complete ones; `views` in the first `looked` of
    them; `unknown_depth`: pixels of the views that were read whose depth is not a finite number."""

    name: str
    root: Path
    problems: list[str]
    scenes: int = 0
    looked: int = 0
    views: int = 0
    unknown_depth: int = 0
    opened: SceneSet | None = field(default=None, repr=False)

    def as_dict(self) -> dict[str, object]:
        """JSON-ready."""
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
            "scenes": self.scenes,
            "scenes_looked_at": self.looked,
            "views": self.views,
            "unknown_depth_pixels": self.unknown_depth,
            "problems": self.problems,
        }


def report(root: Path, name: str | None = None, options: Mapping[str, Setting] | None = None) -> Report:
    """Look at a root: its layout, the cameras of its first scenes, and a few whole views. Raises as `kind_of` does, and
    UsageError on options that the set does not have."""
    name = kind_of(root, name)
    kind = sets()[name]
    problems = kind.problems(root)
    try:
        opened = opened_as(name, root, options or {})
    except InputError as error:
        return Report(name, root, problems or [str(error)])
    looked, views, single, unusable = min(len(opened), _LOOKED_SCENES), 0, 0, 0
    for i in range(looked):
        try:
            count = opened.scene(i).views
            views, single = views + count, single + (count < 2)
            problems += _bad_cameras(opened, i, count)
        except InputError as error:
            unusable += 1
            problems.append(str(error))
    if single:
        problems.append(f"{single} of {looked} scenes have a single view; a sample needs two")
    unknown, unreadable = _read_some(opened)
    problems += unreadable
    if unknown:
        problems.append(
            f"depth of {unknown:,} pixels of the views that were read is not a number; it counts as unknown"
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
    more = f" (and {len(bad) - 1:,} more views of that scene; training leaves them out)" if len(bad) > 1 else ""
    return [bad[0] + more] if bad else []


def _read_some(scenes: SceneSet) -> tuple[int, list[str]]:
    """How much depth is not finite, and what cannot be read, in the first and last views of a few scenes."""
    unknown, problems = 0, []
    for i in np.unique(np.linspace(0, len(scenes) - 1, min(len(scenes), _READ_VIEWS // 2)).astype(int)):
        try:
            views = scenes.scene(int(i)).views
        except InputError:
            continue  # already among the problems
        for v in {0, views - 1}:
            try:
                unknown += without_unknown(scenes.view(int(i), v).depth)[1]
            except InputError as error:
                problems.append(str(error))
    return unknown, [p for p in problems if "the pose of" not in p and "the intrinsics of" not in p]


def options_of(texts: list[str]) -> dict[str, Setting]:
    """KEY=VALUE texts as keywords: numbers and true / false are taken as such."""
    found: dict[str, Setting] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"data set option '{text}' cannot be read; expected KEY=VALUE")
        found[key] = _value(value)
    return found


def _value(text: str) -> Setting:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
