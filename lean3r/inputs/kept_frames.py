"""Frames of a video on disk, so that it is decoded once."""

from __future__ import annotations

import logging
import shutil
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from lean3r.inputs.bars import Bars
from lean3r.inputs.video import Frame

logger = logging.getLogger("lean3r")

PNG_LEVEL = 1  # frames are many: a tenth larger, five times as fast
DECODERS, LOOKAHEAD = 2, 4
NOT_KEPT = "frames are not kept, and will be decoded again: %s"


class KeptFrame(NamedTuple):
    """A frame as it is stored in its video, as a PNG file, the EXIF orientation that turns it, and the bars that were
    cut off."""

    path: Path
    orientation: int
    bars: Bars

    def read(self, name: str) -> Frame:
        """The frame again."""
        with Image.open(self.path) as image:
            return Frame(name, image.copy(), self.orientation, self.bars)


class FrameKeeper:
    """Frames as PNG files in a folder, written while others are decoded; none at all if the disk is full."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._pool = folder, ThreadPoolExecutor(DECODERS)
        self._kept: dict[str, KeptFrame] = {}
        self._waiting: deque[Future] = deque()
        self._failed = False

    def keep(self, frame: Frame) -> None:
        """Begin to write one frame; a few are held at a time."""
        if not self._failed:
            path = self._folder / f"{len(self._kept):06d}.png"
            self._kept[frame.name] = KeptFrame(path, frame.orientation, frame.bars)
            self._waiting.append(self._pool.submit(frame.image.save, path, "PNG", compress_level=PNG_LEVEL))
            while len(self._waiting) > LOOKAHEAD:
                self._wait()

    def done(self) -> dict[str, KeptFrame]:
        """The files by the names of the frames, when all are written."""
        while self._waiting:
            self._wait()
        self._pool.shutdown()
        return {} if self._failed else self._kept

    def _wait(self) -> None:
        try:
            self._waiting.popleft().result()
        except OSError as error:
            logger.debug(NOT_KEPT, error)
            self._failed = True
            shutil.rmtree(self._folder, ignore_errors=True)
