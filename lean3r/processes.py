"""Other Python processes: they take modules from where this one takes them, but never from the current folder."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HOME = str(Path(__file__).parents[1])
_SAFE_PATH = "PYTHONSAFEPATH"
_starting = threading.RLock()


def module_paths() -> list[str]:
    """`sys.path` without the current folder; where lean3r itself lies there, it comes last."""
    try:
        here = os.path.realpath(os.curdir)
        paths = [os.path.abspath(path) for path in sys.path if isinstance(path, str)]
    except FileNotFoundError:  # the current folder was deleted
        here, paths = "", [path for path in sys.path if os.path.isabs(path)]
    paths = [path for path in paths if os.path.realpath(path) != here]
    return paths if _HOME in paths else [*paths, _HOME]


def python_command(module: str, *arguments: str) -> list[str]:
    """The command that runs `main()` of a module of ours in a process of its own."""
    # Not -I: that would drop PYTHONPATH and the user's own packages, which are in the paths where they count here.
    flags = [flag for flag, is_set in (("-E", sys.flags.ignore_environment), ("-s", sys.flags.no_user_site)) if is_set]
    code = f"import sys; sys.path[:] = {module_paths()!r}; from {module} import main; main()"
    return [sys.executable, "-P", *flags, "-c", code, *arguments]


@contextmanager
def safely_started() -> Iterator[None]:
    """Inside, the Python processes that multiprocessing starts, its resource tracker included, do not look for modules
    in the current folder before they have this process's paths."""
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
