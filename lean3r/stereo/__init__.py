"""Stereo: depth measured between pictures with good cameras, around the depth of a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lean3r.stereo.options import Dense, StereoOptions

if TYPE_CHECKING:
    from lean3r.types import Reconstruction

__all__ = ["Dense", "StereoOptions", "densify"]


def densify(reconstruction: Reconstruction, advanced: Callable[[], None] = lambda: None) -> Reconstruction:
    """The scene with depth from stereo between its pictures, around the depth that it has; see lean3r.stereo.dense.

    `advanced` is called twice for every view. `info["stereo"]` says what was done; where views do not agree better than
    before, the scene keeps its depth, with a warning.
    """
    from lean3r.stereo.dense import densify

    return densify(reconstruction, advanced)
