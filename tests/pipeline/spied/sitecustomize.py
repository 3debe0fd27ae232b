"""Found at its start by every Python of a run: notes who lists the folder SPIED_FOLDER and opens the files in it.

One line an event in the file SPIED_LOG: `list` or `open`, what for, and the name. What for is the room that the main
thread works in, whichever thread opens the file. File system events alone are heard, so that any code can be spied on.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

FOLDER, LOG = (os.path.realpath(os.environ[name]) for name in ("SPIED_FOLDER", "SPIED_LOG"))
PURPOSES = {"refine": "refinement", "export": "copies", "panorama.py": "its shape"}  # any other room: the network


def hear(event: str, arguments: tuple[Any, ...]) -> None:
    """Write down an event that concerns the folder."""
    if event not in ("open", "os.listdir", "os.scandir") or not isinstance(arguments[0], str | bytes | os.PathLike):
        return
    path = os.path.realpath(os.fsdecode(arguments[0]))
    if event == "open" and os.path.dirname(path) == FOLDER:
        note("open", os.path.basename(path))
    elif event != "open" and path == FOLDER:
        note("list", ".")


def note(what: str, name: str) -> None:
    """Append one line; the log lies outside the folder, so that this is not heard."""
    with open(LOG, "a", encoding="utf-8") as log:
        log.write(f"{what}\t{purpose()}\t{name}\n")


def purpose() -> str:
    """What the main thread works on, by the innermost room of its stack that has a purpose."""
    frame = sys._current_frames()[threading.main_thread().ident or 0]
    while frame is not None:
        parts = Path(frame.f_code.co_filename).parts
        for room in parts[len(parts) - parts[::-1].index("lean3r") :] if "lean3r" in parts else ():
            if room in PURPOSES:
                return PURPOSES[room]
        frame = frame.f_back
    return "network"


sys.addaudithook(hear)
