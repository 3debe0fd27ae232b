"""What to compress and how, as data: ordered steps, checked strictly; the same in Python, JSON and a checkpoint."""

from __future__ import annotations

import difflib
import inspect
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lean3r.attention import ATTENTION
from lean3r.compress.tables import PLANS, SCHEMES
from lean3r.compress.targets import Target
from lean3r.errors import UsageError
from lean3r.json_text import parse_json

FORMAT = 1
NUMBERS = re.compile(r"\d+(-\d*)?")  # of blocks
FROM_MODEL = ("dim", "heads")  # a mechanism with parameters gets these from its block


@dataclass(frozen=True)
class Step:
    """The blocks of `target` (compress/targets.py) get `mechanism`, a row of ATTENTION, with these settings.

    Sequences of fewer than `dense_below` tokens keep the original mechanism of the block, which is faster for them.
    UsageError for an unknown mechanism or setting, with the closest names, and for an invalid target.
    """

    target: str
    mechanism: str
    settings: Mapping[str, object] = field(default_factory=dict)
    dense_below: int = 0

    def __post_init__(self) -> None:
        Target.of_attention(self.target)
        ATTENTION.check(self.mechanism)
        check_known("setting", self.settings, settings_of(self.mechanism), f"of {self.mechanism}")
        _freeze(self, self.mechanism)
        _tokens(self.dense_below)

    def __str__(self) -> str:
        settings = ", ".join(f"{key}={value!r}" for key, value in self.settings.items())
        short = f", dense below {self.dense_below:,} tokens" if self.dense_below else ""
        return f"{self.target}: {self.mechanism}({settings}){short}"

    def as_dict(self) -> dict[str, object]:
        """JSON-ready; default values are left out."""
        row: dict[str, object] = {"target": self.target, "mechanism": self.mechanism}
        if self.settings:
            row["settings"] = dict(self.settings)
        if self.dense_below:
            row["dense_below"] = self.dense_below
        return row


@dataclass(frozen=True)
class QuantizeStep:
    """The linear layers of `target` (compress/targets.py) get the scheme `quantize`, a row of SCHEMES.

    `leave_out` are targets that stay unchanged. UsageError for an unknown scheme or setting, with the closest names,
    and for an invalid target.
    """

    quantize: str
    target: str
    leave_out: tuple[str, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kind = SCHEMES.get(self.quantize)
        for target in (self.target, *self.leave_out):
            Target.parse(target)
        check_known("setting", self.settings, _names(kind), f"of {self.quantize}")
        _freeze(self, self.quantize)
        object.__setattr__(self, "leave_out", tuple(self.leave_out))
        kind(**self.settings)

    def __str__(self) -> str:
        settings = ", ".join(f"{key}={value!r}" for key, value in self.settings.items())
        left = f" except {', '.join(self.leave_out)}" if self.leave_out else ""
        return f"{self.target}{left}: {self.quantize}({settings})"

    def as_dict(self) -> dict[str, object]:
        """JSON-ready; default values are left out."""
        row: dict[str, object] = {"quantize": self.quantize, "target": self.target}
        if self.leave_out:
            row["except"] = list(self.leave_out)
        if self.settings:
            row["settings"] = dict(self.settings)
        return row


@dataclass(frozen=True)
class RemoveStep:
    """The frame and global blocks of the target `remove` go; each leaves a matrix (compress/removal.py fits it).

    UsageError for an invalid target.
    """

    remove: str

    def __post_init__(self) -> None:
        Target.of_attention(self.remove)

    def __str__(self) -> str:
        return f"{self.remove}: removed"

    def as_dict(self) -> dict[str, object]:
        """JSON-ready."""
        return {"remove": self.remove}


AnyStep = Step | QuantizeStep | RemoveStep


@dataclass(frozen=True)
class CompressionPlan:
    """Steps in order; if two steps of a kind select the same block, the later one counts. `a + b` puts b after a.

    Whatever the order, mechanisms are exchanged first, then blocks removed, then linear layers quantised.
    """

    steps: tuple[AnyStep, ...]
    name: str = "custom"

    def __post_init__(self) -> None:
        if not self.steps:
            raise UsageError(f"plan '{self.name}' has no steps; expected at least one.")

    @property
    def quantizes(self) -> tuple[QuantizeStep, ...]:
        """The steps for linear layers."""
        return tuple(step for step in self.steps if isinstance(step, QuantizeStep))

    @property
    def exchanges(self) -> tuple[Step, ...]:
        """The steps for attention mechanisms."""
        return tuple(step for step in self.steps if isinstance(step, Step))

    @property
    def removals(self) -> tuple[RemoveStep, ...]:
        """The steps that remove blocks."""
        return tuple(step for step in self.steps if isinstance(step, RemoveStep))

    @property
    def structure(self) -> tuple[Step | RemoveStep, ...]:
        """The steps that change which parameters there are: all but those that round linear layers."""
        return tuple(step for step in self.steps if not isinstance(step, QuantizeStep))

    def __str__(self) -> str:
        return f"{self.name} ({'; '.join(map(str, self.steps))})"

    def __add__(self, other: CompressionPlan) -> CompressionPlan:
        return CompressionPlan(self.steps + other.steps, f"{self.name}-{other.name}")

    def as_dict(self) -> dict[str, object]:
        """JSON-ready; `from_dict` reads it back to an equal plan."""
        return {"format": FORMAT, "name": self.name, "steps": [step.as_dict() for step in self.steps]}

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.as_dict())

    @classmethod
    def from_dict(cls, row: object, *, name: str = "custom") -> CompressionPlan:
        """Read what `as_dict` writes; `name` is the default name. UsageError says what is wrong and where."""
        row = _table(row, "a plan")
        check_known("key", row, ("format", "name", "steps"), "of a plan")
        if row.get("format", FORMAT) != FORMAT:
            raise UsageError(f"the plan has format {row['format']!r}; this lean3r reads {FORMAT}.")
        steps = row.get("steps")
        if not isinstance(steps, list | tuple):
            raise UsageError(f"the plan has {steps!r} for steps; expected a list.")
        steps = tuple(_step(step, number) for number, step in enumerate(steps, start=1))
        return cls(steps, _text(row.get("name", name), "name of the plan"))

    @classmethod
    def from_json(cls, text: str, *, name: str = "custom") -> CompressionPlan:
        """Read what `to_json` writes; UsageError as in `from_dict`, and if the text is not JSON."""
        try:
            row = parse_json(text)
        except ValueError as error:
            raise UsageError(f"the plan is not valid JSON: {error}.") from error
        return cls.from_dict(row, name=name)


def resolve_plan(plan: str | Path | Mapping[str, object] | CompressionPlan) -> CompressionPlan:
    """A plan from its name in PLANS, "NAME:SETTING=VALUE,...", a JSON file, a dict or a CompressionPlan; UsageError for
    anything else."""
    if isinstance(plan, CompressionPlan):
        return plan
    if isinstance(plan, Mapping):
        return CompressionPlan.from_dict(plan)
    if isinstance(plan, str) and plan.partition(":")[0] in PLANS:
        return _with_settings(plan)
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


def _with_settings(text: str) -> CompressionPlan:
    """The plan of "NAME" or "NAME:SETTING=VALUE,..."; a value is JSON, perhaps a list, or else the text itself."""
    name, _, rest = text.partition(":")
    settings: dict[str, object] = {}
    for pair in split_at_commas(rest):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals:
            raise UsageError(
                f"'{text}' has '{pair}'; expected NAME=VALUE for each setting, as in sla:keep=0.2,mode=token."
            )
        if key in settings:
            raise UsageError(f"'{text}' has {key} twice; expected each setting once.")
        try:
            settings[key] = parse_json(value)
        except ValueError:
            settings[key] = value
    try:
        return PLANS.get(name)(**settings)
    except TypeError as error:
        raise UsageError(f"plan {name} does not accept these settings: {error}.") from error


def split_at_commas(text: str) -> list[str]:
    """The pieces between commas outside of brackets and quotation marks; block numbers stay with the setting before."""
    pieces, depth, quoted = [""], 0, False
    for letter in text:
        quoted ^= letter == '"'
        depth += 0 if quoted else (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0 and not quoted:
            pieces.append("")
        else:
            pieces[-1] += letter
    found: list[str] = []
    for piece in filter(None, map(str.strip, pieces)):
        if found and "=" in found[-1] and NUMBERS.fullmatch(piece):
            found[-1] += f",{piece}"
        else:
            found.append(piece)
    return found


def settings_of(mechanism: str) -> tuple[str, ...]:
    """Names of the settings of a mechanism in ATTENTION."""
    return tuple(name for name in _names(ATTENTION.get(mechanism)) if name not in FROM_MODEL)


def _names(kind: Callable[..., object]) -> tuple[str, ...]:
    parameters = inspect.signature(kind).parameters.values()
    return tuple(p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))


def _freeze(step: Step | QuantizeStep, kind: str) -> None:
    try:  # as read from a checkpoint: lists instead of tuples
        object.__setattr__(step, "settings", json.loads(json.dumps(dict(step.settings))))
    except TypeError as error:
        raise UsageError(f"the settings of {kind} cannot be written as JSON: {error}.") from error


def _step(row: object, number: int) -> AnyStep:
    row = _table(row, f"step {number}")
    if "remove" in row:
        check_known("key", row, ("remove",), f"of step {number}, which removes blocks")
        return RemoveStep(_text(row["remove"], f"remove of step {number}"))
    if "quantize" in row:
        return _quantize_step(row, number)
    check_known("key", row, ("target", "mechanism", "settings", "dense_below"), f"of step {number}")
    missing = [key for key in ("target", "mechanism") if key not in row]
    if missing:
        raise UsageError(f"step {number} has no {missing[0]}; expected target and mechanism.")
    target, mechanism = (_text(row[key], f"{key} of step {number}") for key in ("target", "mechanism"))
    settings = _table(row.get("settings", {}), f"settings of step {number}")
    return Step(target, mechanism, settings, _tokens(row.get("dense_below", 0)))


def _quantize_step(row: dict[str, object], number: int) -> QuantizeStep:
    check_known("key", row, ("quantize", "target", "except", "settings"), f"of step {number}, which quantizes")
    scheme, target = (_text(row.get(key), f"{key} of step {number}") for key in ("quantize", "target"))
    left = row.get("except", [])
    if not isinstance(left, list | tuple):
        raise UsageError(f"step {number} has {left!r} for except; expected a list of targets.")
    left_out = tuple(_text(target, f"a target in except of step {number}") for target in left)
    settings = _table(row.get("settings", {}), f"settings of step {number}")
    return QuantizeStep(scheme, target, left_out, settings)


def _table(row: object, what: str) -> dict[str, object]:
    if not isinstance(row, Mapping):
        raise UsageError(f"{what} is {row!r}; expected names with values.")
    return dict(row)


def _text(value: object, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise UsageError(f"{what} is {value!r}; expected a string that is not empty.")
    return value


def _tokens(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UsageError(f"dense_below is {value!r}; expected a number of tokens, 0 or more.")
    return value


def check_known(kind: str, given: Collection[str], known: Collection[str], where: str) -> None:
    """Raise UsageError, with the closest known names, for a name that is not known `where`."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=2, cutoff=0.5)
            hint = f" Perhaps you meant {' or '.join(near)}." if near else ""
            raise UsageError(f"unknown {kind} '{name}' {where}.{hint} Known: {', '.join(known) or 'none'}.")
