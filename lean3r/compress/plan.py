"""What to compress and how, as data: ordered steps, checked strictly; the same in Python, JSON and a checkpoint."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lean3r.attention import ATTENTION
from lean3r.compress.targets import Target
from lean3r.errors import UsageError

FORMAT = 1
FROM_MODEL = ("dim", "heads")  # a mechanism that owns parameters gets these from the block that it enters


@dataclass(frozen=True)
class Step:
    """The blocks of `target` (compress/targets.py) get `mechanism`, a row of ATTENTION, with these settings.

    Sequences of fewer than `dense_below` tokens keep the mechanism that the block had: there it is faster.
    UsageError on an unknown mechanism or setting, with the nearest ones, and on a target that cannot be read.
    """

    target: str
    mechanism: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    dense_below: int = 0

    def __post_init__(self) -> None:
        Target.parse(self.target)
        ATTENTION.check(self.mechanism)
        _known("setting", self.settings, settings_of(self.mechanism), f"of {self.mechanism}")
        try:  # as a checkpoint would bring them back: lists for tuples
            object.__setattr__(self, "settings", json.loads(json.dumps(dict(self.settings))))
        except TypeError as error:
            raise UsageError(f"settings of {self.mechanism} are no JSON values: {error}.") from error
        if not isinstance(self.dense_below, int) or isinstance(self.dense_below, bool) or self.dense_below < 0:
            raise UsageError(f"dense_below is {self.dense_below!r}; expected a number of tokens, 0 or more.")

    def __str__(self) -> str:
        settings = ", ".join(f"{key}={value!r}" for key, value in self.settings.items())
        short = f", dense below {self.dense_below:,} tokens" if self.dense_below else ""
        return f"{self.target}: {self.mechanism}({settings}){short}"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; what has its default is left out."""
        row: dict[str, Any] = {"target": self.target, "mechanism": self.mechanism}
        if self.settings:
            row["settings"] = dict(self.settings)
        if self.dense_below:
            row["dense_below"] = self.dense_below
        return row


@dataclass(frozen=True)
class CompressionPlan:
    """Steps in order; where two steps name the same block, the later one counts. `a + b` puts b after a."""

    steps: tuple[Step, ...]
    name: str = "custom"

    def __post_init__(self) -> None:
        if not self.steps:
            raise UsageError(f"plan '{self.name}' has no steps; expected at least one.")

    def __str__(self) -> str:
        return f"{self.name} ({'; '.join(map(str, self.steps))})"

    def __add__(self, other: CompressionPlan) -> CompressionPlan:
        return CompressionPlan(self.steps + other.steps, f"{self.name}-{other.name}")

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back to an equal plan."""
        return {"format": FORMAT, "name": self.name, "steps": [step.as_dict() for step in self.steps]}

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.as_dict())

    @classmethod
    def from_dict(cls, row: Any, *, name: str = "custom") -> CompressionPlan:
        """Read what `as_dict` writes; `name` stands in where it has none. UsageError names what is wrong and where."""
        row = _table(row, "a plan")
        _known("key", row, ("format", "name", "steps"), "of a plan")
        if row.get("format", FORMAT) != FORMAT:
            raise UsageError(f"the plan has format {row['format']!r}; this lean3r reads {FORMAT}.")
        if not isinstance(row.get("steps"), list | tuple):
            raise UsageError(f"steps of the plan is {row.get('steps')!r}; expected a list.")
        steps = tuple(_step(step, number) for number, step in enumerate(row["steps"], start=1))
        return cls(steps, _text(row.get("name", name), "name of the plan"))

    @classmethod
    def from_json(cls, text: str, *, name: str = "custom") -> CompressionPlan:
        """Read what `to_json` writes; UsageError as `from_dict`, and where the text is no JSON."""
        try:
            row = json.loads(text)
        except ValueError as error:
            raise UsageError(f"the plan is no JSON: {error}.") from error
        return cls.from_dict(row, name=name)


def resolve_plan(plan: str | Path | Mapping[str, Any] | CompressionPlan) -> CompressionPlan:
    """A plan from its name in PLANS, a JSON file, a dict or itself; UsageError where it is none of these."""
    from lean3r.compress import PLANS

    if isinstance(plan, CompressionPlan):
        return plan
    if isinstance(plan, Mapping):
        return CompressionPlan.from_dict(plan)
    if isinstance(plan, str) and plan in PLANS:
        return PLANS.get(plan)()
    if not isinstance(plan, str | Path):
        raise UsageError(f"got a plan of type {type(plan).__name__}; expected a name, a JSON file, a dict or a plan.")
    path = Path(plan)
    if path.suffix != ".json" and not path.is_file():
        PLANS.check(str(plan))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the plan {path}: {getattr(error, 'strerror', None) or error}.") from error
    try:
        return CompressionPlan.from_json(text, name=path.stem)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def settings_of(mechanism: str) -> tuple[str, ...]:
    """Names of the settings of a row of ATTENTION."""
    found = inspect.signature(ATTENTION.get(mechanism)).parameters.values()
    named = (p.name for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
    return tuple(name for name in named if name not in FROM_MODEL)


def _step(row: Any, number: int) -> Step:
    row = _table(row, f"step {number}")
    _known("key", row, ("target", "mechanism", "settings", "dense_below"), f"of step {number}")
    for key in ("target", "mechanism"):
        if key not in row:
            raise UsageError(f"step {number} has no {key}; expected target and mechanism.")
        _text(row[key], f"{key} of step {number}")
    return Step(**{**row, "settings": _table(row.get("settings", {}), f"settings of step {number}")})


def _table(row: Any, what: str) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise UsageError(f"{what} is {row!r}; expected a table of names and values.")
    return dict(row)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise UsageError(f"{what} is {value!r}; expected a text.")
    return value


def _known(kind: str, given: Collection[str], known: Collection[str], where: str) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=2, cutoff=0.5)
            hint = f" Perhaps you meant {' or '.join(near)}." if near else ""
            raise UsageError(f"unknown {kind} '{name}' {where}.{hint} Known: {', '.join(known) or 'none'}.")
