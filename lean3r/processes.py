"""This process, its place among others, and its children: peak memory, and child processes with the import paths of
this one, but without the current folder."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path, PurePosixPath
from typing import NamedTuple

_HOME = str(Path(__file__).parents[1])
_SAFE_PATH, _REPORTS = "PYTHONSAFEPATH", "RAY_USAGE_STATS_ENABLED"
_starting = threading.RLock()
_pieces: ContextVar[Callable[[], bool] | None] = ContextVar("_pieces", default=None)


def module_paths() -> list[str]:
    """`sys.path` without the current folder; if lean3r itself lies there, that folder comes last."""
    try:
        here = os.path.realpath(os.curdir)
        paths = [os.path.abspath(path) for path in sys.path if isinstance(path, str)]
    except FileNotFoundError:  # the current folder was deleted
        here, paths = "", [path for path in sys.path if os.path.isabs(path)]
    paths = [path for path in paths if os.path.realpath(path) != here]
    return paths if _HOME in paths else [*paths, _HOME]


def python_command(module: str, *arguments: str, patience: float | None = None) -> list[str]:
    """The command that runs `main()` of a lean3r module in its own process; what it returns is the exit status. With
    `patience` the process ends when its standard input closes (end_with_input)."""
    # Not -I: it would drop PYTHONPATH and the user's site packages, which this process may use.
    flags = [flag for flag, is_set in (("-E", sys.flags.ignore_environment), ("-s", sys.flags.no_user_site)) if is_set]
    code = f"import sys; sys.path[:] = {module_paths()!r}; "
    if patience is not None:
        code += f"from lean3r.processes import end_with_input; end_with_input({patience}); "
    code += f"from {module} import main; sys.exit(main())"
    return [sys.executable, "-P", *flags, "-c", code, *arguments]


def sharing(count: int) -> dict[str, str] | None:
    """The environment for each of `count` processes at once, which then share the processors instead of fighting for
    them; None for a single one: that of this process."""
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count))}
    return None if count == 1 else threads | os.environ


def with_threads_of_its_own() -> dict[str, str]:
    """The environment of a process whose threads all call NumPy: its library for matrices would start more in each, and
    they would wait for each other. And glibc would keep memory for each thread that there ever was."""
    one = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "MALLOC_ARENA_MAX")
    return os.environ | dict.fromkeys(one, "1")


@contextmanager
def meanwhile(piece: Callable[[], bool]) -> Iterator[None]:
    """Inside, `wait` calls `piece` again and again, until it returns False: short work that would be done later."""
    token = _pieces.set(piece)
    try:
        yield
    finally:
        _pieces.reset(token)


def wait(process: subprocess.Popen[bytes], seconds: float) -> int:
    """The exit status of a child process, for which this one has nothing to do but what `meanwhile` says.
    subprocess.TimeoutExpired if it has not ended after so many seconds."""
    piece, end = _pieces.get(), time.monotonic() + seconds
    while piece is not None and process.poll() is None and time.monotonic() < end and piece():
        pass
    return process.wait(max(0.0, end - time.monotonic()))


class Place(NamedTuple):
    """The place of this process among those that a launcher started: its number, how many there are, and its number on
    this machine."""

    rank: int
    size: int
    local: int


def launched() -> Place | None:
    """Where torchrun, or another launcher that sets its variables, has placed this process; None without one."""
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return None
    return Place(*(int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))


@contextmanager
def safely_started() -> Iterator[None]:
    """Inside, processes that multiprocessing starts, including its resource tracker, do not import from the current
    folder before they receive this process's paths."""
    with _starting:
        before = os.environ.get(_SAFE_PATH)
        os.environ[_SAFE_PATH] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ[_SAFE_PATH]
            else:
                os.environ[_SAFE_PATH] = before


def end_with_parent() -> None:
    """In a process that multiprocessing started: end it, whatever it does, as soon as its parent is gone."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def end_with_input(patience: float = 0.0) -> None:
    """End this process when its standard input, a pipe, closes: whoever started it is gone, by whatever end. It is told
    by SIGTERM first, and has so many seconds to remove what is unfinished."""
    threading.Thread(target=_end_with_input, args=(patience,), daemon=True).start()


def _end_with_input(patience: float) -> None:
    while os.read(0, 64):
        continue
    if patience:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(patience)
    os._exit(1)


@contextmanager
def without_reports() -> Iterator[None]:
    """Inside, a Ray cluster that is started reports nothing to its makers, unless the user asked for it."""
    with _starting:
        before = os.environ.get(_REPORTS)
        os.environ.setdefault(_REPORTS, "0")
        try:
            yield
        finally:
            if before is None:
                del os.environ[_REPORTS]


def let_others_run() -> None:
    """Have threads of torch, which wait for each other thousands of times a second, soon sleep instead of keeping a
    processor: beside busy programs, the one that they wait for then does not get to run. Only before torch is loaded.

    With two threads on two processors 8 photos take the same time alone, and beside two busy processes 3.7 s instead of
    5.4 (two AMD EPYC cores, torch 2.13).
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "10000"


def let_cpu_help_mps() -> None:
    """On macOS, let torch run operators that mps lacks on the CPU. Call this before torch is first imported."""
    if sys.platform == "darwin":
        os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")


def peak_memory_mb() -> float:
    """Peak memory of this process so far, in MB (10^6 bytes)."""
    try:
        import resource
    except ImportError:
        return round(_peak_on_windows() / 1e6, 1)
    if (peak := memory_status_mb("VmHWM")) is not None:
        return peak
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


def give_way() -> None:
    """From now on this process runs where no other one would; without effect on systems that have no such priority.

    Linux shares processors out among sessions before it looks at priorities. A process that is the first of a session
    of its own must lower that of the session, too.
    """
    with suppress(AttributeError, OSError):
        os.nice(19)
    with suppress(AttributeError, OSError):
        if os.getsid(0) == os.getpid():
            Path("/proc/self/autogroup").write_text("19")


def give_memory_back() -> None:
    """Return freed memory to the system. glibc keeps what lies below memory in use, by which a process that works for
    hours would grow. No effect with other C libraries."""
    if sys.platform == "linux":
        import ctypes

        with suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def memory_status_mb(field: str, process: int | str = "self") -> float | None:
    """VmRSS or VmHWM of this or another process on Linux, in MB; None elsewhere. Unlike `ru_maxrss` it leaves out the
    peak of the process that started this one."""
    try:
        match = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    except OSError:
        return None
    return None if match is None else round(1024 * int(match[1]) / 1e6, 1)


def family_memory_mb(process: int) -> float | None:
    """What a process and its children take now on Linux, in MB, pages that they share more than once; None elsewhere,
    or if it has ended."""
    own = memory_status_mb("VmRSS", process)
    if own is None:
        return None
    try:
        lists = [path.read_text() for path in Path(f"/proc/{process}/task").glob("*/children")]
    except OSError:
        lists = []
    return own + sum(family_memory_mb(int(child)) or 0.0 for text in lists for child in text.split())


def _peak_on_windows() -> int:
    """Peak working set in bytes, from PROCESS_MEMORY_COUNTERS of kernel32."""
    import ctypes

    class Counters(ctypes.Structure):
        _fields_ = (
            ("size", ctypes.c_uint32),
            ("faults", ctypes.c_uint32),
            ("peak", ctypes.c_size_t),
            ("others", ctypes.c_size_t * 7),
        )

    counters = Counters(size=ctypes.sizeof(Counters))
    this = ctypes.c_void_p(-1)
    library = getattr(ctypes, "windll").kernel32  # noqa: B009 - exists on Windows only
    return counters.peak if library.K32GetProcessMemoryInfo(this, ctypes.byref(counters), counters.size) else 0


def memory_bytes(root: Path = Path("/")) -> int | None:
    """Memory in bytes that this process can have: that of the machine, or of its container if that is less (cgroups of
    version 2, below `root`); None if Python cannot query it (Windows)."""
    if not hasattr(os, "sysconf"):
        return None
    least = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError):
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        own = next((line.removeprefix("0::/") for line in groups if line.startswith("0::/")), "")
        for group in (own, *map(str, PurePosixPath(own).parents)):
            with suppress(OSError, ValueError):  # no limit is "max"
                least = min(least, int((root / "sys/fs/cgroup" / group / "memory.max").read_text()))
    return least
