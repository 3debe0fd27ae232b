"""Memory first: how many keyframes, of which size, are reconstructed at once.

peak = process before + network on a window + window and carried frames + cloud and its thinning
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lean3r.errors import OutOfMemoryError
from lean3r.inputs.views import network_size
from lean3r.models.base import Backbone
from lean3r.pipeline.budget import CHUNKS, SHARES
from lean3r.pipeline.memory import Predictor, Setting, in_units, parse_memory, used_bytes
from lean3r.stream.engine import Settings
from lean3r.stream.options import StreamOptions
from lean3r.stream.pictures import LONGEST

WINDOWS = (96, 64, 48, 32, 24, 16, 12, 8, 6, 4, 3, 2)
USUAL = 32
CLOUD_BYTES = 31 * 4  # of a point, while points are thinned
NETWORK_FRAME_BYTES = 11 + 24  # of a pixel of a keyframe's results, and while they are made


def fit_stream(
    model: Backbone, settings: Settings, options: StreamOptions, shape: Sequence[int], memory: str | int
) -> tuple[Settings, str]:
    """The settings with the largest window up to the usual one that fits into the memory, with smaller pictures if none
    does, and the formula in numbers; frames are of `shape` (H, W, 3).

    The refinement of a window runs in a process of its own, which is not counted. OutOfMemoryError says how much the
    smallest window takes.
    """
    budget = parse_memory(memory)
    device = next(model.parameters()).device
    predictor = Predictor(model, device, lambda: used_bytes(device))
    height, width = shape[:2]
    factor = max(1, max(height, width) // LONGEST)
    frame_bytes = 3 * -(-height // factor) * -(-width // factor)
    side = settings.resolution or model.resolution
    sides = [side] if side != model.resolution else [side, *(round(share * side) for share in reversed(SHARES))]
    sides = [each for each in sides if each >= 6 * model.patch] or [side]
    windows = [options.window] if options.window else [n for n in WINDOWS if n <= USUAL]
    cloud = CLOUD_BYTES * settings.points.max_points if device.type == "cpu" else 0
    least = None
    for each in sides:
        columns, rows = network_size(width, height, each, model.patch)
        for window in windows:
            setting = Setting(window, rows, columns, CHUNKS[-1], model.origin.dtype)
            network = predictor.peak(setting)
            kept = 0 if device.type == "cuda" else (2 * window + 9) * frame_bytes
            kept += 0 if device.type == "cuda" else NETWORK_FRAME_BYTES * rows * columns * window
            total = network + kept + cloud
            text = (
                f"{window} keyframes of {columns}x{rows}: process and network {in_units(network)} + frames "
                f"{in_units(kept)} + cloud {in_units(cloud)} = {in_units(total)} of {in_units(budget)}"
            )
            if total <= budget:
                overlap = options.overlap or max(1, round(window * 10 / USUAL))
                return replace(settings, window=window, overlap=min(overlap, window - 1), resolution=each), text
            least = total if least is None else min(least, total)
    raise OutOfMemoryError(
        f"{in_units(budget)} of memory cannot hold this stream, whose smallest window takes {in_units(least or 0)}. "
        f"Give --memory {(least or 0) // 10**6 + 1}MB or more, a smaller --resolution or fewer --max-points."
    )
