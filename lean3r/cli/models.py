"""`lean3r models`: what can be loaded, how large it is, under which licence, and where its weights are."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from typing import Annotated

from lean3r.cli.console import format_table
from lean3r.cli.options import option


@dataclass
class Models:
    """List the models that can be loaded."""

    json: Annotated[bool, option()] = False
    """Print JSON."""

    def run(self) -> None:
        """Print a table, or JSON."""
        from lean3r.pipeline.load import list_models

        rows = [describe(name) for name in list_models()]
        if self.json:
            print(json.dumps(rows))
            return
        header = ("name", "parameters", "licence", "weights", "about")
        cells = [
            (r["name"], f"{r['parameters'] / 1e6:,.1f} M", r["licence"], r["weights"] or "needs --weights", r["about"])
            for r in rows
        ]
        print(format_table(cells, header))


def describe(name: str) -> dict:
    """One model as JSON-ready values; `weights` is None where they do not come with the package."""
    import torch

    from lean3r.models import MODELS
    from lean3r.pipeline.load import EMBEDDED

    # On the meta device a model of a billion parameters costs neither memory nor time.
    with torch.device("meta"):
        model = MODELS.get(name)()
    path = EMBEDDED / f"{name}.safetensors"
    return {
        "name": name,
        "parameters": model.parameter_count,
        "licence": model.licence,
        "weights": f"in the package ({path.stat().st_size / 1e6:.1f} MB)" if path.is_file() else None,
        "about": (inspect.getdoc(type(model)) or "").partition("\n\n")[0].replace("\n", " "),
        "resolution": model.resolution,
        "patch": model.patch,
    }
