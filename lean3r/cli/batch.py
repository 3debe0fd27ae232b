"""`lean3r batch`: many scenes, one after the other or several at once."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from lean3r.cli.console import Console
from lean3r.cli.flags import Flags, flags, of
from lean3r.cli.options import Json, Quiet, Verbose, option
from lean3r.errors import UsageError
from lean3r.pipeline.cluster import ClusterOptions


@dataclass
class Batch:
    """Reconstruct many scenes; resume where it stopped; list what failed.

    See docs/how-to/batch.md.
    """

    scenes: Annotated[Path, tyro.conf.Positional, option("SCENES")]
    """Folder with a folder of pictures, a .zip or a video for each scene."""

    out: Annotated[Path, option("DIR", "-o", help="Folder of the results; the same again resumes.")]

    options: Annotated[str, option("TEXT")] = ""
    """Options of `lean3r reconstruct` for all scenes, in quotes: --options="--max-views 50 --format colmap"."""

    jobs: Annotated[int | None, option("N", "-j")] = None
    """How many scenes run at the same time: by default one, and on Ray as many as there is room for."""

    minutes: Annotated[float | None, option("N")] = None
    """End a scene that takes longer, as failed."""

    cluster_options: Annotated[Flags[ClusterOptions], of(ClusterOptions)] = field(default_factory=flags(ClusterOptions))

    json: Json = False
    verbose: Verbose = False
    quiet: Quiet = False

    def run(self) -> None:
        """Run what has no result yet; print the folder, or the table as JSON. Failed scenes end in exit code 3."""
        from lean3r.pipeline import batch

        batch.check(self.jobs, self.minutes)
        options = _options(self.options)
        console = Console(self.quiet)
        scenes, cluster = batch.find_scenes(self.scenes, self.out), self.cluster_options.options
        whole = batch.Batch(scenes, self.out, options, self.minutes, cluster)

        def ended(outcome: batch.Outcome) -> None:
            found = outcome.figures
            said = outcome.reason or (f"{found['views']} views, {found['points']:,} points" if found else "was there")
            console.line(outcome.state, f"{outcome.name}: {said} ({outcome.seconds or 0.0:,.0f} s)")

        outcomes = whole.run(self.jobs, ended)
        failed = [outcome for outcome in outcomes if outcome.state != "done"]
        done = len(outcomes) - len(failed)
        console.line("summary", f"{done} of {len(outcomes)} scenes done; {self.out / batch.ROWS}")
        if failed:
            console.table("failed", [(outcome.name, outcome.reason) for outcome in failed])
        print(json.dumps([asdict(outcome) for outcome in outcomes]) if self.json else self.out, flush=True)
        if (error := batch.failure(outcomes, self.out)) is not None:
            raise error


def _options(text: str) -> Sequence[str]:
    """The options of all scenes, parsed once: a wrong one should not fail scene after scene. UsageError for one that is
    wrong or the batch's own; like the parser of `lean3r reconstruct`, this exits with 2 for one that it cannot read."""
    from lean3r.cli.main import parse
    from lean3r.cli.reconstruct import Reconstruct
    from lean3r.pipeline.batch import check_options

    try:
        options = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--options cannot be taken apart: {error}.") from error
    check_options(options)
    command = parse(["reconstruct", "SCENE", "-o", "OUT", "--json", *options])
    assert isinstance(command, Reconstruct)
    for group in vars(command).values():
        getattr(group, "options", None)  # checks the values
    command.formats()
    return options
