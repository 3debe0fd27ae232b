"""`lean3r serve`: reconstructions behind a web address."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from lean3r.cli.console import Console
from lean3r.cli.flags import Flags, flags, of
from lean3r.cli.options import Json, Offline, Quiet, Verbose, option
from lean3r.pipeline.cluster import ClusterOptions
from lean3r.serve.options import ServeOptions


@dataclass
class Serve:
    """Serve reconstructions on the web: uploads by drag and drop or REST, a queue, results on pages and as files.

    See docs/how-to/serve.md.
    """

    data: Annotated[Path, option("DIR")] = Path("lean3r-jobs")
    """Folder of the jobs, uploads and results; one service uses it at a time."""

    serve_options: Annotated[Flags[ServeOptions], of(ServeOptions)] = field(default_factory=flags(ServeOptions))
    cluster_options: Annotated[Flags[ClusterOptions], of(ClusterOptions)] = field(default_factory=flags(ClusterOptions))
    offline: Offline = False

    openapi: Annotated[bool, option()] = False
    """Only print the description of the REST interface (OpenAPI, JSON)."""

    json: Annotated[Json, option(help="Print the address and a made token as JSON on standard output.")] = False
    verbose: Annotated[Verbose, option(help="Also log requests that only read.")] = False
    quiet: Annotated[Quiet, option(help="Log errors only.")] = False

    def run(self) -> None:
        """Serve until Ctrl-C or SIGTERM, or print the description."""
        import logging

        from lean3r.serve.server import check_extra, serve

        options, cluster = self.serve_options.options, self.cluster_options.options
        check_extra()
        if self.openapi:
            from lean3r.serve.app import description

            print(json.dumps(description(options), indent=2))
            return
        level = logging.ERROR if self.quiet else logging.DEBUG if self.verbose else logging.INFO
        serve(options, self.data, self._announce, offline=self.offline, level=level, cluster=cluster)

    def _announce(self, address: str, token: str | None) -> None:
        """Print where the service is; a token that was made here is shown this once."""
        if self.json:
            print(json.dumps({"address": address, "token": token}), flush=True)
            return
        print(address if token is None else f"{address}?token={token}", flush=True)
        Console(self.quiet).line("serve", "open it in a browser; Ctrl-C ends it")
