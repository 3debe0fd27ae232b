"""Frames of a video in the colours of sRGB, which clouds, scenes and pages are in: of films of high dynamic range, too,
as phones record them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from av import VideoFrame
    from av.video.reformatter import VideoReformatter

HLG, PQ = 18, 16  # transfer characteristics of ITU-T H.273: hybrid log-gamma; SMPTE ST 2084

_own = threading.local()


def rgb_of(frame: VideoFrame, width: int | None = None) -> np.ndarray:
    """A frame as a picture [height, width, 3] uint8; FFmpegError, ValueError where it cannot be one.

    Usual films are taken as they are. HLG and PQ hold brighter lights and purer colours than sRGB can show: unchanged
    they look pale and grey. They are mapped so that white paper is white.
    """
    if frame.color_trc not in (HLG, PQ):
        return frame.to_ndarray(format="rgb24", width=width)
    from av.error import FFmpegError
    from av.video.reformatter import ColorPrimaries, ColorTrc

    srgb = {"dst_color_trc": ColorTrc.IEC61966_2_1, "dst_color_primaries": ColorPrimaries.BT709}
    try:
        return _reformatter().reformat(frame, width=width, format="rgb24", **srgb).to_ndarray()
    except (FFmpegError, ValueError):  # tags that contradict each other
        return frame.to_ndarray(format="rgb24", width=width)


def _reformatter() -> VideoReformatter:
    """One for each thread: its table of colours takes seconds to make, and then serves all frames of that size."""
    from av.video.reformatter import VideoReformatter

    if not hasattr(_own, "reformatter"):
        _own.reformatter = VideoReformatter()
    return _own.reformatter
