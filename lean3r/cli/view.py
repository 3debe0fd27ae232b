"""`lean3r view`: a result in the browser, or as one file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import tyro

from lean3r.cli.console import Console
from lean3r.cli.options import Json, Quiet, Verbose, option
from lean3r.export.options import HTML_POINTS

if TYPE_CHECKING:
    from lean3r.view.watch import Watch


@dataclass
class View:
    """Turn a result round in the browser, or two side by side; or write it as one page to send on.

    See docs/how-to/view.md.
    """

    results: Annotated[tyro.conf.Positional[list[Path]], option("OUT [OUT2]")]
    """One or two folders of lean3r: results, or streams, which may still run."""

    html: Annotated[Path | None, option("FILE")] = None
    """Write one page that needs no network and no program, instead of opening the browser."""

    report: Annotated[Path | None, option("FILE")] = None
    """Write the quality report of one result, a page to read and to print."""

    max_points: Annotated[int | None, option("N")] = None
    """Show at most N points; all by default, in a file 250000."""

    up: Annotated[str, option("auto|AXIS|X,Y,Z")] = "auto"
    """Which way is up: an axis of the world (z, or --up=-y) or a direction."""

    stored: Annotated[tyro.conf.UseAppendAction[list[Path]], option("PATH")] = field(default_factory=list)
    """Where the pictures are now, if they moved; may be repeated."""

    port: Annotated[int | None, option("N")] = None
    """Port of the page on this machine; by default a free one from 8300 on."""

    no_browser: Annotated[bool, option()] = False
    """Only print the address."""

    overwrite: Annotated[bool, option()] = False
    """Replace FILE."""

    json: Json = False
    verbose: Verbose = False
    quiet: Quiet = False

    def run(self) -> None:
        """Write the page, or serve it until Ctrl-C."""
        import numpy as np

        from lean3r.errors import UsageError
        from lean3r.geometry.up import parse_up
        from lean3r.view.watch import Watch

        if not 1 <= len(self.results) <= 2:
            raise UsageError(f"{len(self.results)} results are named; expected one, or two to compare.")
        if self.max_points is not None and self.max_points < 0:
            raise UsageError(f"--max-points is {self.max_points}; expected 0 or more.")
        self._check_use()
        console, given = Console(self.quiet), parse_up(self.up)
        up = None if given is None else np.array(given)
        if self.report is not None:
            self._report(self.report, console)
        if self.html is not None:
            most = HTML_POINTS if self.max_points is None else self.max_points
            self._write(self.html, Watch(self.results, self.stored, up, most, in_one_file=True), console)
        elif self.report is None:
            self._serve(Watch(self.results, self.stored, up, self.max_points), console)

    def _check_use(self) -> None:
        """UsageError for an option that the files to write do not follow."""
        from lean3r.errors import UsageError

        if self.html is None and self.report is None:
            return
        written, idle = "--html", {"--port": self.port is not None, "--no-browser": self.no_browser}
        if self.html is None:
            points, up = self.max_points is not None, self.up != "auto"
            written, idle = "--report", idle | {"--max-points": points, "--up": up, "--stored": bool(self.stored)}
        for flag, is_given in idle.items():
            if is_given:
                raise UsageError(f"{flag} has no effect on what {written} writes; leave out one of the two.")

    def _checked(self, path: Path) -> Path:
        """The path of a file that may be written."""
        from lean3r.errors import UsageError

        path = path.expanduser()
        if path.is_dir() or not path.parent.is_dir():
            what = "is a folder" if path.is_dir() else "is in no folder that exists"
            raise UsageError(f"{path} {what}; expected the name of a file, such as view.html.")
        if path.exists() and not self.overwrite:
            raise UsageError(f"{path} exists. Use --overwrite, or another name.")
        return path

    def _report(self, path: Path, console: Console) -> None:
        from lean3r.errors import UsageError
        from lean3r.quality import report_of
        from lean3r.scratch import atomic_file

        if len(self.results) != 1:
            raise UsageError("a report is of one result; name one.")
        path = self._checked(path)
        text = report_of(self.results[0])
        with atomic_file(path, overwrite=self.overwrite) as part:
            part.write_text(text, encoding="utf-8")
        console.line("report", f"{len(text.encode()) / 1e6:.1f} MB")
        print(json.dumps({"report": str(path)}) if self.json else path)

    def _write(self, path: Path, watch: Watch, console: Console) -> None:
        from lean3r.scratch import atomic_file
        from lean3r.view.html import write_page

        path = self._checked(path)
        packages, aligned = watch.packages()
        with atomic_file(path, overwrite=self.overwrite) as part:
            size = write_page(part, packages, aligned)
        for package in packages:
            for note in package.header["notes"]:
                console.warn(note)
            shown, total = package.points.count, len(package.content.points)
            count = f"{shown:,} points" if shown == total else f"{shown:,} of {total:,} points (--max-points)"
            console.line("page", f"{package.content.title}: {count}, {len(package.content.cameras):,} cameras")
        console.line("size", f"{size / 1e6:.1f} MB")
        done = {"html": str(path), "bytes": size, "points": [package.points.count for package in packages]}
        print(json.dumps(done) if self.json else path)

    def _serve(self, watch: Watch, console: Console) -> None:
        from lean3r.view.browser import open_page
        from lean3r.view.server import Server

        watch.refresh()
        for note in watch.notes:
            console.warn(note)
        server = Server(watch.shown, self.port, watch.refresh)
        try:
            print(json.dumps({"address": server.address}) if self.json else server.address, flush=True)
            if self.no_browser or not open_page(server.address):
                why = "" if self.no_browser else "no browser was found: "
                port = urlsplit(server.address).port
                where = f"on this machine, or on another after `ssh -L {port}:localhost:{port}` to this one"
                console.line("view", f"{why}open {server.address} in a browser {where}; Ctrl-C ends it")
            else:
                console.line("view", "the browser shows it; Ctrl-C ends it")
            server.wait()
        except KeyboardInterrupt:
            pass  # the usual end
        finally:
            server.close()
