"""Makes a process on Linux lack what Windows lacks: run before lean3r is imported. What lean3r needs of others is
imported first, since these know their own ways on Windows."""

from __future__ import annotations

import builtins
import ctypes
import errno
import fcntl
import os
import shutil
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

OTHERS = ("torch.distributed", "av", "pillow_heif", "PIL.Image", "tyro", "rich.progress", "pycolmap")
ABSENT = ("resource", "fcntl", "pwd", "grp", "termios")
FUNCTIONS = (
    "fork",
    "getuid",
    "geteuid",
    "chown",
    "sysconf",
    "sched_getaffinity",
    "killpg",
    "getpgid",
    "posix_fallocate",
)


def become() -> None:
    """From here on, this process is as poor as one on Windows."""
    for name in OTHERS:
        import_module(name)
    for name in ABSENT:
        sys.modules[name] = None  # type: ignore[assignment]
    for name in FUNCTIONS:
        delattr(os, name)
    for name in ("SIGHUP", "SIGUSR1"):
        delattr(signal, name)
    sys.modules["msvcrt"] = SimpleNamespace(LK_NBLCK=2, locking=_locking)  # type: ignore[assignment]
    ctypes.windll = SimpleNamespace(kernel32=SimpleNamespace(K32GetProcessMemoryInfo=_peak))  # type: ignore[attr-defined]
    for module, name in (
        (os, "replace"),
        (os, "rename"),
        (os, "unlink"),
        (os, "remove"),
        (os, "rmdir"),
        (shutil, "rmtree"),
    ):
        setattr(module, name, _refusing(getattr(module, name)))
    os.link = _link
    Path.unlink = lambda self, missing_ok=False: _unlink(self, missing_ok)  # type: ignore[method-assign]


def _locking(descriptor: int, mode: int, size: int) -> None:
    if not os.lseek(descriptor, 0, os.SEEK_CUR) >= 1 << 30:
        raise AssertionError("others could not read or write the file while it is locked")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise PermissionError(errno.EACCES, "locked") from error


def _peak(process: object, counters: Any, size: int) -> int:
    assert size == 72, "PROCESS_MEMORY_COUNTERS on 64 bits"
    counters._obj.peak = 123_000_000
    return 1


def _link(*_: object, **options: object) -> None:
    if options:
        raise NotImplementedError("link: follow_symlinks unavailable on this platform")
    raise OSError("no links")


def _open_files() -> list[str]:
    return [os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if os.path.lexists(entry.path)]


def _refusing(work: Callable[..., Any]) -> Callable[..., Any]:
    def refuse(path: Any, *rest: Any, **options: Any) -> Any:
        real = os.path.realpath(path) if isinstance(path, str | os.PathLike) else ""
        held = [name for name in _open_files() if real and (name == real or name.startswith(f"{real}/"))]
        if held and not options.get("ignore_errors"):
            raise AssertionError(f"{work.__name__} of {path} while {held} is open")
        if held:
            builtins.print(f"LEFT: {held}", file=sys.stderr)
        return work(path, *rest, **options)

    return refuse


def _unlink(path: Path, missing_ok: bool) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        if not missing_ok:
            raise
