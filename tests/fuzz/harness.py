"""Runs cases in processes of their own under a watchdog, and counts how they ended."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

WORKER = Path(__file__).with_name("worker.py")
PATIENCE_S = 60.0  # a case; most take milliseconds, and machines may be busy
START_S = 300.0
SOUND = ("used", "skipped", "refused")


@dataclass
class Tally:
    """How the cases of one reader ended: used, skipped, refused; failed, memory, hang or crash are mistakes, told in
    `mistakes`. `grown_mb` is the most that one case added to the process's memory."""

    ended: Counter[str] = field(default_factory=Counter)
    mistakes: list[str] = field(default_factory=list)
    grown_mb: int = 0
    seconds: float = 0.0


def run(reader: str, cases: int, seed: int = 0) -> Tally:
    """Cases 0 to `cases` of a reader; after a hang or a crash the next process goes on with the case after it."""
    tally, start, begun = Tally(), 0, time.monotonic()
    while start < cases:
        start = _run_until(reader, seed, start, cases, tally)
    tally.seconds = round(time.monotonic() - begun, 1)
    return tally


def _run_until(reader: str, seed: int, start: int, cases: int, tally: Tally) -> int:
    command = [sys.executable, str(WORKER), reader, str(seed), str(start), str(cases)]
    paths = os.pathsep.join(str(WORKER.parents[n]) for n in (1, 2))
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths}) as process:
        assert process.stdout is not None
        running, folder = None, ""
        try:
            for told in _lines(process.stdout):
                if "ended" not in told:
                    running, folder = told["case"], told["folder"]
                    continue
                tally.ended[told["ended"]] += 1
                tally.grown_mb = max(tally.grown_mb, told["grown_mb"])
                if told["ended"] not in SOUND:
                    tally.mistakes.append(f"{reader} {running}: {told['ended']} ({folder})\n{told['what']}")
                running, start = None, told["case"] + 1
            how = f"crash, exit code {process.wait()}"
        except TimeoutError:
            how = f"hang of {PATIENCE_S:g} s"
            process.kill()
        if running is None and start < cases:
            raise RuntimeError(f"{reader}: no word before case {start} ({how})")
        if running is None:
            return cases
        tally.ended[how.split()[0].rstrip(",")] += 1
        tally.mistakes.append(f"{reader} {running}: {how} ({folder})")
        return running + 1


def _lines(stream: IO[bytes]) -> Iterator[dict]:
    """What the worker says, until it ends; TimeoutError where it keeps silent for too long."""
    rest, patience = b"", START_S
    while True:
        if not select.select([stream], [], [], patience)[0]:
            raise TimeoutError
        part = os.read(stream.fileno(), 1 << 16)
        if not part:
            return
        *lines, rest = (rest + part).split(b"\n")
        yield from map(json.loads, lines)
        patience = PATIENCE_S
