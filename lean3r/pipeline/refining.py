"""Refinement as the last step of a reconstruction: when it is tried, what it is told, and what stays without it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lean3r.errors import LeanError, UsageError
from lean3r.inputs.masks import Masks
from lean3r.models.base import Backbone
from lean3r.pipeline.known import Given
from lean3r.pipeline.observer import Observer
from lean3r.refine import KnownPoses, LensName, Refine, RefineOptions, ShareLens, refine
from lean3r.types import Reconstruction, Source, with_warning

if TYPE_CHECKING:
    from lean3r.refine import Originals

logger = logging.getLogger("lean3r")
EMBEDDED = "nano"  # models whose name starts so are refined by default
INTERRUPTED = "interrupted"
NOT_REFINED = "not refined: {}; the cameras stay as they were, and nothing confirmed them"


@dataclass(frozen=True)
class Refining:
    """What the user chose: `when` is on, off, or auto (the embedded model, on picture files); the rest as in
    lean3r.refine.RefineOptions."""

    when: Refine = "auto"
    seconds: float | None = None
    lens: LensName = "auto"
    share_lens: ShareLens = "auto"
    known_poses: KnownPoses = "fixed"

    def __post_init__(self) -> None:
        if self.when not in ("auto", "on", "off"):
            raise UsageError(f"refine is '{self.when}'; expected auto, on or off.")
        self.options()

    def options(self) -> RefineOptions:
        """The options without what is known of cameras; UsageError where they make no sense."""
        return RefineOptions(self.seconds, self.lens, self.share_lens, known_poses=self.known_poses)

    def applies(self, model: Backbone, has_files: bool) -> bool:
        """Whether a result of a model is refined, made from files or from ready views."""
        return self.when == "on" or (self.when == "auto" and has_files and model.name.startswith(EMBEDDED))

    def as_dict(self) -> dict[str, object]:
        """For config.toml."""
        return {"when": self.when, "seconds": self.seconds, "lens": self.lens, "share_lens": self.share_lens}


def refined(
    scene: Reconstruction,
    originals: Originals | None,
    choice: Refining,
    given: Given | None,
    masks: Masks | None,
    observer: Observer,
) -> Reconstruction:
    """The scene refined, or as it was, with a warning that says why.

    Ctrl-C ends the refinement alone: the network's result stays.
    """
    options = replace(choice.options(), masks=masks)
    if given is not None:
        options = replace(options, **_as_arrays(given, scene.sources))
    try:
        with observer.stage("refinement"):
            found = refine(scene, originals, options)
    except KeyboardInterrupt:
        found = _kept(scene, INTERRUPTED)
    except (LeanError, OSError) as error:
        found = _kept(scene, str(error))
    told = found.info["refinement"]
    if told["status"] == "kept" and len(scene.sources) > 1:
        found = with_warning(found, "not-refined", NOT_REFINED.format(told["reason"]))
    for note in told.get("notes", ()):
        logger.warning("%s", note)
    return found


def _kept(scene: Reconstruction, reason: str) -> Reconstruction:
    return replace(scene, info={**scene.info, "refinement": {"status": "kept", "reason": reason, "registered": 0}})


def _as_arrays(given: Given, sources: tuple[Source, ...]) -> dict[str, Any]:
    """What is known as RefineOptions takes it: NaN where a view has none, intrinsics in pixels of the originals."""
    matrices = np.stack([s.original_intrinsics(k.numpy()) for s, k in zip(sources, given.intrinsics, strict=True)])
    known = {
        "intrinsics": np.where(given.has_intrinsics[:, None, None], matrices, np.nan),
        "cam_from_world": torch.where(given.has_pose[:, None, None], given.cam_from_world, torch.nan).numpy(),
    }
    return {name: part for name, part in known.items() if np.isfinite(part).any()} | {"lenses": given.lenses}
