"""Stereo as a step of a reconstruction: whether it runs, and what happens if it is interrupted."""

from __future__ import annotations

from dataclasses import replace

from lean3r.pipeline.observer import Observer
from lean3r.stereo.options import AUTO_MEGAPIXELS, StereoOptions
from lean3r.types import Reconstruction

CONFIRMED = ("refined", "fallback", "given")


def measures(options: StereoOptions, scene: Reconstruction) -> bool:
    """Whether a scene's depth is measured: if asked for, or if at least two cameras are better than predicted and it
    does not take long."""
    good = sum(label in CONFIRMED for label in scene.registration) > 1 and scene.depth.size <= 1e6 * AUTO_MEGAPIXELS
    return len(scene.sources) > 1 and (options.dense == "stereo" or (options.dense == "auto" and good))


def densify_scene(scene: Reconstruction, observer: Observer) -> Reconstruction:
    """Measure the depth of a scene; Ctrl-C keeps the depth as it was."""
    from lean3r.stereo.dense import densify

    done = 0

    def advanced() -> None:
        nonlocal done
        done += 1
        progress(done, len(scene.sources))

    with observer.stage("stereo") as progress:
        try:
            return densify(scene, advanced=advanced)
        except KeyboardInterrupt:
            report = {"status": "kept", "reason": "interrupted"}
            return replace(scene, info={**scene.info, "stereo": report})
