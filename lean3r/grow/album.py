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
from lean3r.grow.memory import print_of
from lean3r.grow.result import Result
from lean3r.inputs.decoding import exif, open_image
from lean3r.inputs.listing import Still, find_pictures
from lean3r.inputs.notes import save
from lean3r.inputs.pictures import frame_files
from lean3r.inputs.upright import decode_whole, turned
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
    """The pictures of a result by the names of their views. `stored` says where they are now, if they moved; `prints`
    are those that are remembered of them (see memory.print_of), by views.

    Frames of videos, and pictures that are needed in another size, are written to `scratch`.
    """

    def __init__(self, result: Result, stored: Sequence[str | Path], scratch: Path) -> None:
        self._result, self._stored, self._scratch = result, [str(path) for path in stored], scratch
        self.prints: Mapping[str, str] = {}

    def stills(self, names: Sequence[str]) -> list[Still]:
        """The pictures of these views, in this order: of several places that have one of its name, the first that has
        the picture which is remembered. InputError if one is not found."""
        found: dict[str, Still] = {}
        others: dict[str, Still] = {}  # have the name only: compressed again, perhaps
        problem: InputError | None = None
        for batch in self._batches() if names else ():
            wanted = {name: batch.names[name] for name in names if name in batch.names and name not in found}
            try:
                for name, still in self._read(batch, wanted).items() if wanted else ():
                    known = self.prints.get(name)
                    (found if not known or known == print_of(still) else others).setdefault(name, still)
            except InputError as error:
                if batch.inputs == self._stored:
                    raise
                problem = problem or error
            if len(found) == len(names):
                break
        found = {**others, **found}
        if missing := [name for name in names if name not in found]:
            count = f"{len(missing)} of {len(names)}"
            where = f"{self._result.folder} does not record where its pictures are"
            if self._stored or self._inputs is not None:
                where = f"{count} pictures of {self._result.folder} are not found ({missing[0]})"
            raise problem or InputError(f"{where}; {WHERE}.")
        return [replace(found[name], name=name) for name in names]

    def in_size(self, still: Still, size: tuple[int, int]) -> Still:
        """A picture in this size (width, height): copies of a scene's pictures may have another one."""
        with still.open() as file, open_image(file) as image:
            orientation, _ = exif(image, still.name)
            is_in_size = (image.size[::-1] if orientation >= 5 else image.size) == size
        if is_in_size:
            return still
        with still.open() as file:
            image = decode_whole(file, still.name, max(size))
        path = self._scratch / f"{sum(1 for _ in self._scratch.iterdir()):06d}.png"
        save(image.resize(size, Image.Resampling.LANCZOS), path, "PNG", image.info)
        return Still(still.name, partial(path.open, "rb"), is_loose=False)

    @property
    def _inputs(self) -> list[str] | None:
        """Where the result says that its first pictures were."""
        inputs = self._result.config.get("inputs")
        return inputs if isinstance(inputs, list) and all(isinstance(path, str) for path in inputs) else None

    def _batches(self) -> Iterator[Batch]:
        """Where to look, in this order: what the user says, images/ of the result, and what the result records; that
        before images/ if there are masks, which are of the pictures as they came, before they were turned. Pictures
        that were added may have moved under other names than those of their views."""
        views, later = self._result.scene.names, additions(self._result.manifest)
        own = {name: name for name in views}
        added = [
            Batch([str(path) for path in each["inputs"]], {str(k): str(v) for k, v in each["views"].items()})
            for each in later
        ]
        were_added = {name for batch in added for name in batch.names}
        first = {name: name for name in views if name not in were_added}
        recorded = [*([] if self._inputs is None else [Batch(self._inputs, first)]), *added]
        has_copies = any(name.startswith(f"{IMAGES}/") for name in self._result.manifest["files"])
        copies = [Batch([], own)] if has_copies else []  # without those of uncertain views
        are_masked = self._result.config.get("masks") or any(each.get("masks") for each in later)
        if self._stored:
            yield Batch(self._stored, own)
        yield from (*recorded, *copies) if are_masked else (*copies, *recorded)
        if self._stored:
            yield from (Batch(self._stored, batch.names) for batch in added)

    def _read(self, batch: Batch, wanted: Mapping[str, str]) -> dict[str, Still]:
        """The pictures of views that a batch has; `wanted` are their names there."""
        if not batch.inputs:
            files = dict(zip(self._result.scene.names, unique_names(self._result.scene.names), strict=True))
            paths = {name: self._result.folder / IMAGES / files[name] for name in wanted}
            return {name: Still(name, partial(path.open, "rb")) for name, path in paths.items() if path.is_file()}
        try:
            listing = find_pictures(batch.inputs)
        except InputError as error:
            raise InputError(f"the pictures of {self._result.folder} are not found: {error}; {WHERE}.") from error
        stills: dict[str, Still] = {}
        for item in listing.called(list(wanted.values())):
            some = frame_files(_frames(item), self._scratch) if isinstance(item, Clip) else [item]
            stills |= {still.name: still for still in some}
        found = {name: stills[there] for name, there in wanted.items() if there in stills}
        # Where another folder has got one of the same name since, both are listed with their folders.
        for name, there in wanted.items():
            if name in found:
                continue
            longer = [i for i in listing.items if isinstance(i, Still) and i.name.endswith(f"/{there}")]
            if longer:
                known = [still for still in longer if print_of(still) == self.prints.get(name)]
                found[name] = (known or longer)[0]
        return found


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
