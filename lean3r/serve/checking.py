"""Whether uploaded cameras and masks, and options that name pictures, fit the pictures of an upload: told at once, not
when its job has waited and runs. The files are strangers', and reading them loads torch: a process of its own does it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lean3r.errors import LeanError
from lean3r.export import ExportOptions, check_cameras
from lean3r.inputs.frames import FrameChoice
from lean3r.pipeline.options import CameraOptions
from lean3r.processes import python_command, with_threads_of_its_own
from lean3r.refine.options import ScaleOptions
from lean3r.serve.given import ROLES, cameras_of, masks_of
from lean3r.serve.logs import Scrubber, log
from lean3r.serve.request import ModelOptions, Request
from lean3r.stereo.options import StereoOptions

SECONDS = 60.0  # what is not known by then is found when the job runs
_HIDDEN = re.compile(rf"(?<!\w)\.({'|'.join(ROLES)})\b")  # as the folders are called, to the fields of the form
RESOLUTION, PATCH = 48, 16  # only the sizes of the pictures count


def needs_check(request: Request, inputs: Path) -> bool:
    """Whether anything refers to single pictures."""
    scale = request[ScaleOptions]
    return request[CameraOptions].are_given or masks_of(inputs) is not None or scale.scale is not None or scale.gps


def misfit(inputs: Path, names: Sequence[str], options: Mapping[str, Any], models: Sequence[str]) -> str:
    """Why the job of an upload, whose pictures have these names in `inputs`, would fail as soon as it had read them;
    empty if it would not, or if that cannot be told."""
    asked = json.dumps({"names": list(names), "options": dict(options), "models": list(models)})
    command = python_command("lean3r.serve.checking")
    try:
        told = subprocess.run(
            command,
            input=asked.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=SECONDS,
            cwd=inputs,  # so that names, not paths, appear in messages
            env=with_threads_of_its_own(),
        )
        return _HIDDEN.sub(r"\1", Scrubber([inputs])(json.loads(told.stdout)["misfit"]))
    except (subprocess.TimeoutExpired, ValueError) as error:
        log("upload not checked", job=inputs.name, reason=type(error).__name__)
        return ""


def main() -> int:
    """Of the process, in the folder of the pictures: answer one question of `misfit`."""
    asked, said = json.load(sys.stdin), ""
    try:
        _check(asked["names"], Request.of(asked["options"], asked["models"], cameras_of(Path())))
    except LeanError as error:
        said = str(error)
    print(json.dumps({"misfit": said}))
    return 0


def _check(names: Sequence[str], request: Request) -> None:
    """The checks of a run before its network (pipeline/from_files.py, pipeline/reconstruct.py); their errors."""
    from lean3r.inputs.cameras import read_given
    from lean3r.inputs.pictures import Pictures
    from lean3r.pipeline.known import with_cameras

    choice, known = request[FrameChoice], request[CameraOptions]
    every = choice.every if choice.is_stated else 1  # which frames are taken is seen by their motion: any may be
    every_one = replace(choice, max_views=None, every=every)
    pictures = Pictures(names, every_one, masks=masks_of(Path()), keep_frames=False)
    has_frames = len(pictures.file_names) < len(pictures)
    if choice.max_views is not None and not has_frames:
        pictures = pictures.at_most(choice.max_views)  # those that the run takes
    request[ScaleOptions].check(pictures)
    if not known.are_given and masks_of(Path()) is None:
        return  # no size counts, and thousands of pictures take longer to read than an upload may wait
    if has_frames:  # the sizes of frames are known when they are decoded
        if (cameras := cameras_of(Path())) is not None:
            read_given(cameras).match(pictures.names, pictures.timestamps_s)
        _ = pictures.masks
        return
    views = pictures.views(resolution=RESOLUTION, patch=PATCH)
    if known.are_given:
        _, given = with_cameras(views, views.sources, known)
        export, model = request[ExportOptions], request[ModelOptions]
        formats = model.formats(request[StereoOptions].dense, export.texture)
        check_cameras(formats, export, views.sources, given.lenses)
    if (masks := pictures.masks) is not None:
        for source in views.sources:
            masks.read(source)
