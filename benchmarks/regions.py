"""Does gsa's selection in two levels find the windows that one level finds? On nano-gsa-fp8 and rendered scenes.

    python benchmarks/regions.py [--views 8 32 64 128] [--regions 8 16 32 64] [--scenes 2] [--out DIR]

Each layer chooses windows in one level, and the model goes on with these; beside it, the same queries and keys choose
by regions. Recall is the share of the windows of one level that two levels choose too (mean over layers, heads and
windows), beside the share of regions that are candidates, which is the recall of candidates drawn at random. Then
the model runs with regions from end to end, untrained for them: pose AUC@30 and AbsRel beside those of one level.
Writes regions.json.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from accuracy import held_out
from common import RESULTS, hardware, write_result

import lean3r
from lean3r.attention.coarse_fine import Gsa
from lean3r.eval.synthetic import score_scenes
from lean3r.models.base import Backbone
from lean3r.pipeline.predict import predict
from lean3r.types import Views


def overlap(one: torch.Tensor, two: torch.Tensor) -> float:
    """Share of the entries of lists `one` [..., K] that are in `two` [..., M]; -1 is no entry."""
    hits = [(entry[..., None] == two).any(-1) & (entry >= 0) for entry in one.unbind(-1)]
    return float(torch.stack(hits).sum() / (one >= 0).sum())


def recall(model: Backbone, images: list[Any], regions: int) -> dict[str, float]:
    """Recall of selection by so many regions, and the share of regions that are candidates."""
    shares: list[tuple[float, float]] = []
    plain = Gsa._select

    def both(self: Gsa, windows: Any, finished: Any, cut: Any, always: list[int]) -> Any:
        one = plain(self, windows, finished, cut, always)
        with mock.patch.object(self, "regions", regions):
            two = plain(self, windows, finished, cut, always)
        rows, cols = (-(-side // (2 * cut.windows.side)) for side in (cut.layout.rows, cut.layout.cols))
        shares.append((overlap(one.blocks, two.blocks), min(1.0, regions / (rows * cols * cut.views))))
        return one

    with mock.patch.object(Gsa, "_select", both):
        for views in images:
            predict(model, views)
    found, candidates = (sum(column) / len(column) for column in zip(*shares, strict=True))
    return {"recall": found, "candidates": candidates}


def accuracy(model: Backbone, batches: list[Any], regions: int | None) -> dict[str, float]:
    """AUC@30 and AbsRel with windows chosen by regions in every layer."""
    layers = [layer for layer in model.modules() if isinstance(layer, Gsa)]
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(mock.patch.object(layer, "regions", regions))
        scores = score_scenes(lambda views: predict(model, views), batches)
    return {name: scores[name] for name in ("auc30", "abs_rel")}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, nargs="+", default=[8, 32, 64, 128])
    parser.add_argument("--regions", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--scenes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    model = lean3r.load("nano-gsa-fp8")
    for layer in model.modules():
        if hasattr(layer, "dense_below"):
            layer.dense_below = 0
    rows: list[dict[str, Any]] = []
    for views in options.views:
        batches = held_out(views, options.scenes)
        one = accuracy(model, batches, None)
        for regions in options.regions:
            row = {
                "views": views,
                "regions": regions,
                **recall(model, [Views(batch.images) for batch in batches], regions),
            }
            row |= {"one_level": one, "two_levels": accuracy(model, batches, regions)}
            accuracy_now = ", ".join(f"{k} {one[k]:.3f} -> {v:.3f}" for k, v in row["two_levels"].items())
            print(
                f"{views:4} views, {regions:3} regions ({100 * row['candidates']:3.0f} %): "
                f"recall {100 * row['recall']:3.0f} %; {accuracy_now}",
                flush=True,
            )
            rows.append(row)
    method = "held-out scenes of the synthetic world; see benchmarks/regions.py"
    print(write_result("regions", {"hardware": hardware(), "method": method, "rows": rows}, options.out))


if __name__ == "__main__":
    main()
