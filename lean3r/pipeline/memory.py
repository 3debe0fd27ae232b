"""Predict the peak memory of a run: the process before it, the network, and the work after the network.

On a CPU the figures are resident memory of the whole process, Python and its libraries included; on a GPU they are
what torch's allocator provides.
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
NETWORK_LIBRARIES = 35_000_000  # code and buffers of matrix products, first used when a network runs
EXPORT_LIBRARIES = 200_000_000  # pycolmap, picture encoders, and their work
BYTES_PER_PIXEL = 24  # of the results: picture 3, mask 1, depth and confidence as tensors and as arrays
BYTES_PER_CANDIDATE, MOST_CANDIDATES = 150, 1_500_000  # while points are thinned, and while they are written

MMAP_THRESHOLD, TRIM_AT = -3, 1 << 20  # option of glibc's mallopt; from 1 MB on, freed blocks go back at once
USUAL_THRESHOLD = 1 << 25  # the limit of glibc's own adjustment


def parse_memory(memory: str | int) -> int:
    """Bytes in `8GB` (10^9), `512MiB` (2^20) or a number of bytes; UsageError for anything else."""
    if isinstance(memory, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]?i?b)\s*", memory, re.IGNORECASE)
        size = int(float(match[1]) * UNITS[match[2].lower()]) if match and match[2].lower() in UNITS else 0
    else:
        size = memory if isinstance(memory, int) and not isinstance(memory, bool) else 0
    if size < 1:
        raise UsageError(f"memory is {memory!r}; expected a number with a unit, such as 8GB, 500MB or 6GiB.")
    return size


def in_units(size: int) -> str:
    """A number of bytes as `6.1 GB` or `850 MB` (10^9 and 10^6 bytes)."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


@dataclass(frozen=True)
class Setting:
    """What the peak depends on: `views` pictures of height x width pixels, the bytes of a chunk, the number type."""

    views: int
    height: int
    width: int
    chunk_bytes: int
    dtype: torch.dtype

    @property
    def pixels(self) -> int:
        """Pixels of all pictures."""
        return self.views * self.height * self.width


class Predictor:
    """Predicts the peak memory of runs of `model` on `device`, in bytes; results are cached.

    `base` returns the bytes in use before the run: interpreter, libraries and weights on a CPU, weights alone on a
    GPU. It is called once, after the first prediction, which itself loads code. `writes` says that all exporters will
    write the result.
    """

    def __init__(self, model: Backbone, device: torch.device, base: Callable[[], int], *, writes: bool = False):
        self.model, self.device, self.writes = model, device, writes
        self._ask_base = base
        self._base: int | None = None
        self._counted: dict[Setting, int] = {}

    def peak(self, setting: Setting) -> int:
        """Peak memory of a run, in bytes."""
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
        """Bytes of the network's activations, including results and pictures."""
        if setting not in self._counted:
            from lean3r.models.summary import summarise  # imports parts of torch's compiler

            with chunked(self.model, setting.chunk_bytes):
                summary = summarise(self.model, setting.views, setting.height, setting.width, setting.dtype)
            self._counted[setting] = summary.activation_bytes
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


def chunk_bytes(device: torch.device, usual: int) -> int:
    """Bytes for a chunk of views: `usual`, on a GPU a sixteenth of its free memory if that is more.

    A GPU waits for launches where chunks are small: 1,024 views in chunks of 256 MiB take tens of thousands.
    """
    return max(usual, torch.cuda.mem_get_info(device)[0] // 16) if device.type == "cuda" else usual


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out, on the CPU or on a GPU."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def used_bytes(device: torch.device) -> int:
    """Bytes in use now: the process's resident memory, or what torch has allocated on a GPU."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        match = re.search(r"VmRSS:\s+(\d+) kB", status.read_text())
        if match is not None:
            return 1024 * int(match[1])
    return int(1e6 * peak_memory_mb())


def available_bytes(device: torch.device) -> int | None:
    """Bytes that this process could use in total, including those in use; None if the system does not report it."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    info = Path("/proc/meminfo")
    match = re.search(r"MemAvailable:\s+(\d+) kB", info.read_text()) if info.exists() else None
    return None if match is None else 1024 * int(match[1]) + used_bytes(device)


@contextmanager
def giving_back() -> Iterator[None]:
    """Inside, freed tensors of a megabyte or more return to the system at once.

    Otherwise glibc keeps blocks of up to 32 MB, and the process grows to several times the memory in use. This costs
    time, because the system clears fresh memory. It has no effect with other C libraries.
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
