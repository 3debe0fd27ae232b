"""A process that reads cases one after another and says of each, on a line of JSON, how it ended."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

from fuzz.readers import READERS, write_case
from lean3r.errors import LeanError

MAX_GROWTH = 2 * 2**30
_COUNTED = re.compile(r"Vm(HWM|RSS|Size):\s+(\d+) kB")


def main(name: str, seed: int, start: int, stop: int) -> None:
    """Cases `start` to `stop` of one reader."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    reader = READERS[name]
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # decoders and libraries talk
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    warm_up(name)
    # Past this, memory is refused: a case that asks for it fails.
    limit = memory("Size") + 2 * MAX_GROWTH
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for case in range(start, stop):
        rng = random.Random(f"{name} {seed} {case}")
        folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        write_case(reader, folder, rng)
        print(json.dumps({"case": case, "folder": str(folder)}), file=out)
        before = memory("RSS")
        Path("/proc/self/clear_refs").write_text("5")
        ended, what = read(reader, folder, rng)
        grown = memory("HWM") - before
        if grown > MAX_GROWTH:
            ended, what = "memory", f"{grown >> 20} MB"
        if ended in ("used", "skipped", "refused"):
            shutil.rmtree(folder)
        print(json.dumps({"case": case, "ended": ended, "what": what, "grown_mb": grown >> 20}), file=out)


def warm_up(name: str) -> None:
    """One sound case, so that imports count for none."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    write_case(READERS[name], folder, random.Random(0))
    read(READERS[name], folder, random.Random(0))
    shutil.rmtree(folder)


def read(reader, folder: Path, rng: random.Random) -> tuple[str, str]:
    """used, skipped (in part) or refused; failed, with the last lines of the traceback, is a mistake of lean3r's."""
    try:
        return ("skipped" if reader.read(folder, rng) else "used"), ""
    except LeanError as error:
        return "refused", str(error)[:200]
    except Exception:
        return "failed", "\n".join(traceback.format_exc().splitlines()[-9:])


def memory(field: str) -> int:
    """Bytes of this process: HWM, RSS or Size."""
    found = dict(_COUNTED.findall(Path("/proc/self/status").read_text()))
    return int(found[field]) << 10


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
