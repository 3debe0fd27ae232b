"""The command line: one file a command, each a dataclass whose fields are its options and whose `run` does the work.

Nothing heavy is imported at the top of these files: `lean3r --help` must answer at once.
"""

from typing import Protocol

from lean3r.registry import Registry


class Command(Protocol):
    """A row of COMMANDS once its line is parsed: a dataclass of options, these two among them."""

    verbose: bool
    quiet: bool

    def run(self) -> None:
        """Do it; the result alone goes to standard output, errors are those of lean3r/errors.py."""


COMMANDS = Registry(
    "command",
    {
        "reconstruct": "lean3r.cli.reconstruct:Reconstruct",
        "models": "lean3r.cli.models:Models",
        "doctor": "lean3r.cli.doctor:Doctor",
        "demo": "lean3r.cli.demo:Demo",
        "compress": "lean3r.cli.compress:Compress",
        "inspect": "lean3r.cli.inspect:Inspect",
        "train": "lean3r.cli.train:Train",
        "distill": "lean3r.cli.distill:Distill",
        "data": "lean3r.cli.data:Data",
        "probe": "lean3r.cli.probe:Probe",
    },
)
