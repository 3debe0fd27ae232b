"""Logs of the service: one line of JSON each; and error texts without the paths of the machine."""

from __future__ import annotations

import json
import logging
import re
import sqlite3
import sys
import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lean3r.errors import LeanError, OutOfMemoryError
from lean3r.scratch import DISK_FULL

logger = logging.getLogger("lean3r.serve")
_PATH = re.compile(r"(?<![\w.:/)\]}!&#%+@~$^-])(?:~|[A-Za-z]:)?/(?:[^\s/'\"<>|:;,()\[\]]+/)*([^\s/'\"<>|:;,()\[\]]+)")
_LONGEST = 1000


def log(event: str, level: int = logging.INFO, **about: Any) -> None:
    """Log what happened; `about` becomes keys of the line, such as job."""
    logger.log(level, event, extra={"about": about})


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "about", {}),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def start_logs(level: int) -> None:
    """From now on, lines of at least this level go to standard error, those of libraries from warnings on; what the
    parser of uploads says of damaged ones stands in the answer."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    libraries = max(level, logging.WARNING)
    least_of = {"lean3r.serve": level, "uvicorn.error": libraries, "asyncio": libraries}
    for name, least in (least_of | {"python_multipart": logging.ERROR}).items():
        one = logging.getLogger(name)
        one.handlers[:] = [handler]
        one.setLevel(least)
        one.propagate = False


class Scrubber:
    """Takes the paths of this machine out of a text: those of some folders become names within them, all others their
    last part."""

    def __init__(self, folders: Iterable[Path]) -> None:
        own = [*folders, Path(__file__).parents[1], Path(tempfile.gettempdir()), Path.home(), Path(sys.prefix)]
        texts = {str(path) for folder in own for path in (folder, folder.resolve()) if len(path.parts) > 1}
        self._folders = sorted(texts, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """The text without them, in at most 1000 characters."""
        for folder in self._folders:
            text = text.replace(folder + "/", "").replace(folder, "(folder)")
        text = _PATH.sub(lambda found: found[1], text)
        return text if len(text) <= _LONGEST else text[:_LONGEST] + " ..."


def explain(error: BaseException) -> str:
    """Why a job failed, as its owner is told; of errors that nobody expected only the kind."""
    if isinstance(error, LeanError):
        return str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return str(OutOfMemoryError("out of memory; use fewer or smaller pictures: max_views, resolution."))
    if is_disk_full(error):
        return "the disk of the service is full; try again later."
    return f"an unexpected error ({type(error).__name__}); the log of the service has more"


def is_disk_full(error: BaseException) -> bool:
    """Whether the system, or SQLite, had no room to write."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return isinstance(error, OSError) and error.errno in DISK_FULL
