"""Predictions in files of any program: one reader a form."""

from lean3r.registry import Registry

READERS = Registry(
    "form of predictions",
    {
        "npz": "lean3r.eval.predicted.npz:read",
    },
)
"""Name -> read(path) -> Predicted; `lean3r.eval.predicted.reading.read` chooses by what is there."""
