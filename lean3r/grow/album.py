"""The pictures of a result: where they are, and as files again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from lean3r.errors import InputError
from lean3r.export.names import unique_names
from lean3r.grow.result import Result
from lean3r.inputs.listing import Still, find_pictures
from lean3r.inputs.pictures import frame_files
from lean3r.inputs.upright import turned
from lean3r.inputs.video import Clip, read_frames

IMAGES = "images"
WHERE = "name the folder, archive or video that holds them with --stored (stored= in Python)"


@dataclass(frozen=True)
class Batch:
    """Pictures that came into the scene together: the `inputs` that they were listed from, and the name there of each
    view."""

    inputs: Sequence[str]
    names: Mapping[str, str]


class Album:
    """The pictures of a result by the names of their views. `stored` says where they are now, if they moved.

    Frames of videos are written to `scratch`.
    """

    def __init__(self, result: Result, stored: Sequence[str | Path], scratch: Path) -> None:
        self._result, self._stored, self._scratch = result, list(stored), scratch

    def stills(self, names: Sequence[str]) -> list[Still]:
        """The pictures of these views, in this order. InputError if one is not found."""
        found: dict[str, Still] = {}
        for batch in self._batches():
            if len(found) == len(names):
                break
            listed = {batch.names[name]: name for name in names if name in batch.names and name not in found}
            if listed:
                found |= {listed[still.name]: still for still in self._read(batch, list(listed))}
        if missing := [name for name in names if name not in found]:
            count = f"{len(missing)} of {len(names)}"
            raise InputError(f"{count} pictures of {self._result.folder} are not found ({missing[0]}); {WHERE}.")
        return [replace(found[name], name=name) for name in names]

    def _batches(self) -> Iterator[Batch]:
        """Where to look, in this order: what the user says, or images/ of the result, and what the result records."""
        views = self._result.scene.names
        own = {name: name for name in views}
        if self._stored:
            yield Batch([str(path) for path in self._stored], own)
            return
        if any(name.startswith(f"{IMAGES}/") for name in self._result.manifest["files"]):
            yield Batch([], own)  # without those of uncertain views
        added = [
            Batch([str(path) for path in each["inputs"]], {str(k): str(v) for k, v in each["views"].items()})
            for each in additions(self._result.manifest)
        ]
        later = {name for batch in added for name in batch.names}
        inputs = self._result.config.get("inputs")
        if not isinstance(inputs, list) or not all(isinstance(path, str) for path in inputs):
            raise InputError(f"{self._result.folder} does not record where its pictures are; {WHERE}.")
        yield from (Batch(inputs, {name: name for name in views if name not in later}), *added)

    def _read(self, batch: Batch, names: Sequence[str]) -> list[Still]:
        if not batch.inputs:
            files = dict(zip(self._result.scene.names, unique_names(self._result.scene.names), strict=True))
            paths = {name: self._result.folder / IMAGES / files[name] for name in names}
            return [Still(name, partial(path.open, "rb")) for name, path in paths.items() if path.is_file()]
        try:
            listing = find_pictures(batch.inputs)
        except InputError as error:
            raise InputError(f"the pictures of {self._result.folder} are not found: {error}; {WHERE}.") from error
        stills: list[Still] = []
        for item in listing.called(names):
            stills += frame_files(_frames(item), self._scratch) if isinstance(item, Clip) else [item]
        return stills


def additions(manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What was added to a result before, in order: `added` of its manifest. InputError if that is damaged."""
    added = manifest.get("added", [])
    is_sound = isinstance(added, list) and all(
        isinstance(each, dict) and isinstance(each.get("inputs"), list) and isinstance(each.get("views"), dict)
        for each in added
    )
    if not is_sound:
        raise InputError("the manifest of the result is damaged: `added` has no inputs and views.")
    return added


def _frames(clip: Clip) -> Iterator[tuple[str, Image.Image]]:
    """Upright."""
    for frame in read_frames(clip):
        yield frame.name, turned(frame.image, frame.orientation)
