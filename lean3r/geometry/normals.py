"""Normals of depth maps by planes through small windows: noise of single pixels averages out, edges stay sharp."""

from __future__ import annotations

import numpy as np

WINDOW = 7  # pixels along each side of the squares that planes are fitted to
FLOOR = 1e-3  # relative residual below which planes count alike
OUTLIER = 0.02  # relative distance from the plane at which a pixel counts half in the second pass
ROUND = 1e-3  # least share of the smaller spread of a window's rays in the larger one: less is a line, not a plane


def smooth_normals(depth: np.ndarray, slopes: np.ndarray, window: int = WINDOW) -> np.ndarray:
    """Unit normals [H, W, 3] float32 in the camera frame, facing the camera, of z-depth [H, W]; zero where unknown.

    slopes [H, W, 2] are (x / z, y / z) of the rays. On a plane, inverse depth is linear in them, for lenses too. One
    such plane is fitted to each square of `window` pixels (odd) by least squares; a pixel takes the mean of the planes
    of all squares that hold it, and those that fit badly, because they cross an edge, have little weight. In a second
    pass, pixels that lie off their own plane count less. Unknown are pixels without a positive finite depth or without
    rays, and those with fewer than three such neighbours, or only in a line.
    """
    known = np.isfinite(depth) & (depth > 0) & np.isfinite(slopes).all(axis=-1)
    inverse = 1 / np.where(known, depth, 1).astype(np.float64)
    u, v = np.where(known, np.moveaxis(slopes, -1, 0), 0).astype(np.float64)
    plane, found = _blend(known.astype(np.float64), u, v, inverse, window)
    off = (plane[0] * u + plane[1] * v + plane[2]) / inverse - 1
    plane, found = _blend(known / (1 + np.square(off / OUTLIER)), u, v, inverse, window)
    # The plane a x + b y + c z = 1 faces away from the camera wherever it lies in front of it.
    found &= known & (plane[0] * u + plane[1] * v + plane[2] > 0)
    length = np.sqrt(np.square(plane).sum(axis=0))
    unit = np.divide(plane, -length, out=np.zeros_like(plane), where=found & (length > 0))
    return np.moveaxis(unit, 0, -1).astype(np.float32)


def _blend(
    weight: np.ndarray, u: np.ndarray, v: np.ndarray, inverse: np.ndarray, window: int
) -> tuple[np.ndarray, np.ndarray]:
    """For each pixel the mean plane [3, H, W] of the squares that hold it, inverse depth = a u + b v + c, and whether
    there is any [H, W]."""
    wu, wv, wi = weight * u, weight * v, weight * inverse
    products = (weight, wu, wv, wi, wu * u, wu * v, wv * v, wi * u, wi * v, wi * inverse)
    total, *means = (_boxes(part, window) for part in products)
    for mean in means:
        mean /= np.maximum(total, 1e-9)
    mu, mv, mi, uu, uv, vv, iu, iv, ii = means
    uu, uv, vv, iu, iv, ii = uu - mu * mu, uv - mu * mv, vv - mv * mv, iu - mi * mu, iv - mi * mv, ii - mi * mi
    det = uu * vv - uv * uv
    sound = (total > 2) & (det > ROUND * np.square(uu + vv))
    det[~sound] = 1
    a, b = (iu * vv - iv * uv) / det, (iv * uu - iu * uv) / det
    residual = np.maximum(ii - a * iu - b * iv, 0) / np.maximum(mi * mi, 1e-300)
    fit = sound * np.square(FLOOR**2 / (residual + FLOOR**2))
    total = _boxes(fit, window)
    found = total > 1e-12
    total[~found] = 1
    return np.stack([_boxes(fit * part, window) for part in (a, b, mi - a * mu - b * mv)]) / total, found


def _boxes(values: np.ndarray, window: int) -> np.ndarray:
    """Sums [H, W] of values [H, W] over the square around each pixel; outside there is nothing."""
    height, width = values.shape
    padded = np.pad(values, window // 2)
    down = padded[:height].copy()
    for step in range(1, window):
        down += padded[step : step + height]
    sums = down[:, :width].copy()
    for step in range(1, window):
        sums += down[:, step : step + width]
    return sums
