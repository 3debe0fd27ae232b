"""Standard output and error of a command, whoever reads them: a run ends with its work, not with its reader."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


@contextmanager
def steady_streams() -> Iterator[None]:
    """Inside, streams that were closed before the start take what is written, and so does standard error after its
    reader is gone: what it says is lost then, not the run."""
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        sys.stdout = before[0] or nowhere
        sys.stderr = _Steady(before[1] or nowhere)  # type: ignore[assignment]
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


class _Steady:
    """A stream that never fails."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            lose(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            lose(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def has_no_reader(stream: TextIO) -> bool:
    """Whether a stream is a pipe that nobody reads any more."""
    try:
        if not hasattr(select, "poll"):  # Windows: what could not be written still cannot
            stream.flush()
            return False
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except BrokenPipeError:
        return True
    except (OSError, ValueError):
        return False


def lose(stream: TextIO) -> None:
    """Let a stream write into nothing, or Python prints another error when it exits."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
