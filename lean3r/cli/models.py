"""`lean3r models`: what can be loaded, how large it is, under which licence, and where its weights are."""

from __future__ import annotations

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
        header = ("name", "parameters", "licence", "weights", "predicts")
        cells = [
            (r["name"], f"{r['parameters'] / 1e6:.2f} M", r["licence"], r["weights"] or "missing", r["predicts"])
            for r in rows
        ]
        print(format_table(cells, header))
        for row in rows:
            if row["missing"]:
                print(row["missing"])


def describe(name: str) -> dict:
    """One model as JSON-ready values; `weights` is None and `missing` says why where they are not there."""
    import torch

    from lean3r.errors import WeightsError
    from lean3r.models import MODELS
    from lean3r.pipeline.load import embedded_weights

    with torch.device("meta"):
        model = MODELS.get(name)()
    weights, missing = None, ""
    try:
        path = embedded_weights(name)
        weights = f"in the package ({path.stat().st_size / 1e6:.1f} MB)"
    except WeightsError as error:
        missing = str(error)
    return {
        "name": name,
        "parameters": model.parameter_count,
        "licence": model.licence,
        "weights": weights,
        "missing": missing,
        "predicts": "cameras, depth, confidence",
        "resolution": model.resolution,
        "patch": model.patch,
    }
