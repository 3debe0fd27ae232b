"""When the frames of a source are taken: some before their turn, or all as they come."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from lean3r.stream.engine import Frame

QUEUE = 64  # frames of a live source that may wait


class Early:
    """Frames of files, some of which are read before their turn; an error waits for its turn."""

    def __init__(self, frames: Iterable[Frame]) -> None:
        self._frames, self._error = iter(frames), None

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        if self._error is not None:
            raise self._error
        return next(self._frames)

    def give(self, take: Callable[[Frame], None]) -> bool:
        """Give the next frame to `take`, before its turn; whether there was one."""
        try:
            take(next(self._frames))
        except Exception as error:
            self._error = error  # StopIteration among them
        return self._error is None


class Live:
    """Frames of a source that does not wait: read in a thread, at most QUEUE wait. When more come, every second of
    them is dropped (`dropped` counts them): what is left still covers the whole way, and the delay stays bounded."""

    def __init__(self, source: Iterable[Frame], most: int = QUEUE) -> None:
        self.source, self.dropped = source, 0
        self._waiting: deque[tuple[float, Frame]] = deque()
        self.most, self._more = most, threading.Condition()
        self._is_done, self._failure = False, None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            for frame in self.source:
                with self._more:
                    if self._is_done:
                        return
                    self._waiting.append((time.perf_counter(), frame))
                    if len(self._waiting) > self.most:
                        self._thin()
                    self._more.notify()
        except Exception as error:
            self._failure = error
        finally:
            with self._more:
                self._is_done = True
                self._more.notify()

    def _thin(self) -> None:
        """Drop every second of the frames that wait, but the last; a cut is then before the next one that is left."""
        kept, is_cut = deque(), False
        for left, (moment, frame) in zip(reversed(range(len(self._waiting))), self._waiting, strict=True):
            is_cut = is_cut or frame.is_cut
            if left % 2 == 0:
                kept.append((moment, frame._replace(is_cut=is_cut)))
                is_cut = False
        self.dropped += len(self._waiting) - len(kept)
        self._waiting = kept

    def __iter__(self) -> Iterator[tuple[float, Frame]]:
        """Frames, with the moment at which each arrived."""
        while True:
            with self._more:
                while not self._waiting and not self._is_done:
                    self._more.wait(0.2)
                if not self._waiting:
                    break
                item = self._waiting.popleft()
            yield item
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Take no more frames."""
        with self._more:
            self._is_done = True
