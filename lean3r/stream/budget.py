"""Memory first: how many keyframes, of which size, are reconstructed at once.

peak = process before + network on a window + window, carried, remembered and waiting frames, and the film's last ones
    + cloud and its thinning
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace

from lean3r.errors import OutOfMemoryError
from lean3r.inputs.motion import REACH
from lean3r.inputs.views import network_size
from lean3r.models.base import Backbone
from lean3r.pipeline.budget import CHUNKS
from lean3r.pipeline.memory import Predictor, Setting, in_units, parse_memory, used_bytes
from lean3r.pipeline.refining import applies
from lean3r.stream.engine import Settings
from lean3r.stream.film import most_bytes
from lean3r.stream.loops import landmark_bytes
from lean3r.stream.options import StreamOptions
from lean3r.stream.pictures import shrinking

WINDOWS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96)
USUAL, OVERLAP = 48, 12  # keyframes of a window, and how many of them it shares with the one before
SIDES = (0.8, 0.6)  # of the usual resolution
CLOUD_BYTES = 35 * 4  # of a point, while points are thinned
NETWORK_FRAME_BYTES = 11 + 24  # of a pixel of a keyframe's results, and while they are made


def fit_stream(
    model: Backbone, settings: Settings, options: StreamOptions, shape: Sequence[int], memory: str | int, queue: int
) -> tuple[Settings, str]:
    """The settings with the largest window up to the usual one that fits into the memory, with smaller pictures if none
    does, and the formula in numbers; frames are of `shape` (H, W, 3), and `queue` of them may wait as they arrived.

    The refinement of a window runs in a process of its own, which is not counted. OutOfMemoryError says how much the
    smallest window takes.
    """
    budget = parse_memory(memory)
    device = next(model.parameters()).device
    predictor = Predictor(model, device, lambda: used_bytes(device))
    height, width = shape[:2]
    factor = shrinking(height, width)
    frame_bytes = 3 * -(-height // factor) * -(-width // factor)
    windows = [options.window] if options.window else sorted(n for n in WINDOWS if n <= settings.window)
    cloud = CLOUD_BYTES * settings.points.max_points if device.type == "cpu" else 0
    film = most_bytes(settings.refine.side, height, width) if applies(settings.refine, model, True) else 0
    least = 0

    def cost(window: int, columns: int, rows: int) -> tuple[int, int]:
        """Bytes of the process with the network, and of frames."""
        network = predictor.peak(Setting(window, rows, columns, CHUNKS[-1], model.origin.dtype))
        kept = (3 * window + REACH + 1) * frame_bytes + NETWORK_FRAME_BYTES * rows * columns * window
        kept += settings.landmarks * landmark_bytes(height, width, rows, columns) + queue * math.prod(shape) + film
        return network, 0 if device.type == "cuda" else kept

    for each in sides_of(model, settings):
        size = network_size(width, height, each, model.patch)
        fits = sum(cost(windows[-1], *size)) + cloud <= budget  # first, as the largest mostly does; each takes seconds
        at = len(windows) if fits else bisect_right(windows, budget, key=lambda n: sum(cost(n, *size)) + cloud)
        if at:
            window = windows[at - 1]
            network, kept = cost(window, *size)
            text = (
                f"{window} keyframes of {size[0]}x{size[1]}: process and network {in_units(network)} + frames "
                f"{in_units(kept)} + cloud {in_units(cloud)} = {in_units(network + kept + cloud)} of {in_units(budget)}"
            )
            overlap = options.overlap or max(1, round(window * OVERLAP / USUAL))
            return replace(settings, window=window, overlap=min(overlap, window - 1), resolution=each), text
        least = sum(cost(windows[0], *size)) + cloud
    raise OutOfMemoryError(
        f"{in_units(budget)} of memory cannot hold this stream, whose smallest window takes {in_units(least)}. "
        f"Give --memory {least // 10**6 + 1}MB or more, a smaller --resolution or fewer --max-points{or_wait(queue)}."
    )


def sides_of(model: Backbone, settings: Settings) -> list[int]:
    """The resolutions to try, the largest first: the usual one may become smaller, one that was asked for stays."""
    if settings.resolution is not None:
        return [settings.resolution]
    sides = [model.resolution, *(round(share * model.resolution) for share in SIDES)]
    return [each for each in sides if each >= 6 * model.patch] or [model.resolution]


def or_wait(queue: int) -> str:
    """The advice for a stream of which so many frames may wait."""
    return ", or --drop off" if queue else ""
