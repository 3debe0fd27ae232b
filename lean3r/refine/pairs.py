"""Which views may overlap, from predicted cameras and depth."""

from __future__ import annotations

import numpy as np

from lean3r.refine.sequence import pairs_along, sequences
from lean3r.types import Reconstruction

ALL_PAIRS = 30  # up to so many views, every pair is matched: cheaper than a wrong choice
GRID = 12  # points along each side of a view for measuring overlap
NEIGHBOURS, NEXT = 12, 2  # views of the largest overlap, and views before and behind in the order of input
LEAST_OVERLAP = 0.1


def likely_pairs(reconstruction: Reconstruction) -> np.ndarray | None:
    """Pairs [P, 2] of views to match; None for all pairs, if there are few views.

    Frames of one video go by their order in it, others by their predicted overlap.
    """
    views = len(reconstruction.sources)
    if views <= ALL_PAIRS:
        return None
    runs = sequences(reconstruction.sources)
    if sum(map(len, runs)) == views:
        return pairs_along(runs)
    share = overlap(reconstruction)
    share = np.maximum(share, share.T)
    np.fill_diagonal(share, 0)
    best = np.argsort(-share, axis=1)[:, :NEIGHBOURS]
    chosen = np.zeros((views, views), bool)
    rows = np.arange(views)[:, None]
    chosen[rows, best] = share[rows, best] > LEAST_OVERLAP
    for step in range(1, NEXT + 1):
        chosen[np.arange(views - step), np.arange(step, views)] = True
    pairs = np.argwhere(np.triu(chosen | chosen.T, 1))
    return np.unique(np.concatenate([pairs, pairs_along(runs)]), axis=0)


def overlap(reconstruction: Reconstruction) -> np.ndarray:
    """Share [S, S] of a grid of points of view i, by predicted depth, that falls into the picture of view j."""
    views, height, width = reconstruction.depth.shape
    rows = ((np.arange(GRID) + 0.5) / GRID * height).astype(int)
    cols = ((np.arange(GRID) + 0.5) / GRID * width).astype(int)
    y, x = (axis.ravel() for axis in np.meshgrid(rows, cols, indexing="ij"))
    share = np.zeros((views, views))
    for i in range(views):
        z = reconstruction.depth[i, y, x].astype(np.float64)
        seen = z > 0
        if not seen.any():
            continue
        pixel = np.stack([x[seen] + 0.5, y[seen] + 0.5, np.ones(seen.sum())])
        points = np.linalg.inv(reconstruction.intrinsics[i]) @ pixel * z[seen]
        world = np.linalg.inv(reconstruction.cam_from_world[i])
        points = world[:3, :3] @ points + world[:3, 3:]
        cam = np.einsum("sij,jp->sip", reconstruction.cam_from_world[:, :3, :3], points)
        cam += reconstruction.cam_from_world[:, :3, 3:]
        projected = np.einsum("sij,sjp->sip", reconstruction.intrinsics, cam)
        with np.errstate(divide="ignore", invalid="ignore"):
            u, v = projected[:, 0] / projected[:, 2], projected[:, 1] / projected[:, 2]
        inside = (cam[:, 2] > 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
        share[i] = inside.mean(axis=1)
    return share
