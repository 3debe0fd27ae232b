"""The command line: one file for each command, a dataclass with options as fields and a method `run`.

These files import nothing slow at the top, so that `lean3r --help` answers at once.
"""

from typing import Protocol

from lean3r.registry import Registry


class Command(Protocol):
    """A command after parsing: a dataclass of options, which include these two."""

    verbose: bool
    quiet: bool

    def run(self) -> None:
        """Run the command. Only the result goes to standard output; errors are those of lean3r/errors.py."""


COMMANDS = Registry(
    "command",
    {
        "reconstruct": "lean3r.cli.reconstruct:Reconstruct",
        "add": "lean3r.cli.add:Add",
        "stream": "lean3r.cli.stream:StreamCommand",
        "batch": "lean3r.cli.batch:Batch",
        "view": "lean3r.cli.view:View",
        "serve": "lean3r.cli.serve:Serve",
        "export-page": "lean3r.cli.export_page:ExportPage",
        "models": "lean3r.cli.models:Models",
        "doctor": "lean3r.cli.doctor:Doctor",
        "demo": "lean3r.cli.demo:Demo",
        "compress": "lean3r.cli.compress:Compress",
        "export-model": "lean3r.cli.export_model:ExportModel",
        "inspect": "lean3r.cli.inspect:Inspect",
        "train": "lean3r.cli.train:Train",
        "distill": "lean3r.cli.distill:Distill",
        "data": "lean3r.cli.data:Data",
        "report": "lean3r.cli.report:Report",
        "probe": "lean3r.cli.probe:Probe",
        "bench": "lean3r.cli.bench:Bench",
        "evaluate": "lean3r.cli.evaluate:Evaluate",
        "score": "lean3r.cli.score:Score",
    },
)
