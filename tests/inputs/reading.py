"""What a set of inputs gives, in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from lean3r.inputs.frames import FrameChoice
from lean3r.inputs.listing import Selection, find_pictures
from lean3r.inputs.pictures import Pictures
from lean3r.types import Views


class Read(NamedTuple):
    """Network input, and the (name, reason) of what was left out."""

    views: Views
    skipped: tuple[tuple[str, str], ...]


def load_views(
    inputs: Any, *, resolution: int, patch: int, progress: Callable[[int, int], None] | None = None, **choice: Any
) -> Read:
    """The views of inputs, with the options of FrameChoice."""
    pictures = Pictures(inputs, FrameChoice(**choice))
    views = pictures.views(resolution=resolution, patch=patch, progress=progress)
    return Read(views, pictures.skipped)


def choose(inputs: list[Path], **choice: Any) -> Selection:
    """The pictures and frames that are chosen, undecoded."""
    frames = FrameChoice(**choice)
    return find_pictures(inputs).choose(frames)


def video(path: Path, frames: Sequence[np.ndarray] | np.ndarray | int, codec: str = "libx264", **options: str) -> Path:
    """Write [N, H, W, 3] uint8 `frames` at 10 a second; of a number, the k-th frame is 48 x 64 pixels of grey 8 k."""
    if isinstance(frames, int):
        frames = np.broadcast_to(8 * np.arange(frames, dtype=np.uint8)[:, None, None, None], (frames, 48, 64, 3))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return path
