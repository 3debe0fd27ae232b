"""Errors that a user can act on; each has an exit code of the command line.

A message says what was given, what was expected and what to do, on one line if possible.
"""

from __future__ import annotations


class LeanError(Exception):
    """Base of all errors that lean3r raises on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class RegressionError(LeanError):
    """Figures of a run are worse than those of another beyond their tolerances (`lean3r report`)."""


class UsageError(LeanError):
    """The call is invalid, for example an unknown option or an output folder that already exists."""

    exit_code = 2


class KernelError(UsageError):
    """An implementation that was chosen by name cannot run here; the message gives the reason."""


class InputError(LeanError):
    """The input contains nothing usable."""

    exit_code = 3


class MissingExtraError(LeanError):
    """An optional package is needed."""

    exit_code = 4

    @classmethod
    def of(cls, job: str, extra: str) -> MissingExtraError:
        """The standard message: the job that needs the package, and the pip command that installs it."""
        return cls(f"{job} needs an extra: pip install 'lean3r[{extra}]'")


class OutOfMemoryError(LeanError):
    """The job does not fit into memory."""

    exit_code = 5


class WeightsError(LeanError):
    """Weights are missing, damaged, of another model, or could not be downloaded."""

    exit_code = 6
