"""Find and read the predictions for one item of a benchmark."""

from __future__ import annotations

from pathlib import Path

from lean3r.errors import InputError
from lean3r.eval.predicted import READERS
from lean3r.eval.predicted.base import Predicted

NPZ = "predictions.npz"


def read(place: Path) -> Predicted:
    """The predictions in a folder, or in a file whose name is `place` with a suffix; InputError if there are none."""
    for path in (place / NPZ, place.with_name(f"{place.name}.npz"), place):
        if path.is_file():
            return READERS.get("npz")(path)
    raise InputError(f"{place} has no predictions; expected {NPZ} in it")
