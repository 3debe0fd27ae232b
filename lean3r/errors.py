"""Errors that a user can act on; each knows the exit code of the command line.

A message says what was got, what was expected and what to do, on one line where it can.
"""

from __future__ import annotations


class LeanError(Exception):
    """Base of all errors that lean3r raises on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(LeanError):
    """The call makes no sense as it stands; this includes an output folder that exists already."""

    exit_code = 2


class KernelError(UsageError):
    """An implementation that was asked for by name cannot run here; the message names the reason."""


class InputError(LeanError):
    """The input holds nothing usable."""

    exit_code = 3


class MissingExtraError(LeanError):
    """An optional package is needed."""

    exit_code = 4

    @classmethod
    def of(cls, job: str, extra: str) -> MissingExtraError:
        """The standard sentence: what needs it, and the pip line that brings it."""
        return cls(f"{job} needs an extra: pip install 'lean3r[{extra}]'")


class OutOfMemoryError(LeanError):
    """The machine's memory does not hold the job."""

    exit_code = 5


class WeightsError(LeanError):
    """Weights are missing, damaged, foreign or could not be downloaded."""

    exit_code = 6
