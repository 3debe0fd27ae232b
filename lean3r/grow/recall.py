"""Which stored views to compare new pictures with: few for each, those that share the most with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lean3r.grow.memory import Memory
from lean3r.pipeline.overlap import Matcher

A_PICTURE = 4  # stored views that each new picture is compared with
LOOKED_AT = 12  # stored views of most similar appearance whose features are matched, for each new picture
WEAK = 0.2  # share of a picture's best matches below which a view says little: it may be of another place
ENOUGH = 80  # verified matches: more say no more about how useful a view is
LEAST = 3  # stored views in all: two cameras hold the world, a third one confirms them
UNMATCHED = 2  # stored views of most similar appearance for a picture that matches none


@dataclass(frozen=True)
class Recall:
    """The chosen stored `views`, ascending, and the verified matches [N, S] of new pictures with stored ones."""

    views: Sequence[int]
    matches: np.ndarray


def recall(
    memory: Memory,
    mask: np.ndarray,
    usable: np.ndarray,
    new_images: np.ndarray,
    new_mask: np.ndarray,
    new_vectors: np.ndarray,
) -> Recall:
    """Choose stored views for N new pictures.

    mask [S, H, W] and usable [S] bool say which pixels and which of the stored views may be used; new_images
    [N, h, w, 3] with new_mask [N, h, w] and new_vectors [N, D] are the new pictures as `memory` remembers its own.
    The views of most similar appearance are matched, in small pictures; then views are taken by turns, always the one
    that adds most for those pictures that have fewer than A_PICTURE.
    """
    likeness = np.where(usable, memory.likeness(new_vectors), -np.inf)
    near = np.argsort(-likeness, axis=1, kind="stable")[:, : min(LOOKED_AT, int(usable.sum()))]
    stored = np.unique(near)
    shape = np.maximum(mask.shape[1:], new_mask.shape[1:])
    images = np.concatenate([on_canvas(memory.images[stored], shape, 128), on_canvas(new_images, shape, 128)])
    masks = np.concatenate([on_canvas(mask[stored], shape, False), on_canvas(new_mask, shape, False)])
    matcher = Matcher(images, masks)
    matches = np.zeros(likeness.shape)
    place = {int(view): index for index, view in enumerate(stored)}
    for number, views in enumerate(near):
        for view in views:
            pair = matcher.match(len(stored) + number, place[int(view)])
            matches[number, view] = 0 if pair is None else len(pair.first)
    chosen = cover(matches)
    for number in np.flatnonzero(~(matches[:, chosen] > 0).any(axis=1) if chosen else np.ones(len(matches), bool)):
        chosen += [int(view) for view in near[number][:UNMATCHED]]
    order = np.argsort(-likeness.max(axis=0, initial=-np.inf), kind="stable")
    order = [int(view) for view in order if usable[view]]
    chosen = list(dict.fromkeys(chosen))
    chosen += [view for view in order if view not in chosen][: max(0, LEAST - len(chosen))]
    return Recall(sorted(chosen), matches)


def cover(matches: np.ndarray) -> list[int]:
    """Stored views, the most useful first, until each new picture has A_PICTURE of those with matches [N, S], or all
    that have more than WEAK ones."""
    matches = np.where(matches >= WEAK * matches.max(axis=1, initial=0, keepdims=True), matches, 0)
    worth = np.minimum(matches, ENOUGH)
    wanted = np.minimum((matches > 0).sum(axis=1), A_PICTURE)
    chosen: list[int] = []
    while (short := wanted - (matches[:, chosen] > 0).sum(axis=1)).max(initial=0) > 0:
        gain = worth[short > 0].sum(axis=0)
        gain[chosen] = -1
        chosen.append(int(gain.argmax()))
    return chosen


def on_canvas(maps: np.ndarray, shape: Sequence[int] | np.ndarray, fill: float) -> np.ndarray:
    """Maps [S, h, w, ...] at the top left of larger ones [S, *shape, ...]."""
    height, width = maps.shape[1:3]
    larger = np.full((len(maps), *(int(side) for side in shape), *maps.shape[3:]), fill, maps.dtype)
    larger[:, :height, :width] = maps
    return larger
