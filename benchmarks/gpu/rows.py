"""What all parts share: rows kept in one file as they come, what is there already, medians by CUDA events, a summary.

    python benchmarks/gpu/rows.py OUT        # prints what ran, what failed, what is left; writes OUT/summary.md

OUT/rows.jsonl has one JSON object a line. A row is {"part", "row", "device", "torch", "triton", "peak_gb",
"configurations", ...figures}, or has "failed" with the reason instead of figures. Before a row begins, a line with
"started" is written: a row that was started twice and has no result is not tried again. After a part, run_all.sh
adds {"part", "exit", "seconds"}.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import triton
from tuning import configurations_used, forget_used, milliseconds_tried

DEVICE_LOST = 3  # exit code after an error that leaves the CUDA context useless: a new process goes on
TRIES = 2
LAST_LINES = 15
TINY_WORLD = {"tiles": 32, "tile_size": 16}  # of a synthetic world on a CPU, where painting tiles takes seconds
_peaks: list[int] = []  # bytes at the peak before `measure` set the meter back, within a row


class Rows:
    """The rows of one part in OUT/rows.jsonl; those of earlier runs are not measured again."""

    def __init__(self, out: Path, part: str, device: str):
        out.mkdir(parents=True, exist_ok=True)
        self.path, self.part, self.device = out / "rows.jsonl", part, device
        self.all = read(self.path)
        self.done = {row["row"]: row for row in self.all if row["part"] == part and is_result(row)}
        self.started = [row["row"] for row in self.all if row["part"] == part and "started" in row]

    def take(self, name: str, make: Callable[[], dict]) -> dict:
        """The row's figures: of an earlier run, or of make() now. A failure becomes a row, too, and ends nothing."""
        if name in self.done:
            return self.done[name]
        if self.started.count(name) >= TRIES:
            return self.write(name, {"failed": f"cut short {TRIES} times"})
        append(self.path, {"part": self.part, "row": name, "started": True})
        forget_used()
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            _peaks.clear()
        try:
            found = make()
            if self.device == "cuda":
                torch.cuda.synchronize()
        except Exception as error:
            traceback.print_exc()
            found = {"failed": f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"}
        lost = "failed" in found and not answers(self.device)
        if self.device == "cuda" and not lost:
            found = {"peak_gb": round(max(*_peaks, torch.cuda.max_memory_allocated(), 0) / 1e9, 3)} | found
        tried = {"tried_ms": milliseconds_tried()} if milliseconds_tried() else {}
        row = self.write(name, {"configurations": configurations_used()} | tried | found)
        if lost:
            sys.exit(DEVICE_LOST)
        return row

    def write(self, name: str, figures: dict) -> dict:
        """Add a row with the conditions it was made under."""
        kind = torch.cuda.get_device_name() if self.device == "cuda" else "cpu"
        where = {"device": kind, "torch": torch.__version__, "triton": triton.__version__}
        self.done[name] = {"part": self.part, "row": name, **where, **figures}
        append(self.path, self.done[name])
        shown = {key: value for key, value in figures.items() if key not in ("configurations", "tried_ms")}
        print(self.part, name, json.dumps(shown), flush=True)
        return self.done[name]


def measure(run: Callable[[], object], device: str, *, budget_s: float = 1.0, warm: bool = True) -> dict:
    """Median milliseconds of as many runs as fit into the budget, 1 to 20; gigabytes at the peak beyond what was held.

    `warm`: a run that does not count comes first. On a GPU by CUDA events around each run; on a CPU, where figures mean
    nothing, one run.
    """
    if device != "cuda":
        return {"ms": round(milliseconds(run, device), 4), "runs": 1}
    if warm:
        run()
    torch.cuda.synchronize()
    _peaks.append(torch.cuda.max_memory_allocated())
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    times: list[float] = []
    while not times or (sum(times) + times[-1] < 1e3 * budget_s and len(times) < 20):
        times.append(milliseconds(run, device))
    more = round((torch.cuda.max_memory_allocated() - before) / 1e9, 3)
    return {"ms": round(statistics.median(times), 4), "runs": len(times), "more_gb": more}


def milliseconds(run: Callable[[], object], device: str) -> float:
    """Of one run."""
    if device != "cuda":
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    run()
    last.record()
    last.synchronize()
    return first.elapsed_time(last)


def answers(device: str) -> bool:
    """Whether the device still computes: after an illegal access every call of the process fails."""
    try:
        return bool((torch.ones(2, device=device) + 1).sum().item() == 4)
    except RuntimeError:
        return False


def read(path: Path) -> list[dict]:
    """All lines; one that was cut off by a killed process is passed over."""
    found = []
    for line in filter(None, path.read_text().splitlines() if path.exists() else ()):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            print("passed over:", line[:80], flush=True)
    return found


def append(path: Path, row: dict) -> None:
    """Add a line at once, on a line of its own even after one that was cut off."""
    cut = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
    with path.open("a") as file:
        file.write(("\n" if cut else "") + json.dumps(row) + "\n")


def is_result(row: dict) -> bool:
    """Neither the start of a row nor the end of a part."""
    return "row" in row and "started" not in row


def summary_of(rows: list[dict], log: str) -> tuple[str, bool]:
    """What ran, what failed with the last lines of its log, what is left, as Markdown; and whether all is well."""
    lines = ["| part | rows | failed | last exit | seconds |", "| --- | --- | --- | --- | --- |"]
    more: list[str] = []
    for part in dict.fromkeys(row["part"] for row in rows):
        mine = [row for row in rows if row["part"] == part]
        results, ends = {row["row"]: row for row in mine if is_result(row)}, [row for row in mine if "exit" in row]
        failed = [row for row in results.values() if "failed" in row]
        unfinished = sorted({row["row"] for row in mine if "started" in row} - set(results))
        code = ends[-1]["exit"] if ends else "none"
        lines.append(f"| {part} | {len(results)} | {len(failed)} | {code} | {sum(row['seconds'] for row in ends)} |")
        more += [f"- {part}, {row['row']}: {row['failed']}" for row in failed]
        more += [f"- {part}, {name}: cut short, left" for name in unfinished]
        if code == "left":
            more.append(f"- {part}: left, the time was up")
        elif ends and code != 0:
            tail = log.split(f"== part {part}\n")[-1].split("\n== part ")[0].splitlines()[-LAST_LINES:]
            more += [f"- {part} ended with {code}; its last lines:", "", *(f"      {line}" for line in tail), ""]
    return "\n".join([*lines, "", *more]) + "\n", not more


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    text, well = summary_of(read(folder / "rows.jsonl"), (folder / "log.txt").read_text(errors="replace"))
    (folder / "summary.md").write_text(text)
    print(text)
    sys.exit(not well)
