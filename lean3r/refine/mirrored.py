"""Photos that are mirrored, as front cameras of telephones save them, among others that are not.

A mirrored building looks like another side of it: windows match windows, and a photo that is mirrored is placed
somewhere, by matches that fit well. Its mirror image matches far better. That takes no second search for features: a
descriptor of SIFT is a grid of histograms of directions, and its mirror image the same numbers in another order.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np

from lean3r.refine.nearest import mutual_nearest

GRID, DIRECTIONS = 4, 8  # cells along each side of a descriptor, and directions in each
MIRRORED = np.arange(GRID * GRID * DIRECTIONS).reshape(GRID, GRID, DIRECTIONS)[::-1][:, :, -np.arange(DIRECTIONS)]
LARGEST = 1000  # features of each photo that are compared; with 300, a third of the mirrored ones were found
ALONG = 6  # photos before and behind in the order of input that each is compared with
LEAST_PHOTOS = 6  # of a symmetric building, few match as well mirrored as they should
LEAST = 15  # matches that tie two photos
# The most matches of mirrored photos with the others, over those that photos of the set usually have; and over their
# own as they are. Random sets of seven scenes never have as many, but for one in fifty of 6 photos of a courtyard that
# is the same on two sides.
USUAL, CLEARLY = 0.8, 1.7


def mirrored(descriptors: Mapping[int, np.ndarray], sizes: Mapping[int, np.ndarray]) -> set[int]:
    """The views that are mirrored, compared with the most of those that they match, by their descriptors [N, 128] uint8
    and the sizes [N] of their features."""
    views = sorted(descriptors)
    largest = {view: descriptors[view][np.argsort(-sizes[view], kind="stable")[:LARGEST]] for view in views}
    plain, turned = np.zeros((2, len(views), len(views)), int)
    for i, j in combinations(range(len(views)), 2):
        if j - i <= ALONG:
            first, second = largest[views[i]], largest[views[j]]
            plain[i, j] = plain[j, i] = len(mutual_nearest(first, second))
            turned[i, j] = turned[j, i] = len(mutual_nearest(first, second[:, MIRRORED.ravel()]))
    return {views[index] for index in against_the_most(plain, turned)}


def against_the_most(plain: np.ndarray, turned: np.ndarray) -> list[int]:
    """Which of S photos are mirrored, by the numbers of matches [S, S] of each two as they are, and of one with the
    mirror image of the other. The strongest ties come first, and say which way round their two ends are."""
    best = np.maximum(plain, turned)
    part, is_other = np.arange(len(plain)), np.zeros(len(plain), bool)
    first, second = np.triu_indices(len(plain), 1)
    for at in np.argsort(-best[first, second], kind="stable"):
        i, j = first[at], second[at]
        if best[i, j] >= LEAST and part[i] != part[j]:
            joining = part == part[j]
            is_other[joining] ^= (turned[i, j] > plain[i, j]) ^ is_other[i] ^ is_other[j]
            part[joining] = part[i]
    found = []
    for members in (np.flatnonzero(part == number) for number in np.unique(part)):
        few, most = sorted((members[is_other[members]], members[~is_other[members]]), key=len)
        if len(members) < LEAST_PHOTOS or not len(few):
            continue
        as_mirrored, as_they_are = (matches[np.ix_(few, most)].max() for matches in (turned, plain))
        if as_mirrored >= max(USUAL * np.median(best[members].max(axis=1)), CLEARLY * as_they_are):
            found += few.tolist()
    return found
