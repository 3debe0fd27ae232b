"""Helpers to declare options for --help, and the options that several commands share.

A command includes a shared option by its type, `seed: Seed = 0`, and may replace the help text:
`seed: Annotated[Seed, option(help="Random seed of the camera path.")] = 1`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lean3r.compress import PLANS
from lean3r.errors import UsageError
from lean3r.export import DEFAULT_FORMATS, EXPORTERS
from lean3r.inputs.frames import FrameChoice
from lean3r.options import Options, options_of
from lean3r.pipeline.options import RunOptions
from lean3r.stream.options import CAMERA, DEVICE


def option(metavar: str | None = None, *aliases: str, help: str | None = None) -> object:
    """Declare an option: the name of its value, its other names, its help (default: the docstring below the field).

    --help does not show trivial defaults.
    """
    return tyro.conf.arg(metavar=metavar, aliases=aliases or None, help=help, help_behavior_hint=format_default)


def format_default(default: str) -> str:
    """The default as --help shows it; empty for None, False and empty values."""
    return "" if default in ("None", "False", "", "[]") else f"(default: {default})"


def library_option(group: type[Options], field: str) -> object:
    """An option with the name and help text that an options class of the library declares."""
    name, declared = next((name, f.metadata) for name, f in options_of(group).items() if f.name == field)
    return tyro.conf.arg(
        name=name,
        prefix_name=False,
        metavar=declared["metavar"],
        aliases=declared["aliases"] or None,
        help=declared["help"],
        help_behavior_hint=format_default,
    )


def check_named(inputs: Sequence[str]) -> None:
    """UsageError if a command that reads pictures got no input."""
    if not inputs:
        raise UsageError("no input is named; expected folders, pictures, globs, .zip files or a video.")


def check_found(inputs: Sequence[str], *, or_camera: bool = False) -> None:
    """InputError if an input is not there: before torch and the model are loaded, which takes seconds. With
    `or_camera`, one camera is taken as it is."""
    if or_camera and len(inputs) == 1 and inputs[0].startswith((CAMERA, DEVICE)):
        return
    from lean3r.inputs.listing import expand

    for each in inputs:
        expand(each)


Inputs = Annotated[
    tyro.conf.Positional[list[str]],
    option("INPUT [INPUT ...]", help="Folders, pictures, globs, .zip files or a video."),
]
Out = Annotated[Path, option("DIR", "-o", help="Folder to write; must be new or empty, unless --overwrite is given.")]
Model = Annotated[str, option("NAME", "-m", help="Name of the model; `lean3r models` lists them.")]
Weights = Annotated[
    str | None,
    option("FILE", help="Weights other than the model's usual ones: a file, a folder, or hf:OWNER/NAME[@REVISION]."),
]
Offline = Annotated[bool, option(help="Do not use the network; load weights from a file or from earlier downloads.")]
Plan = Annotated[
    str | None,
    option(
        "NAME[:SETTING=VALUE,...]|FILE",
        help=f"Compress the model: {', '.join(PLANS)} (docs/how-to/compress.md), perhaps with settings, as in "
        "lite3r:keep=0.2; or a plan as a .json file.",
    ),
]
Device = Annotated[
    Literal["auto", "cpu", "cuda", "mps"],
    option(help="Device to run on; auto: an NVIDIA GPU, else an Apple one (mps), else the CPU."),
]
Resolution = Annotated[int | None, library_option(RunOptions, "resolution")]
MaxViews = Annotated[int | None, library_option(FrameChoice, "max_views")]
DataSets = Annotated[
    tyro.conf.UseAppendAction[list[str]],
    option(
        "NAME=ROOT[:WEIGHT]",
        help="A data set, its folder and an optional weight; may be repeated. Default: the synthetic world.",
    ),
]
Formats = Annotated[
    tyro.conf.UseAppendAction[list[str]],
    option(
        "NAME[,NAME ...]",
        "-f",
        "--export-format",
        help=f"What to write: {', '.join(DEFAULT_FORMATS)}; these by default; "
        f"{', '.join(name for name in EXPORTERS if name not in DEFAULT_FORMATS)}; or all.",
    ),
]
Seed = Annotated[int, library_option(RunOptions, "seed")]
Overwrite = Annotated[bool, option(help="Replace an earlier result in the output folder.")]
Json = Annotated[bool, option(help="Print JSON on standard output, instead of the usual result.")]
Verbose = Annotated[bool, option(None, "-v", help="Print more, and the traceback of an unexpected error.")]
Quiet = Annotated[bool, option(None, "-q", help="Print only errors.")]
