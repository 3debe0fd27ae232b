"""Stereo as a step of a reconstruction: whether it runs, and what happens if it is interrupted."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import torch

from lean3r.errors import UsageError
from lean3r.geometry.fusion import without_depth
from lean3r.models.no_network import NEEDS
from lean3r.parallel import MAX_THREADS
from lean3r.pipeline.budget import Budget
from lean3r.pipeline.memory import in_units, used_bytes
from lean3r.pipeline.observer import Observer
from lean3r.stereo.options import StereoOptions
from lean3r.types import Reconstruction, with_warning

CONFIRMED = ("refined", "fallback", "given")
# Resident memory, measured: code and weights that come with stereo; bytes per pixel of all views for their results; and
# in every thread of one view, in the network and what it compares at once.
AT_ALL, RESULTS = 160_000_000, 130
IN_NETWORK, PIECES = 500, 190_000_000


def measures(options: StereoOptions, scene: Reconstruction) -> bool:
    """Whether a scene's depth is measured: if asked for, or if at least two cameras are better than predicted and it
    does not take long."""
    are_good = sum(label in CONFIRMED for label in scene.registration) > 1
    return options.may_measure(scene.depth.size, len(scene.sources)) and (options.dense == "stereo" or are_good)


def bytes_of_stereo(pixels: int, views: int) -> int:
    """Bytes that stereo needs for views of so many pixels, above what is in use."""
    threads = min(torch.get_num_threads(), MAX_THREADS, views)
    return AT_ALL + RESULTS * pixels * views + (IN_NETWORK * pixels + PIECES) * threads


def without_network(options: StereoOptions, are_cameras_given: bool, has_limit: bool) -> StereoOptions:
    """The options of a run without a network; UsageError if that cannot give depth, or takes no limit on memory."""
    if not are_cameras_given:
        raise UsageError(NEEDS.format(""))
    if has_limit:
        raise UsageError("a limit on memory is one on the network, and --model none has none; leave --memory out.")
    if options.dense == "network":
        raise UsageError("--model none has no network to predict depth; measure it with --dense stereo.")
    return options if options.dense == "off" else replace(options, dense="stereo")


def densify_scene(
    scene: Reconstruction,
    observer: Observer,
    device: torch.device,
    has_prior: bool = True,
    budget: Budget | None = None,
    only: np.ndarray | None = None,
) -> Reconstruction:
    """Measure the depth of a scene, its network on a device; Ctrl-C keeps what is measured by then, or the depth as it
    was. Without a prior no other depth is left. Nothing is measured if a budget on the CPU does not suffice for it.
    `only` [S] bool are the views to measure (None: all)."""
    from lean3r.stereo.alone import densify_alone
    from lean3r.stereo.dense import densify
    from lean3r.stereo.measure import LOOKS, measure
    from lean3r.stereo.weights import load_net

    if budget is not None and device.type == "cpu":
        needed = used_bytes(device) + bytes_of_stereo(scene.depth[0].size, len(scene.depth))
        if needed > budget.size:
            reason = f"it needs some {in_units(needed)} of memory, and {in_units(budget.size)} are allowed"
            reason += f"; --memory {(needed // 10**8 + 1) * 100}MB would do"
            scene = with_warning(scene, "stereo-kept", f"depth is not measured by stereo: {reason}")
            return replace(scene, info={**scene.info, "stereo": {"status": "kept", "reason": reason}})
    done = 0

    def advanced() -> None:
        nonlocal done
        done += 1
        progress(done // LOOKS, len(scene.sources))

    with observer.stage("stereo") as progress:
        try:
            by_network = partial(measure, net=load_net(device=device))
            if not has_prior:
                return densify_alone(scene, advanced, by_network)
            return densify(scene, advanced, by_network, only)
        except KeyboardInterrupt:
            report = {"status": "kept", "reason": "interrupted"}
            scene = scene if has_prior else without_depth(scene)
            return replace(scene, info={**scene.info, "stereo": report})
