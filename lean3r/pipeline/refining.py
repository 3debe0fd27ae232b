"""Refinement as a step of a reconstruction: whether it runs, and what happens if it fails."""

from __future__ import annotations

from dataclasses import replace

from lean3r.errors import LeanError, UsageError
from lean3r.inputs.masks import Masks
from lean3r.inputs.pictures import Pictures
from lean3r.models.base import Backbone
from lean3r.pipeline.observer import Observer
from lean3r.refine import KnownCameras, RefineOptions, refine
from lean3r.refine.options import INTERRUPTED
from lean3r.types import Reconstruction, with_warning

EMBEDDED = "nano"  # prefix of the models that are refined by default
NOT_REFINED = "not refined: {}; the cameras are {}, and nothing confirms them"


def applies(options: RefineOptions, model: Backbone, has_files: bool) -> bool:
    """Whether a model's result is refined; `has_files`: it comes from pictures, not from ready views.

    UsageError if "auto" leaves out a refinement of which something is stated.
    """
    by_default = model.name.startswith(EMBEDDED) or not model.SEES
    is_refined = options.when == "on" or (options.when == "auto" and has_files and by_default)
    if options.when == "auto" and not is_refined and options.stated is not None:
        of = model.name if has_files else "ready views"
        raise UsageError(
            f"{options.stated} is of a refinement, which --refine auto leaves out for {of}; use --refine on, or leave "
            "the option out."
        )
    return is_refined


def refine_scene(
    scene: Reconstruction,
    pictures: Pictures | None,
    options: RefineOptions,
    known: KnownCameras | None,
    masks: Masks | None,
    observer: Observer,
    follow_depth: bool = True,
) -> Reconstruction:
    """Refine a scene; if that fails, return it unchanged, with a warning that states the reason.

    Ctrl-C ends only the refinement, and keeps the best that it has found by then, or else the network's result.
    """
    try:
        with observer.stage("refinement"):
            result = refine(
                scene,
                pictures,
                options,
                known=known,
                masks=masks,
                follow_depth=follow_depth,
                tell=observer.advanced,
            )
    except KeyboardInterrupt:
        result = _keep(scene, INTERRUPTED)
    except (LeanError, OSError) as error:
        result = _keep(scene, str(error))
    report = result.info["refinement"]
    if report["status"] == "kept" and len(scene.sources) > 1:
        whose = "the given ones" if scene.are_given else "the network's"
        result = with_warning(result, "not-refined", NOT_REFINED.format(report["reason"], whose))
    return result


def _keep(scene: Reconstruction, reason: str) -> Reconstruction:
    return replace(scene, info={**scene.info, "refinement": {"status": "kept", "reason": reason, "registered": 0}})
