"""Two results on one page: the second is moved into the world of the first by the cameras that both have."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lean3r.view.content import Content
from lean3r.view.frame import Frame, frame_of
from lean3r.view.packing import Package

FEWEST = 2  # cameras in common that determine scale, rotation and place
ELSEWHERE = 6.0  # times the median: cameras that differ more do not count
SAME_PLACE = 1e-6  # of the size of the scene: cameras that are not farther apart
APART = "each has its own place and size."


def packages_of(
    contents: Sequence[Content], up: np.ndarray | None = None, most: int | None = None, *, in_one_file: bool = False
) -> tuple[list[Package], str]:
    """The packages of one or two results, and how they were brought together, in words."""
    first = frame_of(contents[0], up)
    frames, text = [(first, 0)], ""
    for number, content in enumerate(contents[1:], 1):
        moved, text = _frame_like(contents[0], content, first)
        frames.append((frame_of(content, up), number) if moved is None else (moved, 0))
    share = most if most is None else most // len(contents)
    packages = [
        Package(content, frame, world, most=share, in_one_file=in_one_file)
        for content, (frame, world) in zip(contents, frames, strict=True)
    ]
    return packages, text


def _frame_like(first: Content, second: Content, frame: Frame) -> tuple[Frame | None, str]:
    """A frame that shows the second result where the first is, None if they cannot be brought together; in words."""
    ours = {camera.source.name: camera for camera in first.cameras if camera.registration != "uncertain"}
    pairs = [
        (camera.pose, ours[camera.source.name].pose)
        for camera in second.cameras
        if camera.source.name in ours and camera.registration != "uncertain"
    ]
    if len(pairs) < FEWEST:
        return None, f"The results have no two sure cameras in common: {APART}"
    import torch

    from lean3r.geometry.align import align_cameras, umeyama_robust
    from lean3r.geometry.pose import camera_centers

    theirs, true = (torch.from_numpy(np.stack(poses)) for poses in zip(*pairs, strict=True))
    places, aims = camera_centers(theirs), camera_centers(true)
    # A few cameras that are wrong in one of the results, as predicted ones may be, would move and scale all of it.
    off = (umeyama_robust(places, aims).apply(places) - aims).norm(dim=-1)
    fits = off <= ELSEWHERE * off.median() + SAME_PLACE * frame.unit
    moved, fit = align_cameras(theirs[fits], true[fits])
    scale, spread, used = float(fit.scale), float(aims[fits].std(dim=0).norm()), int(fits.sum())
    if not (np.isfinite(scale) and scale > 0 and spread > SAME_PLACE * frame.unit):
        return None, f"The cameras in common are in one place, which tells no size: {APART}"
    off = float((camera_centers(moved) - aims[fits]).norm(dim=-1).median()) / spread
    count = f"{used:,} of {len(pairs):,}" if used < len(pairs) else f"{used:,}"
    text = (
        f"The second is moved, turned and scaled onto the first by {count} cameras in common; these then differ by "
        f"{off:.1%} of their spread (median). Lengths are those of the first."
    )
    return frame.after(scale, fit.rotation.numpy(), fit.translation.numpy()), text
