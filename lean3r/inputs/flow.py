"""Motion of the picture at the nodes of a grid, finely enough to tell a camera that moves forward from one that turns.

Each node is tracked by the method of Lucas and Kanade (1981), from coarse to fine, after the shift of the whole picture
(motion.py); the brightness of each neighbourhood may change. Nodes that show too little, or whose neighbourhood is not
found again, follow an affine motion through the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lean3r.inputs.motion import spectrum_of, whole_shift_of

ALONG, ACROSS = 8, 6  # nodes along the longer and the shorter side
HALF = 7  # pixels from a node to the edge of its neighbourhood
LEVELS, STEPS = 2, 4  # sizes of the picture, each half the one before, and steps of the search in each
LEAST_CORNER = 4.0  # of the smaller eigenvalue of the mean squared gradient: below, an edge may slide along itself
UNLIKE = 0.3  # of its variance: by which a neighbourhood may differ that is found again
LEAST_VARIANCE = 25.0  # grey levels squared, by which that is judged at least
FARTHEST = 32.0  # pixels from the shift of the whole picture
LEAST_NODES = 6  # that an affine motion needs
_OFFSETS = np.stack(np.meshgrid(*2 * (np.arange(-HALF, HALF + 1),), indexing="ij"), -1).reshape(-1, 2)


class Reference:
    """A frame [H, W] float32 from which the motion to others is measured; what depends on it alone is made once."""

    def __init__(self, picture: np.ndarray) -> None:
        self.picture = picture
        self._spectrum = spectrum_of(picture[None])
        self._nodes = _nodes(*picture.shape)
        pictures = pyramid(picture, LEVELS)
        self._patches = [Patches(of_level, 2**level, self._nodes) for level, of_level in enumerate(pictures)]

    @property
    def bytes(self) -> int:
        """Of the frame and what was made of it."""
        return self.picture.nbytes + self._spectrum.nbytes + sum(patches.bytes for patches in self._patches)

    def flow_to(self, frame: np.ndarray) -> np.ndarray | None:
        """See `flow_between`."""
        whole = whole_shift_of(self._spectrum, frame)
        if whole is None:
            return None
        height, width = frame.shape
        at = self._nodes
        moved = np.tile(whole, (len(at), 1))
        frames = pyramid(frame, LEVELS)
        unlike = np.zeros(len(at))
        for level in reversed(range(LEVELS)):
            scale = 2**level
            moved, unlike = self._patches[level].track(frames[level], moved / scale)
            moved = moved * scale
        there = at + moved
        clear = self._patches[0].corner > LEAST_CORNER
        known = clear & (unlike < UNLIKE) & (np.linalg.norm(moved - whole, axis=1) < FARTHEST)
        known &= ((there >= 0) & (there <= (height - 1, width - 1))).all(axis=1)
        if known.sum() < LEAST_NODES <= clear.sum() / 2:  # the shift of the whole picture was chance
            return None
        if known.sum() < LEAST_NODES:
            return np.tile(whole, (len(at), 1)) / max(height, width)
        places = np.column_stack([at, np.ones(len(at))])
        affine, *_ = np.linalg.lstsq(places[known], moved[known], rcond=None)
        return np.where(known[:, None], moved, places @ affine) / max(height, width)


def flow_between(a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
    """The motion (rows, columns) from frame a to b [H, W] float32 at each node [N, 2], in shares of the longer side;
    None if it cannot be measured."""
    return Reference(a).flow_to(b)


class Patches:
    """The neighbourhoods of nodes [N, 2] of the full frame in one made `scale` times smaller, with its `slopes` along
    rows and columns; `corner` [N] says how clear a corner each is. Places are as exact as those of the nodes."""

    def __init__(
        self, picture: np.ndarray, scale: int, nodes: np.ndarray, slopes: Sequence[np.ndarray] | None = None
    ) -> None:
        at = (nodes + 0.5) / scale - 0.5
        self._y, self._x = (at[:, None] + _OFFSETS.astype(at.dtype)).transpose(2, 0, 1)
        self._before = _centred(_sample(picture, self._y, self._x))
        slopes = [_sample(slope, self._y, self._x) for slope in slopes or np.gradient(picture)]
        self._gradient = np.stack(slopes, 1)  # [N, 2, P]
        squared = self._gradient @ self._gradient.transpose(0, 2, 1) + 1e-3 * np.eye(2)
        self._inverse = np.linalg.inv(squared)
        self.corner = np.linalg.eigvalsh(squared)[:, 0] / len(_OFFSETS)

    @property
    def bytes(self) -> int:
        """Of its arrays."""
        return sum(values.nbytes for values in vars(self).values())

    def track(self, frame: np.ndarray, moved: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Better motion [N, 2] in pixels of the nodes to a frame; how unlike their neighbourhoods are in the end."""
        before = off = self._before
        for _ in range(STEPS):
            off = _centred(_sample(frame, self._y + moved[:, :1], self._x + moved[:, 1:])) - before
            step = (self._inverse @ (self._gradient @ off[..., None]))[..., 0]
            moved = (moved - step).astype(self._y.dtype)
        return moved, (off**2).mean(1) / np.maximum((before**2).mean(1), LEAST_VARIANCE)


def _centred(values: np.ndarray) -> np.ndarray:
    return values - values.mean(1, keepdims=True)


def _sample(picture: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Values of a picture between its pixels; beyond the border, those of the border."""
    height, width = picture.shape
    y, x = np.clip(y, 0, height - 1.001), np.clip(x, 0, width - 1.001)
    top, left = y.astype(np.int32), x.astype(np.int32)
    down, right = (y - top).astype(np.float32), (x - left).astype(np.float32)
    flat, first = picture.ravel(), top * width + left
    upper = flat[first] + right * (flat[first + 1] - flat[first])
    lower = flat[first + width] + right * (flat[first + width + 1] - flat[first + width])
    return upper + down * (lower - upper)


def pyramid(picture: np.ndarray, levels: int) -> list[np.ndarray]:
    """The picture [H, W] float32 and smaller ones, each half the one before."""
    pictures = [picture]
    while len(pictures) < levels:
        pictures.append(_halved(pictures[-1]))
    return pictures


def _halved(picture: np.ndarray) -> np.ndarray:
    height, width = (side // 2 * 2 for side in picture.shape)
    return picture[:height, :width].reshape(height // 2, 2, width // 2, 2).mean((1, 3))


def nodes_of(width: int, height: int) -> np.ndarray:
    """Places (x, y) [N, 2] in pixels of a picture of any size, where motion is measured in its small frame."""
    return _nodes(height, width)[:, ::-1] + 0.5


def _nodes(height: int, width: int) -> np.ndarray:
    """Places (row, column) [N, 2] in the middle of equal cells."""
    rows, cols = (ACROSS, ALONG) if width >= height else (ALONG, ACROSS)
    y, x = ((np.arange(n) + 0.5) / n * side - 0.5 for n, side in ((rows, height), (cols, width)))
    return np.stack(np.meshgrid(y, x, indexing="ij"), -1).reshape(-1, 2)
