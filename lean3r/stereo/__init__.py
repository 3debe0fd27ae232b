"""Stereo: depth measured between pictures with good cameras, around the depth of a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lean3r.stereo.options import Dense, StereoOptions

if TYPE_CHECKING:
    from lean3r.types import Reconstruction

__all__ = ["Dense", "StereoOptions", "densify"]


def densify(reconstruction: Reconstruction, advanced: Callable[[], None] = lambda: None) -> Reconstruction:
    """The scene with depth and a cloud from stereo between its pictures, around the depth that it has.

    `advanced` is called twice a view. `info["stereo"]` says what was done; where views do not agree better than
    before, the scene keeps its depth, with a warning. See lean3r.stereo.dense.
    """
    from lean3r.geometry.fusion import with_cloud
    from lean3r.stereo.dense import densify

    return with_cloud(densify(reconstruction, advanced))
