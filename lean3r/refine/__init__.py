"""Refinement: the network's cameras made exact by matches, triangulation and bundle adjustment; depth follows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lean3r.refine.options import KnownCameras, Refine, RefineOptions

if TYPE_CHECKING:
    from lean3r.inputs.masks import Masks
    from lean3r.inputs.pictures import Pictures
    from lean3r.refine.progress import Tell
    from lean3r.types import Reconstruction

__all__ = ["KnownCameras", "Refine", "RefineOptions", "refine"]


def refine(
    reconstruction: Reconstruction,
    pictures: Pictures | None = None,
    options: RefineOptions | None = None,
    *,
    known: KnownCameras | None = None,
    masks: Masks | None = None,
    follow_depth: bool = True,
    tell: Tell | None = None,
) -> Reconstruction:
    """A reconstruction with bundle-adjusted cameras, triangulated points and depth that fits them, if these are better.

    `pictures` are the originals (None: what the network saw); what their `masks` leave out (None: their own) gives no
    features. The frame, the scale and the cloud stay. Depth follows the cameras only if `follow_depth`. `tell` is
    called about once a second with the name of a step, how many of its parts are done, and how many there are. The
    result is the reconstruction as it was where nothing better was found within the time. `info["refinement"]` says
    which ("status": refined, fallback, kept; "reason"), and the reprojection error of verified matches before and
    after.
    """
    from lean3r.refine.run import run

    masks = pictures.masks if masks is None and pictures is not None else masks
    return run(reconstruction, pictures, options or RefineOptions(), known or KnownCameras(), masks, follow_depth, tell)
