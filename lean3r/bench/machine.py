"""The machine that a benchmark runs on: what it is, what else it does, and the best that it reaches."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

CPU_SIDE, GPU_SIDE = 1536, 8192  # of the matrices of the product
CPU_BYTES, GPU_BYTES = 1 << 28, 1 << 31  # of the copy
BUSY = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")  # columns of /proc/stat


def hardware() -> dict[str, object]:
    """Processor, cores, GPU and versions; no name of a machine."""
    found: dict[str, object] = {
        "cpu": _cpu_name(),
        "cores": cores(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def load_average() -> list[float] | None:
    """Processes that run or wait, means of the last 1, 5 and 15 minutes; None where the system does not say."""
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None


def busy_s() -> float | None:
    """Seconds that all cores of the machine together have worked since its start; None where there is no /proc."""
    path = Path("/proc/stat")
    if not path.exists():
        return None
    counts = dict(zip(BUSY, map(int, path.read_text().split("\n", 1)[0].split()[1:]), strict=False))
    return (sum(counts.values()) - counts["idle"] - counts["iowait"]) / os.sysconf("SC_CLK_TCK")


@dataclass
class Others:
    """What other processes took of the machine while runs were measured: seconds of all cores, and wall seconds."""

    cpu_s: float = 0.0
    wall_s: float = 0.0
    _start: tuple[float | None, float] = field(default=(None, 0.0))

    def start(self) -> None:
        """A run begins."""
        self._start = busy_s(), time.perf_counter()

    def stop(self, own_cpu_s: float) -> None:
        """A run ended that itself took so many seconds of all cores."""
        before, after = self._start[0], busy_s()
        if before is not None and after is not None:
            self.cpu_s += max(0.0, after - before - own_cpu_s)
            self.wall_s += time.perf_counter() - self._start[1]

    @property
    def share(self) -> float | None:
        """Of all cores of the machine, 0 to 1; None if it could not be measured."""
        return round(min(1.0, self.cpu_s / self.wall_s / (os.cpu_count() or 1)), 3) if self.wall_s else None


def peaks(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """What a device reaches now: operations per second in a matrix product, bytes per second in a copy."""
    cuda = device.type == "cuda"
    side = GPU_SIDE if cuda else CPU_SIDE
    a = torch.randn(side, side, device=device, dtype=dtype)
    source = torch.ones(GPU_BYTES if cuda else CPU_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product, copied = _median_s(lambda: a @ a, device), _median_s(lambda: target.copy_(source), device)
    return {"flops_per_s": 2 * side**3 / product, "bytes_per_s": 2 * source.numel() / copied}


def _median_s(run: Callable[[], object], device: torch.device, budget_s: float = 1.0, most: int = 9) -> float:
    """Of as many runs as fit into the budget, 1 to `most`, after one uncounted."""
    from lean3r.bench.meter import Clock

    clock, times = Clock(device), []
    run()
    while not times or (sum(times) + times[-1] < budget_s and len(times) < most):
        clock.wait()
        start = time.perf_counter()
        run()
        clock.wait()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
