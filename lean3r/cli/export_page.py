"""`lean3r export-page`: a page that makes clouds from photos in the browser alone."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from lean3r.cli.console import Console
from lean3r.cli.options import Json, Offline, Out, Overwrite, Quiet, Verbose, option


@dataclass
class ExportPage:
    """Write a page on which nano makes clouds from photos in the browser alone; any static file server serves it.

    See docs/how-to/web-page.md.
    """

    network: Annotated[tyro.conf.Positional[Path], option("FILE.onnx")]
    """nano, as `lean3r export-model nano FILE.onnx` writes it."""

    out: Out

    runtime: Annotated[Path | None, option("FOLDER")] = None
    """Folder dist/ of npm's onnxruntime-web, instead of a download."""

    offline: Annotated[Offline, option(help="Do not use the network: take onnxruntime-web from earlier downloads.")] = (
        False
    )
    overwrite: Overwrite = False
    json: Json = False
    verbose: Verbose = False
    quiet: Quiet = False

    def run(self) -> None:
        """Write the folder."""
        from lean3r.errors import InputError
        from lean3r.export.atomic import atomic_folder
        from lean3r.web.runtime import PACKAGE, VERSION, runtime_files
        from lean3r.web.site import check_network, write_site

        console = Console(self.quiet)
        with atomic_folder(self.out, overwrite=self.overwrite, inputs=[self.network]) as folder:
            try:
                network = self.network.expanduser().read_bytes()
            except OSError as error:
                raise InputError(f"{self.network} cannot be read ({error.strerror}).") from error
            check_network(network, str(self.network))
            runtime = runtime_files(self.runtime, offline=self.offline)
            console.line("runtime", f"{PACKAGE} {VERSION}")
            write_site(network, runtime, folder)
            sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        total = sum(sizes.values())
        console.line("size", f"{total / 1e6:.1f} MB")
        console.line(
            "next", f"python -m http.server -d {shlex.quote(str(self.out))} 8000, then open http://localhost:8000/"
        )
        print(json.dumps({"page": str(self.out), "bytes": total, "files": sizes}) if self.json else self.out)
