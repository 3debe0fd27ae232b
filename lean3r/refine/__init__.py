"""Refinement: the network's cameras made exact by matches, triangulation and bundle adjustment; depth follows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lean3r.refine.options import KnownPoses, LensName, Refine, RefineOptions, ShareLens

if TYPE_CHECKING:
    from lean3r.inputs.originals import Originals as Originals
    from lean3r.types import Reconstruction

__all__ = ["KnownPoses", "LensName", "Refine", "RefineOptions", "ShareLens", "originals_of", "refine"]


def originals_of(
    inputs: Sequence[str | Path],
    fps: float | None = None,
    every: int | None = None,
    frames: int | None = None,
    max_views: int | None = None,
) -> Originals:
    """The pictures that a reconstruction was made from, by its inputs and its choice of frames."""
    from lean3r.inputs.originals import Originals

    return Originals(inputs, fps, every, frames, max_views)


def refine(
    reconstruction: Reconstruction, originals: Originals | None = None, options: RefineOptions | None = None
) -> Reconstruction:
    """A reconstruction with bundle-adjusted cameras, triangulated points and depth that fits them, if these are better.

    `originals` are the pictures at full size (None: what the network saw). The frame and the scale stay. The result
    is the reconstruction as it was where nothing better was found within the time. `info["refinement"]` says which
    ("status": refined, fallback, kept; "reason"), and the reprojection error of verified matches before and after.
    """
    from lean3r.refine.run import run

    return run(reconstruction, originals, options or RefineOptions())
