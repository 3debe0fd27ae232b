"""The `lean3r` command: parse the command line, run one command, return an exit code.

0 done, 1 a bug of lean3r, or a regression that `lean3r report` found, 2 usage (an existing output folder included),
3 unusable input, 4 a missing extra, 5 out of memory, 6 network or weights, 130 interrupted (Ctrl-C), 143 ended by
SIGTERM.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lean3r import __version__
from lean3r.cli import COMMANDS, Command
from lean3r.cli.streams import has_no_reader, lose, steady_streams
from lean3r.errors import InputError, LeanError, OutOfMemoryError, UsageError
from lean3r.processes import let_cpu_help_mps, let_others_run

_INTERRUPTED, _TERMINATED = 130, 143
_DESCRIPTION = "Photos or a video in; cameras, depth and a point cloud out. `lean3r --version` prints the version."
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: that of the process) and return its exit code; this never raises."""
    let_cpu_help_mps()
    let_others_run()
    with steady_streams():
        _let_all_names_out()
        try:
            code = run(list(sys.argv[1:] if argv is None else argv))
            sys.stdout.flush()
            return code
        except OSError as error:
            if isinstance(error, BrokenPipeError) and has_no_reader(sys.stdout):
                code = 0  # the reader closed the pipe; the work is done
            else:
                message, code = explain(error)
                print(f"error: {message}", file=sys.stderr)
            lose(sys.stdout)
            return code


def _let_all_names_out() -> None:
    """A folder may have letters that the encoding of standard output lacks, or bytes that are no letters: a finished
    run must not fail because its path cannot be printed."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        is_utf8 = sys.stdout.encoding.lower().replace("-", "") == "utf8"
        sys.stdout.reconfigure(errors="surrogateescape" if is_utf8 else "backslashreplace")


def run(argv: Sequence[str]) -> int:
    """Parse and run a command line, and return its exit code; only BrokenPipeError is raised."""
    if argv == ["--version"]:
        print(f"lean3r {__version__}")
        return 0
    command: Command | None = None
    try:
        with _orderly_end():
            command = parse(argv)
            with _messages(command.quiet, command.verbose):
                command.run()
        return 0
    except BrokenPipeError:
        raise
    except SystemExit as stop:
        return int(stop.code or 0)
    except _Terminated:
        print("ended by SIGTERM", file=sys.stderr)
        return _TERMINATED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED
    except Exception as error:
        message, code = explain(error)
        if command is not None and command.verbose and code == LeanError.exit_code and not isinstance(error, LeanError):
            traceback.print_exc()
        print(f"error: {message}", file=sys.stderr)
        return code


class _Terminated(BaseException):
    """SIGTERM arrived; raised like KeyboardInterrupt, so that unfinished folders are removed."""


@contextmanager
def _orderly_end() -> Iterator[None]:
    """Inside, the first SIGTERM raises _Terminated in the main thread; if SIGTERM is ignored, it stays ignored."""
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or before is not signal.SIG_DFL:
        yield
        return

    def end(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one must not interrupt the clean-up
        raise _Terminated

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def parse(argv: Sequence[str]) -> Command:
    """The command object for a command line; like tyro, this exits with 2 on an error and with 0 after --help."""
    import tyro

    if argv and argv[0] in COMMANDS:  # the others need not be imported
        return tyro.cli(
            COMMANDS.get(argv[0]),
            args=list(argv[1:]),
            prog=f"lean3r {argv[0]}",
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    return tyro.extras.subcommand_cli_from_dict(
        {name: COMMANDS.get(name) for name in COMMANDS},
        args=list(argv),
        prog="lean3r",
        description=_DESCRIPTION,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def explain(error: Exception) -> tuple[str, int]:
    """The message in one line, and the exit code, for any exception."""
    if isinstance(error, LeanError):
        return str(error), error.exit_code
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        advice = "Use fewer or smaller pictures: --max-views N, --resolution N; on a GPU also --dtype bfloat16."
        return f"out of memory. {advice}", OutOfMemoryError.exit_code
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        if error.filename and os.path.exists(error.filename) and not os.access(error.filename, os.R_OK):
            return f"cannot read {error.filename}: {error.strerror}.", InputError.exit_code
        where = f" ({error.filename})" if error.filename else ""
        return f"cannot write: {error.strerror}{where}. Use another -o.", UsageError.exit_code
    first = (str(error).splitlines() or [""])[0]
    return f"unexpected {type(error).__name__}: {first} (a bug of lean3r; -v shows the traceback)", LeanError.exit_code


class _Messages(logging.Handler):
    """Prints warnings of the library as single lines on standard error, except skipped files, which the run reports."""

    def emit(self, record: logging.LogRecord) -> None:
        if not str(record.msg).startswith("skipped "):
            print(f"{record.levelname.lower()}: {record.getMessage()}", file=sys.stderr)


@contextmanager
def _messages(quiet: bool, verbose: bool) -> Iterator[None]:
    """Inside, log messages of the library and Python's warnings go to standard error, unless `quiet` is set."""
    logger, handler = logging.getLogger("lean3r"), _Messages()
    before = logger.level, logger.propagate
    logger.setLevel(logging.CRITICAL if quiet else logging.DEBUG if verbose else logging.WARNING)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            if quiet:
                warnings.simplefilter("ignore")
            warnings.showwarning = lambda message, *_, **__: logger.warning("%s", message)
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])  # not by assignment: the logger caches which levels are enabled
        logger.propagate = before[1]
