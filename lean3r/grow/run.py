"""Add new pictures to a result folder: recall stored views, reconstruct these and the new ones, merge, write."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lean3r.errors import InputError, UsageError
from lean3r.export import ExportOptions, atomic_folder, check_cameras, write_all
from lean3r.export.names import unique_names
from lean3r.geometry.fusion import with_cloud
from lean3r.grow import memory as remember
from lean3r.grow.album import IMAGES, Album, additions
from lean3r.grow.masking import masks_of
from lean3r.grow.merge import merge
from lean3r.grow.place import place
from lean3r.grow.recall import Recall, recall
from lean3r.grow.result import Result, read_about, read_result
from lean3r.grow.same import are_alike, check_by_cloud, refuse
from lean3r.inputs.frames import FrameChoice
from lean3r.inputs.listing import LEFT_OUT, Still, claim_name
from lean3r.inputs.masks import Masks, check_folder
from lean3r.inputs.pictures import Pictures
from lean3r.models.base import Backbone
from lean3r.pipeline.observer import Observer
from lean3r.processes import peak_memory_mb
from lean3r.refine import Refine, RefineOptions
from lean3r.scratch import temporary_folder
from lean3r.types import Reconstruction, with_warning

if TYPE_CHECKING:
    from lean3r.inputs.pictures import PictureInput

logger = logging.getLogger("lean3r")

REPEATED = "it is already in the scene, as {}"
UNCERTAIN = (
    "{} of {} added pictures are uncertain: nothing in the scene confirms their cameras. They are left out of the "
    "cloud, COLMAP and other scenes; cameras.json marks them"
)


class _NothingNew(Exception):
    """All pictures are in the scene already: its folder stays as it is."""


def add(
    model: Backbone,
    scene: str | Path,
    pictures: PictureInput | Pictures | None = None,
    out: str | Path | None = None,
    *,
    frames: FrameChoice | None = None,
    stored: str | Path | Sequence[str | Path] = (),
    masks: str | Path | None = None,
    resolution: int | None = None,
    seed: int = 0,
    refine: Refine | RefineOptions | None = None,
    overwrite: bool = False,
    command: str | None = None,
    observer: Observer | None = None,
) -> Reconstruction:
    """Add pictures to a result folder, whose cameras, depth and triangulated points stay bit for bit as they are.

    `scene` is a folder that `lean3r reconstruct` or `lean3r.export` wrote; the larger result replaces it, or is written
    to `out` (`overwrite`: in place of an older result there). `pictures` and `frames` are those of `reconstruct`.
    `stored` says where the scene's own pictures are now, if they moved. `masks` (of the new pictures, by their names
    where they come from), `resolution`, `seed` and `refine` are those of `reconstruct`; None: those of the scene.
    Formats, depth and points are made as in the scene.

    New pictures are compared with the few stored views that share the most with them (grow/recall.py). Pictures that
    are in the scene already are skipped. Those that match nothing are marked "uncertain" in `registration`, with a
    warning. Returns the larger scene; `info["added"]` says what was done. InputError if `scene` is no such result, or
    its pictures are not found; UsageError if `out` cannot be written.
    """
    if not isinstance(model, Backbone) or not model.SEES:
        raise UsageError("adding pictures needs a network, such as lean3r.load('nano').")
    if not isinstance(scene, str | Path):
        raise UsageError(
            f"the scene is a {type(scene).__name__}; expected the folder of a result, such as 'out/', into which "
            "lean3r.export writes a Reconstruction."
        )
    if pictures is None:
        raise TypeError(f"add() needs pictures: add(model, {str(scene)!r}, pictures)")
    observer = observer or Observer()
    folder, in_place = Path(scene).expanduser(), out is None
    target = folder if out is None else out
    stored = [stored] if isinstance(stored, str | Path) else list(stored)
    read_about(folder)  # before any work, and before a lock is made beside what is no result
    new = pictures if isinstance(pictures, Pictures) else Pictures(pictures, frames)
    if frames is not None and new is pictures:
        raise UsageError("frames cannot be chosen for Pictures, which are final; leave out frames.")
    if masks is not None:
        check_folder(Path(masks))
    inputs = [*new.inputs, *([] if in_place else [folder])]
    found: Reconstruction | None = None
    with temporary_folder("add") as scratch:
        try:
            with atomic_folder(target, overwrite=in_place or overwrite, inputs=inputs) as directory:
                with observer.stage("scene"):
                    result = read_result(folder)
                adding = _Adding(model, result, Album(result, stored, scratch), observer)
                refining = _refine_options(result) if refine is None else RefineOptions.of(refine)
                found = adding.run(new, scratch, masks, resolution, seed, refining, command)
                if in_place and not adding.names:
                    raise _NothingNew
                with observer.stage("writing"):
                    adding.write(found, directory)
        except _NothingNew:
            pass
    assert found is not None
    return found


def _refine_options(result: Result) -> RefineOptions:
    """Those of the scene; whether its own cameras were refined does not matter, only whether they are good."""
    config = result.config.get("refine", {})
    return RefineOptions(**{name: config[name] for name in ("lens", "share_lens") if name in config})


class _Adding:
    """Additions to one result by one model."""

    def __init__(self, model: Backbone, result: Result, album: Album, observer: Observer) -> None:
        self.model, self.result, self.album, self.observer = model, result, album, observer
        self.names: dict[str, str] = {}  # of the new views, those in their input
        self.stills: list[Still] = []
        self.memory: remember.Memory | None = None

    def run(
        self,
        pictures: Pictures,
        scratch: Path,
        masks: str | Path | None,
        resolution: int | None,
        seed: int,
        refining: RefineOptions,
        command: str | None,
    ) -> Reconstruction:
        """The larger scene; the scene as it was if no picture is new."""
        scene = self.result.scene
        usable = scene.is_certain
        if usable.sum() < 2 or not (np.array(scene.registration) != "uncertain").any():
            raise InputError(
                f"{self.result.folder} has fewer than two certain cameras to hold; reconstruct all pictures together."
            )
        with self.observer.stage("memory"):
            known = self._remember()
        scene = replace(scene, images=known.images)
        self.stills, skipped = self._claim(pictures, scratch, known)
        if not self.stills:
            self.observer.read([], skipped)
            return with_cloud(replace(scene, skipped=once(scene.skipped, skipped)))
        resolution = resolution or self._resolution()
        new_pictures = Pictures.of_stills(self.stills, pictures.inputs)
        views = new_pictures.views(resolution=resolution or self.model.resolution, patch=self.model.patch)
        skipped = (*skipped, *new_pictures.skipped)
        self.stills = [still for still in self.stills if still.name in {source.name for source in views.sources}]
        self.names = {still.name: self.names[still.name] for still in self.stills}
        self.observer.read(list(self.names), skipped)
        given = pictures.masks if masks is None else Masks.find(Path(masks), pictures.names)
        with self.observer.stage("recall"):
            chosen = self._recall(known, views, usable)
        subset = [*self._stored(known, chosen.views), *self.stills]
        part = place(
            self.model,
            scene,
            chosen,
            Pictures.of_stills(subset, pictures.inputs),
            is_held=self.result.are_confirmed and refining.when != "off",
            refining=refining,
            config=self.result.config,
            masks=masks_of(self.result, given, self.names),
            resolution=resolution,
            seed=seed,
            observer=self.observer,
        )
        with self.observer.stage("points"):
            return self._merged(scene, part, chosen, skipped, pictures, given, command)

    def _remember(self) -> remember.Memory:
        scene, folder = self.result.scene, self.result.folder
        known = remember.read_memory(folder, scene.names, scene.depth.shape)
        if known is None:
            stills = self.album.stills(scene.names)
            known = remember.make_memory(scene.sources, scene.mask, stills)
            check_by_cloud(scene, folder, known.images)
        self.memory = known
        self.album.prints = dict(zip(known.names, known.prints, strict=True))
        return known

    def _stored(self, known: remember.Memory, views: Sequence[int]) -> list[Still]:
        """The pictures of these stored views, in the size that the scene has them; InputError if they are not those
        that it remembers."""
        scene = self.result.scene
        stills = self.album.stills([scene.names[view] for view in views])
        pairs = [(view, s) for view, s in zip(views, stills, strict=True) if remember.print_of(s) != known.prints[view]]
        if pairs:  # compressed again, perhaps
            changed, stills_now = [view for view, _ in pairs], [still for _, still in pairs]
            masks = scene.mask[changed]
            images = remember.look_at([scene.sources[view] for view in changed], masks, stills_now)
            looks = zip(changed, masks, images, strict=True)
            refuse([scene.names[v] for v, mask, now in looks if not are_alike(now[mask], known.images[v][mask])])
        sources = [scene.sources[view] for view in views]
        return [self.album.in_size(s, (of.width, of.height)) for s, of in zip(stills, sources, strict=True)]

    def _claim(
        self, pictures: Pictures, scratch: Path, known: remember.Memory
    ) -> tuple[list[Still], tuple[tuple[str, str], ...]]:
        """New pictures under names that no view has, and what is left out."""
        prints = {print: name for name, print in zip(known.names, known.prints, strict=True) if print}
        used, stills, skipped = set(known.names), [], list(pictures.skipped)
        for still in pictures.stills(scratch):
            print = remember.print_of(still)
            if print in prints:
                skipped.append((still.name, REPEATED.format(prints[print])))
                continue
            name = claim_name(still.name, used)
            self.names[name] = still.name
            stills.append(replace(still, name=name))
            if print:
                prints[print] = name
        return stills, tuple(skipped)

    def _resolution(self) -> int | None:
        """That of the scene, if it was made by the same model."""
        size = self.result.config.get("resolution")
        return size if isinstance(size, int) and self.result.config.get("model") == self.model.name else None

    def _recall(self, known: remember.Memory, views: Any, usable: np.ndarray) -> Recall:
        from lean3r.pipeline.network_scene import pictures_of

        images, mask = pictures_of(views)
        vectors = remember.vectors_of(remember.descriptors_of(images, mask), known.words)
        return recall(known, self.result.scene.mask, usable, images, mask, vectors)

    def _merged(
        self,
        scene: Reconstruction,
        part: Reconstruction,
        chosen: Recall,
        skipped: Sequence[tuple[str, str]],
        pictures: Pictures,
        masks: Masks | None,
        command: str | None,
    ) -> Reconstruction:
        times_s = dict(zip(pictures.names, pictures.timestamps_s, strict=True))
        sources = tuple(replace(s, timestamp_s=times_s.get(self.names.get(s.name, ""))) for s in part.sources)
        merged = merge(scene, replace(part, sources=sources), chosen.views)
        merged = replace(merged, skipped=once(scene.skipped, skipped, set(self.names.values())))
        first = len(scene.sources)
        doubted = [view for view in range(first, len(merged.sources)) if merged.registration[view] == "uncertain"]
        if doubted:
            merged = with_warning(merged, "uncertain-views", UNCERTAIN.format(len(doubted), len(self.names)), doubted)
        for text in pictures.cautions:
            merged = with_warning(merged, "bars", text)
        of_new = [warning for warning in part.info.get("warnings", ()) if set(warning["views"]) & set(self.names)]
        of_new = [w | {"views": [v for v in w["views"] if v in self.names]} for w in of_new]
        said = {key: part.info[key] for key in ("model", "weights_hash", "join", "stereo") if key in part.info}
        if "refinement" in part.info:
            said["refinement"] = {k: v for k, v in part.info["refinement"].items() if k != "views"}
        record = {
            "inputs": list(pictures.places),
            "views": dict(self.names),
            "recalled": [scene.names[view] for view in chosen.views],
            "certain": len(self.names) - len(doubted),
            **said,
            **({} if masks is None else {"masks": masks.place}),
            **({} if command is None else {"command": command}),
            "seconds": {stage: round(value, 3) for stage, value in self.observer.seconds.items()},
        }
        info = dict(merged.info)
        info["warnings"] = [*info.get("warnings", ()), *(w for w in of_new if w["code"] != "uncertain-views")]
        info |= {"added": [*additions(self.result.manifest), record], "peak_memory_mb": peak_memory_mb()}
        self._remember_new(merged)
        return with_cloud(replace(merged, info=info))

    def _remember_new(self, merged: Reconstruction) -> None:
        known = self.memory
        assert known is not None
        new = slice(len(known.names), None)
        vectors = remember.vectors_of(remember.descriptors_of(merged.images[new], merged.mask[new]), known.words)
        self.memory = remember.Memory(
            merged.names,
            merged.images,
            (*known.prints, *(remember.print_of(still) for still in self.stills)),
            known.words,
            np.concatenate([known.vectors, vectors]),
        )

    def write(self, scene: Reconstruction, directory: Path) -> None:
        """All files of the result, in the formats that it had, with the pictures in images/ if it had them."""
        assert self.memory is not None
        files = [self.memory.write(directory), *self._pictures(scene, directory)]
        options = _export_options(self.result.config)
        try:
            check_cameras(self.result.formats, options, scene.sources, scene.lenses)
        except UsageError:
            logger.warning("the added pictures have other cameras: --shared-camera does not hold for the larger scene")
            options = replace(options, shared_camera=False)
        if options.texture:
            stored = self.album.stills(self.result.scene.names)
            options = replace(options, texture_from=Pictures.of_stills([*stored, *self.stills], ()))
        write_all(scene, directory, self.result.formats, options, files)

    def _pictures(self, scene: Reconstruction, directory: Path) -> list[Path]:
        """images/ with those of the result and the new ones."""
        source = self.result.folder / IMAGES
        listed = [name for name in self.result.manifest["files"] if name.startswith(f"{IMAGES}/")]
        if not listed or not source.is_dir():
            return []
        files = []
        for name in listed:
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.result.folder / name, path)
            files.append(path)
        names = dict(zip(scene.names, unique_names(scene.names), strict=True))
        stills = [replace(still, name=names[still.name]) for still in self.stills]
        if stills:
            pictures = Pictures.of_stills(stills, ())
            files += pictures.write([still.name for still in stills], directory / IMAGES)
        return files


def once(
    before: Sequence[tuple[str, str]], now: Sequence[tuple[str, str]], added: Collection[str] = ()
) -> tuple[tuple[str, str], ...]:
    """What was left out before and now, each once: a folder may be added again whenever it has more pictures. Those
    that are `added` are left out no longer."""
    still = [(name, why) for name, why in before if name not in added or not why.startswith(LEFT_OUT)]
    return tuple(dict.fromkeys((*still, *now)))


def _export_options(config: Mapping[str, Any]) -> ExportOptions:
    """Those of the scene, as far as they can be kept."""
    names = ("shared_camera", "colmap_points", "crs", "ground_cell", "html_points", "texture")
    return ExportOptions(**{name: config[name] for name in names if name in config})
