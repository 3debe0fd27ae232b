"""The options of a job: those of `lean3r reconstruct`, from the same dataclasses, but none that names a file here."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from lean3r.compress import PLANS
from lean3r.errors import UsageError
from lean3r.export import DEFAULT_FORMATS, EXPORTERS, ExportOptions, parse_formats, picture_uses, without_depth_formats
from lean3r.inputs.frames import FrameChoice
from lean3r.models import CARDS, model_of
from lean3r.options import UNIONS, Options, PointOptions, check_types, option, options_of, type_of
from lean3r.pipeline.options import CameraOptions, MemoryOptions, RunOptions
from lean3r.refine.options import RefineOptions, ScaleOptions
from lean3r.stereo.options import StereoOptions

AUTO = "auto"
PAGES = ("html", "report")  # of every result
FORBIDDEN = {
    **dict.fromkeys(("positions", "weights"), "it names a file of the service's machine"),
    **dict.fromkeys(("cameras", "masks"), "it names a file of the service's machine; upload files in this field"),
    **dict.fromkeys(("device", "compile", "cuda_graphs", "offline"), "the service chooses it for all jobs"),
    **dict.fromkeys(("out", "overwrite", "view", "json", "verbose", "quiet", "inputs"), "jobs have no such thing"),
}
INTRINSICS = "intrinsics"
NUMBERS_ONLY = {
    "value": "FX,FY,CX,CY",
    "help": "Known intrinsics of all pictures, in their pixels; upload a JSON file of them as known cameras.",
}
_SWITCH = re.compile(r"--([a-z][a-z-]*)")  # of the command line, which users of the page may not know
_FOUR = re.compile(r"\s*[-+.\deE]+\s*(,\s*[-+.\deE]+\s*){3}")
_SETTINGS = re.compile(r"[\w.,=+-]{0,200}")
_LONG = 300  # characters of a text
_LEAST_PATCHES, _MOST_PIXELS = 3, 4096  # a side of what networks take (inputs/views.py, whose import loads torch)


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which network a job runs, and what it writes."""

    model: str = option(AUTO, "Which model; auto: nano, from 50 views on a CPU nano-gsa-fp8.", "NAME")
    plan: str | None = option(None, "Compress the model by a plan, perhaps with settings.", "NAME[:SETTING=VALUE,...]")
    loops: int | None = option(None, "Passes through the trunk of a looped model.", "N")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(AUTO, "Number type of the network.")
    format: str = option(
        "",
        f"What to write: {', '.join(DEFAULT_FORMATS)}; these by default; "
        f"{', '.join(name for name in EXPORTERS if name not in DEFAULT_FORMATS)}; or all.",
        "NAME[,NAME ...]",
    )
    mesh: bool = option(False, "Also write a mesh.")

    def __post_init__(self) -> None:
        check_types(self)
        if self.plan is not None:
            name, _, settings = self.plan.partition(":")
            if name not in PLANS or not _SETTINGS.fullmatch(settings):
                raise UsageError(f"the plan is '{self.plan[:60]}'; expected one of {', '.join(PLANS)}.")
        if self.loops is not None and not 1 <= self.loops <= 100:
            raise UsageError(f"loops is {self.loops}; expected 1 to 100.")
        parse_formats(self.format)

    def formats(self, dense: str, has_texture: bool) -> Sequence[str]:
        """The formats to write, with the mesh for a texture and the pages that every result has; UsageError if they
        contradict `dense`."""
        asked = [self.format, *(["mesh"] if self.mesh or has_texture else [])]
        if dense == "off":
            chosen = without_depth_formats(asked)
        else:
            chosen = parse_formats([self.format or ",".join(DEFAULT_FORMATS), *asked[1:]])
        return [*chosen, *(page for page in PAGES if page not in chosen)]


GROUPS: tuple[type[Any], ...] = (
    ModelOptions,
    FrameChoice,
    RunOptions,
    MemoryOptions,
    CameraOptions,
    RefineOptions,
    StereoOptions,
    ScaleOptions,
    PointOptions,
    ExportOptions,
)


@dataclass(frozen=True)
class Request:
    """The options of one job, by class; `given` are the values as they came, by name."""

    given: Mapping[str, Any]
    groups: Mapping[type, Any]

    @classmethod
    def of(cls, given: Mapping[str, Any], models: Sequence[str], cameras: Path | None = None) -> Request:
        """From names and values, JSON's or texts, and the place of uploaded cameras; UsageError says which one is
        unknown, refused or wrong, or contradicts another, before the job waits."""
        values: dict[str, Any] = {}
        for name, value in ((name.strip().replace("-", "_"), value) for name, value in given.items()):
            if name in values:
                raise UsageError(f"the option {name} is given twice; give it once.")
            values[name] = value
            if name in FORBIDDEN:
                raise UsageError(f"the option {name} is refused: {FORBIDDEN[name]}.")
            if name not in NAMES:
                raise UsageError(f"unknown option '{name[:60]}'. Known: {', '.join(NAMES)}.")
            if isinstance(value, str) and len(value) > _LONG:
                raise UsageError(f"the option {name} has {len(value):,} characters; expected at most {_LONG}.")
        uploaded = {CameraOptions: {"cameras": cameras}}
        groups = {group: group(**_values(group, values), **uploaded.get(group, {})) for group in GROUPS}
        request = cls(values, groups)
        model = groups[ModelOptions].model
        if model not in (AUTO, *models):
            raise UsageError(f"the model '{model[:60]}' is not offered here. Known: {', '.join((AUTO, *models))}.")
        _check_resolution(groups[RunOptions].resolution, models if model == AUTO else [model])
        export = groups[ExportOptions]
        export.check(picture_uses(groups[ModelOptions].formats(groups[StereoOptions].dense, export.texture)))
        export.check_place(groups[ScaleOptions].gps)
        return request

    def __getitem__(self, group: type[Any]) -> Any:
        return self.groups[group]


def _check_resolution(side: int | None, models: Sequence[str]) -> None:
    """UsageError for a size of pictures that none of these models takes."""
    least = _LEAST_PATCHES * min(CARDS[model_of(name)].patch for name in models)
    if side is not None and not least <= side <= _MOST_PIXELS:
        raise UsageError(f"resolution is {side}; expected {least} to {_MOST_PIXELS} pixels.")


def _chosen() -> Iterator[tuple[str, type, dataclasses.Field[Any]]]:
    for group in GROUPS:
        for name, field in options_of(group).items():
            if name not in FORBIDDEN:
                yield name, group, field


NAMES = tuple(name for name, _, _ in _chosen())


def _values(group: type[Options], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of one options class, by its fields."""
    values = {}
    for name, field in options_of(group).items():
        if name in given:
            values[field.name] = _value(name, given[name], field, group)
    return values


def _value(name: str, given: Any, field: dataclasses.Field[Any], group: type) -> Any:
    if name == INTRINSICS:  # elsewhere it may be a file
        text = ",".join(map(str, given)) if isinstance(given, list) else given
        if text in (None, ""):
            return None
        if not isinstance(text, str) or not _FOUR.fullmatch(text):
            raise UsageError("intrinsics are not four numbers; expected FX,FY,CX,CY.")
        return text
    if name == "format" and isinstance(given, list):
        return ",".join(map(str, given))
    if isinstance(given, list):
        return tuple(given)
    if not isinstance(given, str):
        return given
    parse, kind = field.metadata["parse"], type_of(field, group)
    if given == "" and field.default is None:
        return None
    if parse is not None:
        try:
            return parse(given)
        except ValueError as error:
            raise UsageError(f"{name} is '{given}'; {error}.") from error
    return _from_text(given, kind)


def _from_text(text: str, kind: Any) -> Any:
    """A text as a value of a type; as it is, if it is none."""
    if get_origin(kind) in UNIONS:
        found = (_from_text(text, part) for part in get_args(kind) if part is not NoneType)
        return next((value for value in found if not isinstance(value, str)), text)
    if kind is bool:
        return {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}.get(text.lower(), text)
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            return text
    return text


def describe(models: Sequence[str]) -> list[dict[str, Any]]:
    """Every option as JSON-ready values: its name, its kind, what may be chosen, its default and its help."""
    found = []
    for name, group, field in _chosen():
        choices = list(_choices(type_of(field, group))) if name != INTRINSICS else []
        if name == "model":
            choices = [AUTO, *models]
        kind = "text" if name == INTRINSICS else _kind(type_of(field, group))
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        about = {"name": name, "kind": "choice" if choices else kind, "choices": choices, "default": default}
        help = _SWITCH.sub(_in_words, field.metadata["help"])
        about |= {"value": field.metadata["metavar"], "help": help}
        found.append(about | NUMBERS_ONLY if name == INTRINSICS else about)
    return found


def _in_words(switch: re.Match[str]) -> str:
    return "the known cameras" if switch[1] == "cameras" else f"'{switch[1].replace('-', ' ')}'"


def _choices(kind: Any) -> Iterator[str]:
    if get_origin(kind) is Literal:
        yield from get_args(kind)


def _kind(kind: Any) -> str:
    parts = set(get_args(kind)) if get_origin(kind) in UNIONS else {kind}
    parts -= {NoneType}
    only = parts.pop() if len(parts) == 1 else str
    return {bool: "flag", int: "integer", float: "number"}.get(only, "text")


def schema(models: Sequence[str]) -> dict[str, Any]:
    """The options as a JSON schema, for OpenAPI."""
    kinds = {"flag": "boolean", "integer": "integer", "number": "number"}
    properties: dict[str, Any] = {}
    for about in describe(models):
        one: dict[str, Any] = {"description": about["help"]}
        if about["kind"] in kinds:
            one["type"] = kinds[about["kind"]]
        elif about["choices"]:
            one["enum"] = about["choices"]
        else:  # some take numbers, too
            one["type"] = ["string", "number", "array"]
        if about["default"] is not None:
            one["default"] = about["default"]
        properties[about["name"]] = one
    return {"type": "object", "additionalProperties": False, "properties": properties}
