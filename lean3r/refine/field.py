"""A smooth correction of log depth over one picture, learnt from points whose depth is known.

The correction is a constant (the scale) plus a field over the picture and over depth itself, given by values at the
knots of a coarse grid and linear between them. Its stiffness, up to no field at all, is chosen by
cross-validation on points held back with their whole neighbourhood: it is never richer than the points support.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
import torch
from torch.nn.functional import grid_sample

KNOTS = (7, 6, 6)  # along x, y and log depth
STIFFNESS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # of differences between knots, against points
ANCHOR = 0.03  # weight of the pull of each knot to the plain scale, relative to the stiffness
FOLDS, BLOCKS = 5, 8  # points of one cell of BLOCKS x BLOCKS are held back together
FEWEST = 40  # points that a field needs
BEYOND = 2  # stiffnesses that are tried behind the best one: errors have one minimum
GAIN = 0.97  # a field must bring the error of held-back points below this share of the plain scale's
ROUNDS = 8  # of re-weighting


@dataclass(frozen=True)
class Field:
    """log z_true = log z + constant + field(x, y, log z); `knots` is None if there is only the scale.

    low and high [3] bound (x, y, log z) of the grid; `limit` is the largest correction in either direction. `spread` is
    the robust deviation of the points from it, `stiffness` the chosen one.
    """

    constant: float
    spread: float
    knots: np.ndarray | None = None
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    limit: float = 0.0
    stiffness: float | None = None

    def correction(self, xy: np.ndarray, log_depth: np.ndarray) -> np.ndarray:
        """Correction [N] to add to log depth [N] at pixels xy [N, 2]."""
        if self.knots is None or self.low is None or self.high is None:
            return np.full(len(xy), self.constant)
        index, weight = _hats(np.concatenate([xy, log_depth[:, None]], axis=1), self.low, self.high)
        return self.constant + _at(self.knots, index, weight).clip(-self.limit, self.limit)

    def apply(self, depth: np.ndarray) -> np.ndarray:
        """Corrected depth [H, W]; 0 stays 0."""
        if self.knots is None or self.low is None or self.high is None:
            return depth * np.float32(np.exp(self.constant))
        height, width = depth.shape
        low, high = 2 * self.low / (self.high - self.low), 2 / (self.high - self.low)
        x, y = (np.arange(n) + 0.5 for n in (width, height))
        at = np.empty((height, width, 3), np.float32)  # the grid's own units, from -1 to 1
        at[..., 2], at[..., 1] = x * high[0] - low[0] - 1, (y * high[1] - low[1] - 1)[:, None]
        with np.errstate(divide="ignore"):
            at[..., 0] = np.log(depth) * high[2] - low[2] - 1
        grid = torch.from_numpy(self.knots.reshape(1, 1, *KNOTS).astype(np.float32))
        between = grid_sample(grid, torch.from_numpy(at)[None, None], padding_mode="border", align_corners=True)
        return depth * torch.exp(self.constant + between[0, 0, 0].clamp(-self.limit, self.limit)).numpy()


def fit_scale(ratio: np.ndarray, weight: np.ndarray, prior: tuple[float, float] | None = None) -> Field:
    """The robust mean of log ratios [N]; `prior` is a value and its weight in points."""
    values, weights = (ratio, weight) if prior is None else (np.append(ratio, prior[0]), np.append(weight, prior[1]))
    constant = _median(values, weights)
    spread = _spread(ratio - constant, weight) if len(ratio) else np.nan
    for _ in range(ROUNDS if len(ratio) else 0):
        w = weights / (1 + ((values - constant) / (2 * spread)) ** 2)
        constant = float((w * values).sum() / w.sum())
    return Field(constant, spread)


def fit_field(xy: np.ndarray, log_depth: np.ndarray, ratio: np.ndarray, weight: np.ndarray, plain: Field) -> Field:
    """The best field for points at pixels xy [N, 2] of predicted log depth [N] and log ratio to the truth [N].

    `plain` is the scale alone. It is returned if no field predicts held-back points better.
    """
    if len(ratio) < FEWEST:
        return plain
    at = np.concatenate([xy, log_depth[:, None]], axis=1)
    low, high = np.percentile(at, 1, axis=0), np.percentile(at, 99, axis=0)
    high = np.maximum(high, low + 1e-3)
    index, hats = _hats(at, low, high)
    residual = ratio - plain.constant
    robust = weight / (1 + (residual / (2 * plain.spread)) ** 2)
    robust /= robust.mean()
    fold = _folds(xy, low[:2], high[:2])
    cap = 5 * plain.spread
    missed_plainly = float((robust * np.minimum(np.abs(residual), cap)).sum())
    parts = [fold == f for f in range(FOLDS)]
    grams, sides = zip(*(_equations(index[p], hats[p], residual[p], robust[p]) for p in parts), strict=True)
    gram, side = np.sum(grams, axis=0), np.sum(sides, axis=0)
    smooth = _smoothness()
    share = len(ratio) / np.prod(KNOTS)
    errors: list[float] = []
    for stiffness in STIFFNESS:
        solved = _solve(gram - np.stack(grams) + share * stiffness * smooth, side - np.stack(sides))
        missed = [np.abs(_at(knots, index[p], hats[p]) - residual[p]) for knots, p in zip(solved, parts, strict=True)]
        errors.append(sum(float((robust[p] * np.minimum(m, cap)).sum()) for m, p in zip(missed, parts, strict=True)))
        if len(errors) - 1 - int(np.argmin(errors)) == BEYOND:
            break
    if min(errors) > GAIN * missed_plainly:
        return plain
    best = STIFFNESS[int(np.argmin(errors))]
    knots = np.zeros(len(side))
    spread = plain.spread
    for _ in range(ROUNDS):
        w = weight / (1 + ((residual - _at(knots, index, hats)) / (2 * spread)) ** 2)
        gram, side = _equations(index, hats, residual, w / w.mean())
        knots = _solve(gram[None] + share * best * smooth, side[None])[0]
        spread = _spread(residual - _at(knots, index, hats), weight)
    limit = 1.2 * float(np.quantile(np.abs(_at(knots, index, hats)), 0.99)) + 1e-6
    return Field(plain.constant, spread, knots, low, high, limit, best)


def _hats(at: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The eight knots around each point [N, 3] and weights, both [N, 8]; outside the grid, those of its border."""
    knots = np.array(KNOTS)
    place = ((at - low) / (high - low)).clip(0, 1) * (knots - 1)
    base = np.minimum(place.astype(np.int64), knots - 2)
    part = place - base
    steps = np.array(list(product((0, 1), repeat=3)))
    corner = base[:, None] + steps
    weight = np.where(steps == 1, part[:, None], 1 - part[:, None]).prod(axis=-1)
    return (corner[..., 0] * KNOTS[1] + corner[..., 1]) * KNOTS[2] + corner[..., 2], weight


def _at(knots: np.ndarray, index: np.ndarray, hats: np.ndarray) -> np.ndarray:
    """Values [N] between the knots."""
    return (knots[index] * hats).sum(axis=1)


def _equations(
    index: np.ndarray, hats: np.ndarray, residual: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Normal equations, [K, K] and [K], of a field with K knots fitted to the residuals [N]."""
    count = int(np.prod(KNOTS))
    weighted = weight[:, None] * hats
    products = (weighted[:, :, None] * hats[:, None, :]).ravel()
    gram = np.bincount((index[:, :, None] * count + index[:, None, :]).ravel(), products, count * count)
    side = np.bincount(index.ravel(), (weighted * residual[:, None]).ravel(), count)
    return gram.reshape(count, count), side


def _solve(forms: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Solutions [B, K] of positive definite systems [B, K, K]. Torch can be limited to one thread. The threads of
    numpy's library would wait for each other a hundred times longer than such small systems take, as soon as another
    program runs."""
    factors = torch.linalg.cholesky(torch.from_numpy(forms))
    return torch.cholesky_solve(torch.from_numpy(sides)[..., None], factors)[..., 0].numpy()


@lru_cache(maxsize=1)
def _smoothness() -> np.ndarray:
    """The quadratic form of all differences between neighbouring knots, and of a weak pull of each to zero."""
    number = np.arange(int(np.prod(KNOTS))).reshape(KNOTS)
    form = ANCHOR * np.eye(number.size)
    for axis in range(3):
        a, b = np.moveaxis(number, axis, 0)[:-1].ravel(), np.moveaxis(number, axis, 0)[1:].ravel()
        step = np.zeros((len(a), number.size))
        step[np.arange(len(a)), a], step[np.arange(len(a)), b] = -1, 1
        form += step.T @ step
    return form


def _folds(xy: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Fold [N] of each point, by its cell in the picture."""
    cell = (((xy - low) / (high - low)).clip(0, 0.999) * BLOCKS).astype(np.int64)
    of_cell = np.random.default_rng(0).permutation(BLOCKS * BLOCKS) % FOLDS
    return of_cell[cell[:, 0] * BLOCKS + cell[:, 1]]


def _median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])


def _spread(residual: np.ndarray, weight: np.ndarray) -> float:
    """Robust standard deviation."""
    return max(1.4826 * _median(np.abs(residual), weight), 1e-4)
