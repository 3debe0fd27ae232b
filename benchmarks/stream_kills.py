"""A stream that is killed again and again, and goes on each time: is the result that of an uninterrupted run?"""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROGRAM = (sys.executable, "-P", "-m", "lean3r")
FREE = {"manifest.json", "checkpoint.npz"}  # hold times, and where the last checkpoint was


def of_kills(film: Path, chains: int = 3, kills: int = 3, longest_s: float = 40.0) -> dict[str, Any]:
    """Kill the command so many times by SIGKILL after a random time, resume it each time, and let it end at last;
    compare every file with that of a command that was left alone."""
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        subprocess.run(_command(film, whole), check=True)
        expected, rows = _files(whole), []
        for chain in range(chains):
            out, chance = Path(folder) / f"killed{chain}", random.Random(chain)
            done = sum(_is_killed(_command(film, out), chance.uniform(0, longest_s)) for _ in range(kills))
            subprocess.run(_command(film, out), check=True)
            found = _files(out)
            differ = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
            rows.append({"kills": done, "files": len(found), "differ": differ})
    return {"kills": sum(row["kills"] for row in rows), "chains": rows}


def _command(film: Path, out: Path) -> list[str]:
    return [*PROGRAM, "stream", str(film), "-o", str(out), "--quiet", *(["--resume"] if out.exists() else [])]


def _is_killed(command: Sequence[str], after_s: float) -> bool:
    """Whether the command had to be killed; an error that it reports is one here."""
    start = time.perf_counter()
    process = subprocess.Popen(command)
    try:
        code = process.wait(after_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    if code:
        raise RuntimeError(f"{' '.join(command)} ended with {code} after {time.perf_counter() - start:.1f} s")
    return False


def _files(folder: Path) -> dict[str, str]:
    """A hash of every file of a result."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in FREE)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
