"""How much memory a run will take, before it runs: what the process has, what the network counts, what comes after.

On a CPU the figures are resident memory of the whole process, Python and its libraries included; on a GPU they are
what torch's allocator hands out.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from lean3r.errors import UsageError
from lean3r.models.base import Backbone
from lean3r.processes import peak_memory_mb

UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}

# Resident memory beside the tensors, measured on Linux with torch 2.13 for CPUs.
NETWORK_LIBRARIES = 35_000_000  # code and buffers of matrix products, first touched when a network runs
EXPORT_LIBRARIES = 200_000_000  # pycolmap, picture encoders, and their work
BYTES_PER_PIXEL = 24  # of the results: picture 3, mask 1, depth and confidence as tensors and as arrays
BYTES_PER_CANDIDATE, MOST_CANDIDATES = 150, 1_500_000  # while points are thinned, and again written

MMAP_THRESHOLD, TRIM_AT = -3, 1 << 20  # option of glibc's mallopt; from 1 MB on, freed blocks go back at once
USUAL_THRESHOLD = 1 << 25  # what glibc's own value grows to


def parse_memory(memory: str | int) -> int:
    """Bytes of `8GB` (10^9), `512MiB` (2^20) or a number of bytes; UsageError on anything else."""
    if isinstance(memory, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]?i?b)\s*", memory, re.IGNORECASE)
        size = int(float(found[1]) * UNITS[found[2].lower()]) if found and found[2].lower() in UNITS else 0
    else:
        size = memory if isinstance(memory, int) and not isinstance(memory, bool) else 0
    if size < 1:
        raise UsageError(f"memory is {memory!r}; expected a number with a unit, as 8GB, 500MB or 6GiB.")
    return size


def in_units(size: int) -> str:
    """`6.1 GB` or `850 MB`, of 10^9 and 10^6 bytes."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


@dataclass(frozen=True)
class Setting:
    """What the peak depends on: `views` pictures of height x width pixels, bytes of one chunk, the number type."""

    views: int
    height: int
    width: int
    chunk_bytes: int
    dtype: torch.dtype

    @property
    def pixels(self) -> int:
        """Of all pictures."""
        return self.views * self.height * self.width


class Predictor:
    """Peak memory in bytes of runs of `model` on `device`; the same setting is counted once.

    `base` gives the bytes that are there before the run: interpreter, libraries and weights on a CPU, weights alone
    on a GPU. It is asked once, after the first count, which loads code of its own. `writes` says that the result is
    going to be written by all exporters.
    """

    def __init__(self, model: Backbone, device: torch.device, base: Callable[[], int], *, writes: bool = False):
        self.model, self.device, self.writes = model, device, writes
        self._ask_base = base
        self._base: int | None = None
        self._counted: dict[Setting, int] = {}

    def peak(self, setting: Setting) -> int:
        """Bytes at the highest point of a run."""
        activations = self._activations(setting)
        if self._base is None:
            self._base = self._ask_base()
        network = self._base + activations
        if self.device.type == "cuda":
            return network
        results = BYTES_PER_PIXEL * setting.pixels
        work = BYTES_PER_CANDIDATE * min(setting.pixels, MOST_CANDIDATES)
        after = self._base + results + work + (EXPORT_LIBRARIES if self.writes else 0)
        return max(network, after) + NETWORK_LIBRARIES

    def _activations(self, setting: Setting) -> int:
        """Of the network, results and pictures included."""
        if setting not in self._counted:
            from lean3r.models.summary import summarise  # brings parts of torch's compiler along

            with chunked(self.model, setting.chunk_bytes):
                found = summarise(self.model, setting.views, setting.height, setting.width, setting.dtype)
            self._counted[setting] = found.activation_bytes
        return self._counted[setting]


@contextmanager
def chunked(model: Backbone, size: int) -> Iterator[None]:
    """Inside, the model works on chunks of views of `size` bytes."""
    before = model.chunk_bytes
    model.set_chunk_bytes(size)
    try:
        yield
    finally:
        model.set_chunk_bytes(before)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out, on the CPU or on a GPU."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def used_bytes(device: torch.device) -> int:
    """What is taken now: the process's resident memory, or what torch has allocated on a GPU."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"VmRSS:\s+(\d+) kB", status.read_text())
        if found is not None:
            return 1024 * int(found[1])
    return int(1e6 * peak_memory_mb())


def available_bytes(device: torch.device) -> int | None:
    """What this process could have in all, its own included; None where the system does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    info = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", info.read_text()) if info.exists() else None
    return None if found is None else 1024 * int(found[1]) + used_bytes(device)


@contextmanager
def giving_back() -> Iterator[None]:
    """Inside, freed tensors of a megabyte or more return to the system at once.

    glibc otherwise keeps blocks of up to 32 MB, and the process grows to several times what is alive. Costs time: the
    system clears fresh memory. Without effect where the C library is another one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        yield
        return
    mallopt(MMAP_THRESHOLD, TRIM_AT)
    try:
        yield
    finally:
        mallopt(MMAP_THRESHOLD, USUAL_THRESHOLD)
