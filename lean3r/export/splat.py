"""A small z-buffered point renderer in numpy: no window, no graphics driver."""

from __future__ import annotations

import numpy as np

LARGEST = 6  # radius in pixels: larger splats hide more than they show


def splat(
    cam: np.ndarray, rgb: np.ndarray, radius_px: np.ndarray, focal_px: float, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw points as discs; return colour [H, W, 3] uint8 and z-depth [H, W], 0 and inf where there is no point.

    cam [P, 3] in OpenCV camera axes; rgb [P, 3] uint8; radius_px [P] in the picture; the principal point is in
    the middle. Points behind the camera are skipped.
    """
    front = np.flatnonzero(cam[:, 2] > 1e-6)
    z = cam[front, 2].astype(np.float32)
    col = np.floor(cam[front, 0] / z * focal_px + width / 2)
    row = np.floor(cam[front, 1] / z * focal_px + height / 2)
    near = (np.abs(col - width / 2) < width) & (np.abs(row - height / 2) < height)
    front, z, col, row = front[near], z[near], col[near].astype(np.int64), row[near].astype(np.int64)
    # The bits of a positive float32 grow with its value, so one integer holds depth (for the order) and point index.
    key = (z.view(np.uint32).astype(np.uint64) << np.uint64(32)) | front.astype(np.uint64)
    nothing = np.uint64(0xFFFFFFFFFFFFFFFF)
    buffer = np.full((height + 2 * LARGEST) * (width + 2 * LARGEST), nothing)
    stride = width + 2 * LARGEST
    visible = (col >= -LARGEST) & (col < width + LARGEST) & (row >= -LARGEST) & (row < height + LARGEST)
    size = np.clip(np.round(radius_px[front] - 0.5), 0, LARGEST).astype(np.int64)
    for radius in np.unique(size[visible]):
        mine = np.flatnonzero(visible & (size == radius))
        # Only pixels that stay inside the buffer after every offset.
        col_in, row_in = col[mine] + LARGEST, row[mine] + LARGEST
        safe = (col_in >= radius) & (col_in < stride - radius)
        safe &= (row_in >= radius) & (row_in < height + 2 * LARGEST - radius)
        at, keys = (row_in * stride + col_in)[safe], key[mine[safe]]
        for dy, dx in _disc(int(radius)):
            np.minimum.at(buffer, at + (dy * stride + dx), keys)
    buffer = buffer.reshape(height + 2 * LARGEST, stride)[LARGEST:-LARGEST, LARGEST:-LARGEST]
    drawn = np.flatnonzero(buffer != nothing)
    nearest = buffer.ravel()[drawn]
    colour = np.zeros((height * width, 3), np.uint8)
    colour[drawn] = rgb[(nearest & np.uint64(0xFFFFFFFF)).astype(np.int64)]
    depth = np.full(height * width, np.inf, np.float32)
    depth[drawn] = (nearest >> np.uint64(32)).astype(np.uint32).view(np.float32)
    return colour.reshape(height, width, 3), depth.reshape(height, width)


def edge_shading(depth: np.ndarray, reach: int = 2, strength: float = 6.0) -> np.ndarray:
    """Brightness [H, W] in (0, 1]: pixels with nearer neighbours are darker, which makes shape visible.

    Eye-dome lighting: Boucheny, "Visualisation scientifique de grands volumes de données", 2009.
    """
    log_depth = np.log2(depth)
    around = np.pad(log_depth, reach, constant_values=np.inf)
    height, width = depth.shape
    behind = np.zeros_like(log_depth)
    for row, col in ((reach, 0), (reach, 2 * reach), (0, reach), (2 * reach, reach)):
        with np.errstate(invalid="ignore"):  # inf - inf where both pixels are empty
            step = log_depth - around[row : row + height, col : col + width]
        behind += np.clip(np.fmax(step, 0, out=step), None, 0.25, out=step)
    behind *= -strength / 4
    return np.exp(behind, out=behind)


def _disc(radius: int) -> list[tuple[int, int]]:
    """Pixel offsets within a disc."""
    span = range(-radius, radius + 1)
    return [(dy, dx) for dy in span for dx in span if dy * dy + dx * dx <= (radius + 0.4) ** 2]
