"""Refinement as the last step of a reconstruction: when it is tried, and what stays without it."""

from __future__ import annotations

import logging
from dataclasses import replace

from lean3r.errors import LeanError
from lean3r.inputs.masks import Masks
from lean3r.inputs.pictures import Pictures
from lean3r.models.base import Backbone
from lean3r.pipeline.observer import Observer
from lean3r.refine import KnownCameras, RefineOptions, refine
from lean3r.types import Reconstruction, with_warning

logger = logging.getLogger("lean3r")
EMBEDDED = "nano"  # models whose name starts so are refined by default
INTERRUPTED = "interrupted"
NOT_REFINED = "not refined: {}; the cameras are the network's, and nothing confirms them"


def applies(options: RefineOptions, model: Backbone, has_files: bool) -> bool:
    """Whether a result of a model is refined, made from pictures or from ready views."""
    return options.when == "on" or (options.when == "auto" and has_files and model.name.startswith(EMBEDDED))


def refine_scene(
    scene: Reconstruction,
    pictures: Pictures | None,
    options: RefineOptions,
    known: KnownCameras | None,
    masks: Masks | None,
    observer: Observer,
) -> Reconstruction:
    """The scene refined, or as it was, with a warning that says why.

    Ctrl-C ends the refinement alone: the network's result stays.
    """
    try:
        with observer.stage("refinement"):
            result = refine(scene, pictures, options, known=known, masks=masks)
    except KeyboardInterrupt:
        result = _keep(scene, INTERRUPTED)
    except (LeanError, OSError) as error:
        result = _keep(scene, str(error))
    told = result.info["refinement"]
    if told["status"] == "kept" and len(scene.sources) > 1:
        result = with_warning(result, "not-refined", NOT_REFINED.format(told["reason"]))
    for note in told.get("notes", ()):
        logger.warning("%s", note)
    return result


def _keep(scene: Reconstruction, reason: str) -> Reconstruction:
    return replace(scene, info={**scene.info, "refinement": {"status": "kept", "reason": reason, "registered": 0}})
