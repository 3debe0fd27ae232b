"""How far the refining process is: it says so in a file of its folder, and the process that waits for it reads that."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

FILE = "progress.json"
FEATURES, MATCHES, REST = "features", "matches", "refinement"  # two steps of many parts, and what comes between them
SEARCHED = 16  # pictures that are searched for features between two of its words

Tell = Callable[[str, int, int], None]  # a step's name, how many of its parts are done, and how many there are


def say(folder: Path, name: str, done: int, total: int) -> None:
    """Say that so many of a step's parts are done; nothing if that is less than a hundredth more than before."""
    if done == total or done * 100 // total != (done - 1) * 100 // total:
        part = folder / f"{FILE}.part"
        part.write_text(json.dumps([name, done, total]))
        os.replace(part, folder / FILE)


def tell_of(folder: Path, tell: Tell) -> None:
    """Tell what the refining process last said; nothing if it has not said anything."""
    try:
        name, done, total = json.loads((folder / FILE).read_text())
    except (OSError, ValueError):
        return
    tell(*((name, done, total) if done < total else (REST, 0, 0)))
