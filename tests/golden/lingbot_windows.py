"""LingBot-Map's windowed mode as its authors run it: where windows start, and how one is joined to the one before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lean3r.geometry.pose import make_pose
from lean3r.geometry.pose_encoding import decode_pose
from lean3r.geometry.rotation import quaternion_from_matrix

LEAST, MOST = 1e-3, 1e3  # scale of a window


@dataclass(frozen=True)
class Window:
    """Raw results of a window: encodings [S, 9] world from camera, depth and conf [S, H, W], kinds [S]: 0 for an
    anchor, 1 for a keyframe, 2 for another frame."""

    encoding: Tensor
    depth: Tensor
    conf: Tensor
    kinds: tuple[int, ...]


@dataclass(frozen=True)
class Join:
    """The similarity that maps a window to the one before: x -> scale * rotation @ x + translation."""

    scale: Tensor
    rotation: Tensor
    translation: Tensor


def spans(
    frames: int,
    anchors: int,
    window_size: int,
    interval: int,
    overlap_size: int | None = None,
    overlap_keyframes: int | None = None,
) -> tuple[list[range], int]:
    """The frames of each window, and the overlap of two."""
    first = min(anchors, frames)
    overlap = first if overlap_size is None else overlap_size
    if overlap_keyframes is not None:
        overlap = max(first, overlap_keyframes * interval)
    overlap = min(overlap, frames - 1)
    length = min(first + max(window_size - first, 0) * interval, frames)
    step, found = max(length - overlap, 1), list[range]()
    for start in range(0, frames, step):
        stop = min(start + length, frames)
        if stop - start >= overlap or stop == frames:
            found.append(range(start, stop))
        if stop == frames:
            break
    return found, overlap


def join(before: Window, after: Window, overlap: int) -> Join:
    """The similarity of a window from its overlap with the one before, which is warped already."""
    start = len(before.kinds) - overlap
    paired = [o for o in range(overlap) if before.kinds[start + o] < 2 and after.kinds[o] < 2] or [0]
    a, b = (decode_pose(w.encoding[i]) for w, i in ((before, start + paired[-1]), (after, paired[-1])))
    rotation = a[:3, :3] @ b[:3, :3].mT
    old, new = before.depth[[start + o for o in paired]], after.depth[paired]
    valid = old.isfinite() & new.isfinite() & (new.abs() > torch.finfo(torch.float32).eps)
    ratios = old[valid] / new[valid]
    scale = ratios.median().clamp(LEAST, MOST) if len(ratios) else torch.ones(())
    return Join(scale, rotation, a[:3, 3] - scale * rotation @ b[:3, 3])


def warp(window: Window, by: Join) -> Window:
    """A window in the frame of the one before; its quaternions become unit ones with w >= 0."""
    pose = decode_pose(window.encoding)
    quaternion = quaternion_from_matrix(by.rotation @ pose[:, :3, :3])[:, [1, 2, 3, 0]]
    centre = by.scale * (pose[:, :3, 3] @ by.rotation.mT) + by.translation
    encoding = torch.cat([centre, quaternion, window.encoding[:, 7:]], -1)
    return Window(encoding, by.scale * window.depth, window.conf, window.kinds)


def join_all(windows: Sequence[Window], overlap: int) -> tuple[Window, Tensor, Tensor]:
    """(joined result, scales [K], transforms [K, 4, 4] of rotation and translation); overlaps are the later window's.
    A single window is returned as it is."""
    identity = Join(torch.ones(()), torch.eye(3), torch.zeros(3))
    if len(windows) == 1:
        return windows[0], torch.ones(1), torch.eye(4)[None]
    joins, warped = [identity], [warp(windows[0], identity)]
    for window in windows[1:]:
        joins.append(join(warped[-1], window, overlap))
        warped.append(warp(window, joins[-1]))
    kept = [len(w.kinds) - overlap for w in warped[:-1]] + [len(warped[-1].kinds)]
    cut = list(zip(warped, kept, strict=True))
    encoding, depth, conf = (torch.cat([getattr(w, n)[:c] for w, c in cut]) for n in ("encoding", "depth", "conf"))
    kinds = tuple(kind for w, c in cut for kind in w.kinds[:c])
    transforms = torch.stack([make_pose(j.rotation, j.translation) for j in joins])
    return Window(encoding, depth, conf, kinds), torch.stack([j.scale for j in joins]), transforms
