"""`lean3r export-page`: a page that makes clouds from photos in the browser alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from lean3r.cli.console import Console
from lean3r.cli.options import Json, Offline, Overwrite, Quiet, Verbose, option


@dataclass
class ExportPage:
    """Write a page that makes clouds from photos in the browser alone, with nano; any static file server serves it.

    See docs/how-to/web-page.md.
    """

    site: Annotated[tyro.conf.Positional[Path], option("DIR")]
    """Folder to write; must be new or empty, unless --overwrite is given."""

    runtime: Annotated[Path | None, option("FOLDER")] = None
    """dist/ of npm's onnxruntime-web, instead of a download."""

    offline: Annotated[
        Offline, option(help="Do not use the network: take onnxruntime-web from an earlier download.")
    ] = False
    overwrite: Overwrite = False
    json: Json = False
    verbose: Verbose = False
    quiet: Quiet = False

    def run(self) -> None:
        """Write the folder."""
        from lean3r.export.atomic import atomic_folder
        from lean3r.web.network import nano
        from lean3r.web.runtime import VERSION, runtime_files
        from lean3r.web.site import write_site

        console = Console(self.quiet)
        with atomic_folder(self.site, overwrite=self.overwrite) as folder:
            runtime = runtime_files(self.runtime, offline=self.offline)
            console.line("runtime", f"onnxruntime-web {VERSION}")
            write_site(nano(), runtime, folder)
            sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        total = sum(sizes.values())
        console.line("page", f"{total / 1e6:.1f} MB; to try it: python -m http.server -d {self.site} 8000")
        print(json.dumps({"page": str(self.site), "bytes": total, "files": sizes}) if self.json else self.site)
